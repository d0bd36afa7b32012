"""Agents that delegate tasks: discovery, cards, ways to learn of a result, counted in messages."""

__all__: list[str] = []  # what users need of it, a package above imports
