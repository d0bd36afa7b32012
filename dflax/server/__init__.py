"""Algorithms with a server."""

from dflax.server.fedavg import fedavg
from dflax.server.protocol import Clients, Received, Report, Server, with_server
