"""Convolutions, windows and thresholds in the operations that a CPU computes fast."""

__all__: list[str] = []  # what users need of it, a package above imports
