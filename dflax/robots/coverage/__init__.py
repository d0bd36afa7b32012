"""Agents that cover an area as a density asks: optimal transport, a step at a time."""
