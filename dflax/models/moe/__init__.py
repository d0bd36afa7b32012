"""Mixtures of experts: routing, products of grouped rows, and the layer."""

__all__: list[str] = []  # what users need of it, a package above imports
