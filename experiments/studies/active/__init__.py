"""Studies of which labels to buy."""
