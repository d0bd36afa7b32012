"""Algorithms with a server."""

from dflax.server.fedavg import fedavg
