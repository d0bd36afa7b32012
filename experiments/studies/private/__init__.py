"""Studies of training that keeps secrets."""

"""Studies of learning and inference that keep something from somebody."""
