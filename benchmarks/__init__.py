"""Timings against peers and against what the hardware can do: `python -m benchmarks`."""
