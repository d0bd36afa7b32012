"""Mixtures of experts: routing, products of grouped rows, and the layer."""
