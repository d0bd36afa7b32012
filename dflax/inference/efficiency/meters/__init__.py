"""Energy meters of this machine, for the host's side of a measurement."""

__all__: list[str] = []  # what users need of it, a package above imports
