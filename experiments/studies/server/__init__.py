"""Studies of methods with a server."""
