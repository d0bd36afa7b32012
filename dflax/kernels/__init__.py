"""Convolutions, windows and thresholds in the operations that a CPU computes fast."""
