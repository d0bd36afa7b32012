"""Accelerated methods: adaptive communication in continuous time, and their baselines."""

__all__: list[str] = []  # what users need of it, a package above imports
