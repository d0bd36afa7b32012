"""The rounds that methods with a server state their parts to, and the blocks that they share."""
