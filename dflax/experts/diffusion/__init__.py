"""Decentralized diffusion: experts that never speak to each other, and a router over them."""
