"""Experts that train apart: mixtures whose experts are the clients', and diffusion on clusters of the data."""

from dflax.experts.spes import spes
from dflax.experts.spes_gossip import Node, spes_gossip
from dflax.experts.spes_loss import routed_language_modelling
from dflax.experts.spes_merging import Merging, merging
from dflax.experts.spes_ownership import Upload

__all__ = [
    "Clusters",
    "Expert",
    "Merging",
    "Node",
    "Rule",
    "Student",
    "Upload",
    "apart",
    "clusters",
    "ddm",
    "distillation",
    "ensemble",
    "evaluations",
    "full",
    "merging",
    "nucleus",
    "oracle",
    "routed_language_modelling",
    "routing",
    "sampled",
    "spes",
    "spes_gossip",
    "threshold",
    "top",
]


def __dir__() -> list[str]:
    return __all__
