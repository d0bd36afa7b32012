"""Agents that know what their decisions lead to before chance comes in."""
