"""Products of a mixing matrix and all clients' rows, and what linear mixers share."""

__all__: list[str] = []  # what users need of it, a package above imports
