"""Bristle: which neighbours are drawn, how they are graded class by class, and what is made of them."""
