"""Algorithms without a server."""

from dflax.decentralized.gossip_averaging import Order, dfedavg, dpsgd
