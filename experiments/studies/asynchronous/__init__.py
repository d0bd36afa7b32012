"""Studies of servers that do not wait."""
