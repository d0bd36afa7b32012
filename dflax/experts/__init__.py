"""Experts that train apart: owned experts of a mixture, and diffusion models on clusters of data."""

from dflax.experts.diffusion.clusters import Clusters, apart, clusters
from dflax.experts.diffusion.ddm import Expert, ddm
from dflax.experts.diffusion.distillation import Student, distillation
from dflax.experts.diffusion.ensemble import ensemble, evaluations
from dflax.experts.diffusion.load import ExpertLoad, expert_load
from dflax.experts.diffusion.routing import routing
from dflax.experts.diffusion.rules import Rule, full, nucleus, oracle, sampled, threshold, top
from dflax.experts.spes import spes
from dflax.experts.spes_gossip import Node, spes_gossip
from dflax.experts.spes_loss import routed_language_modelling
from dflax.experts.spes_merging import Merging, merging
from dflax.experts.spes_ownership import Upload

__all__ = [
    "Clusters",
    "Expert",
    "ExpertLoad",
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
    "expert_load",
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
