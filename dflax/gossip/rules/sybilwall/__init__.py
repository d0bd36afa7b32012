"""SybilWall: what it makes of its neighbours, and the records that it passes on."""

__all__: list[str] = []  # what users need of it, a package above imports
