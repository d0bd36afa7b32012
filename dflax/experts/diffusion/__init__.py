"""Decentralized diffusion: experts that never speak to each other, and a router over them."""

__all__: list[str] = []  # what users need of it, a package above imports
