"""Studies of training that keeps secrets."""
