"""Convex objectives of clients: their curvature, their conjugates, quadratics in their eigenbases."""

__all__: list[str] = []  # what users need of it, a package above imports
