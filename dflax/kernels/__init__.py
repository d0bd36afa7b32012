"""Convolutions and windows as slices and matrix products: what a CPU computes fast."""
