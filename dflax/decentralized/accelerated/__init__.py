"""Accelerated methods: adaptive communication in continuous time, and their baselines."""
