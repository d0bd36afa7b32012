"""Studies of methods under attack."""
