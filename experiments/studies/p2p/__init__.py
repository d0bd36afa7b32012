"""Studies of systems among peers."""
