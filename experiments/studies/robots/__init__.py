"""Studies of robots."""
