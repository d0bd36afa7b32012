"""Nodes that answer a query, judge each other's answers in pairs, and agree by a ranking."""

__all__: list[str] = []  # what users need of it, a package above imports
