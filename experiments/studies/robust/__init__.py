"""Studies of participants that lie."""
