"""Attacks on a model's inputs, and training against them."""

__all__: list[str] = []  # what users need of it, a package above imports
