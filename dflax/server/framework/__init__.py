"""The rounds that methods with a server state their parts to, and the blocks that they share."""

__all__: list[str] = []  # what users need of it, a package above imports
