"""Plans for cars that see only part of the road: one trajectory a hypothesis, one shared beginning."""
