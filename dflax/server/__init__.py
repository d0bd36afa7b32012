"""Algorithms with a server."""

from dflax.server.adaptive import fedadagrad, fedadam, fedyogi
from dflax.server.admm.consensus import consensus
from dflax.server.admm.consensus_admm import consensus_admm
from dflax.server.admm.dual_free_admm import dual_free_admm
from dflax.server.admm.fedadmm import fedadmm
from dflax.server.admm.rerce_fed import rerce_fed
from dflax.server.admm.rerce_fed_continual import rerce_fed_continual
from dflax.server.admm.residuals import Residuals, residual_balancing, residuals_within
from dflax.server.dp_brem import dp_brem, dp_brem_plus
from dflax.server.dp_rsa import dp_rsa
from dflax.server.fal import Attacked, fal
from dflax.server.fedavg import fedavg
from dflax.server.fednova import fednova
from dflax.server.fedprox import fedprox
from dflax.server.fedsam import fedsam
from dflax.server.fedsmoo import fedsmoo
from dflax.server.fedspeed import feddyn, fedspeed
from dflax.server.framework.averaging import descent, local_change
from dflax.server.framework.client_momentum import client_momentum
from dflax.server.framework.protocol import Arrived, Clients, Heard, Received, Report, Server
from dflax.server.framework.with_server import with_server
from dflax.server.kcfu import Partner, kcfu
from dflax.server.large_batches import anchors
from dflax.server.large_batches.bvr_l_sgd import bvr_l_sgd
from dflax.server.large_batches.fedamd import fedamd
from dflax.server.large_batches.fedpage import fedpage
from dflax.server.mimelite import Base, fixed_adam, fixed_momentum, mimelite
from dflax.server.momentum import (
    fedavg_m_vr,
    fedcm,
    mofedsam,
    scaffold_m,
    scaffold_m_vr,
)
from dflax.server.partial_averaging import (
    layers,
    normalization,
    own_models,
    partial_averaging,
)
from dflax.server.scaffold import fedgamma, scaffold
from dflax.server.sfprompt import Pruned, sfprompt, tuned_parts
from dflax.server.statistics import Cut, expectation_maximisation

__all__ = [
    "Arrived",
    "Attacked",
    "Base",
    "Clients",
    "Cut",
    "Heard",
    "Partner",
    "Pruned",
    "Received",
    "Report",
    "Residuals",
    "Server",
    "anchors",
    "bvr_l_sgd",
    "client_momentum",
    "consensus",
    "consensus_admm",
    "descent",
    "dp_brem",
    "dp_brem_plus",
    "dp_rsa",
    "dual_free_admm",
    "expectation_maximisation",
    "fal",
    "fedadagrad",
    "fedadam",
    "fedadmm",
    "fedamd",
    "fedavg",
    "fedavg_m_vr",
    "fedcm",
    "feddyn",
    "fedgamma",
    "fednova",
    "fedpage",
    "fedprox",
    "fedsam",
    "fedsmoo",
    "fedspeed",
    "fedyogi",
    "fixed_adam",
    "fixed_momentum",
    "kcfu",
    "layers",
    "local_change",
    "mimelite",
    "mofedsam",
    "normalization",
    "own_models",
    "partial_averaging",
    "rerce_fed",
    "rerce_fed_continual",
    "residual_balancing",
    "residuals_within",
    "scaffold",
    "scaffold_m",
    "scaffold_m_vr",
    "sfprompt",
    "tuned_parts",
    "with_server",
]


def __dir__() -> list[str]:
    return __all__
