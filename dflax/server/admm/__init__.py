"""Methods of multipliers with a server."""
