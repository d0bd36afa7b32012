"""The rounds that methods without a server state their parts to."""

__all__: list[str] = []  # what users need of it, a package above imports
