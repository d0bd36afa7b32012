"""Algorithms with a server."""

from dflax.server.consensus_admm import consensus_admm
from dflax.server.dual_free_admm import dual_free_admm
from dflax.server.fedavg import fedavg
from dflax.server.protocol import Clients, Received, Report, Server, with_server
from dflax.server.rerce_fed import rerce_fed
from dflax.server.rerce_fed_continual import rerce_fed_continual
