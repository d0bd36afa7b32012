"""Studies of methods without a server."""
