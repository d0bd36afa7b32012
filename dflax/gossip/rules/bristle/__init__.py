"""Bristle: which neighbours are drawn, how they are graded class by class, and what is made of them."""

__all__: list[str] = []  # what users need of it, a package above imports
