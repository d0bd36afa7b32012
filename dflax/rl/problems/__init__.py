"""Problems of decisions under chance: lot sizing and a frozen lake, in two stages."""

__all__: list[str] = []  # what users need of it, a package above imports
