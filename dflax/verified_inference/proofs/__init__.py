"""Proofs that a product, a layer, a network was computed as committed."""
