"""Agents that know what their decisions lead to before chance comes in."""

__all__: list[str] = []  # what users need of it, a package above imports
