"""Studies of consensus ADMM."""
