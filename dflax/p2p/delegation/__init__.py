"""Agents that delegate tasks: discovery, cards, ways to learn of a result, counted in messages."""
