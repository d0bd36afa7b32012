"""Attacks on a model's inputs, and training against them."""
