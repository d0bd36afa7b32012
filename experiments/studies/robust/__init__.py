"""Studies of rules that bear liars."""
