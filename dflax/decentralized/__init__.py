"""Algorithms without a server."""

from dflax.decentralized.gossip_averaging import Order, dfedavg, dpsgd
from dflax.decentralized.protocol import (
    Client,
    Clients,
    Server,
    adapt_then_combine,
    combine_then_adapt,
)
