"""Experts that train apart."""
