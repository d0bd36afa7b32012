"""Studies of methods that bear arbitrary participants."""
