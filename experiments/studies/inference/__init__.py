"""Studies of inference."""
