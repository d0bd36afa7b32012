"""Secure aggregation: fixed-point numbers, masks that cancel, and the protocol of both."""
