"""Plans for cars that see only part of the road: one trajectory a hypothesis, one shared beginning."""

__all__: list[str] = []  # what users need of it, a package above imports
