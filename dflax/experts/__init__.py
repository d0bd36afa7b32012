"""Experts that train apart: mixtures of experts whose parts are the clients'."""

from dflax.experts.diffusion.clusters import Clusters, apart, clusters
from dflax.experts.diffusion.ddm import Expert, ddm
from dflax.experts.diffusion.distillation import Student, distillation
from dflax.experts.diffusion.ensemble import ensemble, evaluations
from dflax.experts.diffusion.routing import routing
from dflax.experts.diffusion.rules import Rule, full, nucleus, oracle, sampled, threshold, top

__all__ = [
    "Clusters",
    "Expert",
    "Rule",
    "Student",
    "apart",
    "clusters",
    "ddm",
    "distillation",
    "ensemble",
    "evaluations",
    "full",
    "nucleus",
    "oracle",
    "routing",
    "sampled",
    "threshold",
    "top",
]


def __dir__() -> list[str]:
    return __all__
