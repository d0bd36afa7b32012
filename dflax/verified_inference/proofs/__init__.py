"""Proofs that a product, a layer, a network was computed as committed."""

__all__: list[str] = []  # what users need of it, a package above imports
