"""Methods of multipliers with a server."""

__all__: list[str] = []  # what users need of it, a package above imports
