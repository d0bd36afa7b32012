"""Studies of clients that lie."""
