"""Neighbour rules, and the mixer that they make of a topology."""

__all__: list[str] = []  # what users need of it, a package above imports
