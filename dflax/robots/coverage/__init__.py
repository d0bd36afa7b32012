"""Agents that cover an area as a density asks: optimal transport, a step at a time."""

__all__: list[str] = []  # what users need of it, a package above imports
