"""Studies of models whose parts lie on different machines."""
