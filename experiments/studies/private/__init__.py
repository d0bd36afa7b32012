"""Studies of private learning."""
