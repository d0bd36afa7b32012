"""Studies of learning and inference that keep something from somebody."""
