"""Runs on disk: what is written, bound, locked and read again."""

__all__: list[str] = []  # what users need of it, a package above imports
