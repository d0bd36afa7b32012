"""Running a system: the host's loop, its checkpoints, and where its numbers go."""

__all__: list[str] = []  # what users need of it, a package above imports
