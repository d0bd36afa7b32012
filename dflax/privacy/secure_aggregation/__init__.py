"""Secure aggregation: fixed-point numbers, masks that cancel, and the protocol of both."""

__all__: list[str] = []  # what users need of it, a package above imports
