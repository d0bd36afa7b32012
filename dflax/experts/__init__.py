"""Experts that train apart: mixtures of experts whose parts are the clients'."""

from dflax.experts.spes import spes
from dflax.experts.spes_gossip import Node, spes_gossip
from dflax.experts.spes_loss import routed_language_modelling
from dflax.experts.spes_merging import Merging, merging
from dflax.experts.spes_ownership import Upload

__all__ = [
    "Merging",
    "Node",
    "Upload",
    "merging",
    "routed_language_modelling",
    "spes",
    "spes_gossip",
]


def __dir__() -> list[str]:
    return __all__
