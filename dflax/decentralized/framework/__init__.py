"""The rounds that methods without a server state their parts to."""
