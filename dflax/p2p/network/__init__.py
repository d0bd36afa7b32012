"""Who reaches whom: NATs, hole punching, relays, and what a call over a link costs."""

__all__: list[str] = []  # what users need of it, a package above imports
