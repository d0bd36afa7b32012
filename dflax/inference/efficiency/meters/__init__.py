"""Energy meters of this machine, for the host's side of a measurement."""
