"""Large things in blocks that are known by their hashes, and how peers fetch them from each other."""

__all__: list[str] = []  # what users need of it, a package above imports
