"""Convex objectives of clients: their curvature, their conjugates, quadratics in their eigenbases."""
