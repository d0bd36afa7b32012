"""Neighbour rules, and the mixer that they make of a topology."""
