"""Studies of consensus and of sums of statistics."""
