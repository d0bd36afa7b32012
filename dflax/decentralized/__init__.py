"""Algorithms without a server."""

from dflax.decentralized.accelerated.adom_plus import adom_plus
from dflax.decentralized.accelerated.continuized import continuized, unit_rates
from dflax.decentralized.accelerated.dadao import dadao, synchronized
from dflax.decentralized.accelerated.msda import gossip_steps, msda
from dflax.decentralized.bristle import bristle
from dflax.decentralized.consensus import consensus
from dflax.decentralized.dfedadmm import Dual, dfedadmm, dfedadmm_sam, mean_dual
from dflax.decentralized.dimat import dimat, dimat_mixer
from dflax.decentralized.dispfl import Grow, dispfl
from dflax.decentralized.framework.protocol import (
    Client,
    Clients,
    Server,
    adapt_then_combine,
    combine_then_adapt,
    mixed,
)
from dflax.decentralized.gossip_averaging import Order, dfedavg, dfedsam, dpsgd
from dflax.decentralized.gossip_learning import gossip_learning
from dflax.decentralized.gradient_tracking import Tracking, dsgt
from dflax.decentralized.modest.hash_sampling import Probe, md5_ranks, probe
from dflax.decentralized.modest.modest import modest
from dflax.decentralized.modest.transfer_times import Network
from dflax.decentralized.single_merging import merge, single_merging
from dflax.decentralized.stochastic_gradient_push import sgp

__all__ = [
    "Client",
    "Clients",
    "Dual",
    "Grow",
    "Network",
    "Order",
    "Probe",
    "Server",
    "Tracking",
    "adapt_then_combine",
    "adom_plus",
    "bristle",
    "combine_then_adapt",
    "consensus",
    "continuized",
    "dadao",
    "dfedadmm",
    "dfedadmm_sam",
    "dfedavg",
    "dfedsam",
    "dimat",
    "dimat_mixer",
    "dispfl",
    "dpsgd",
    "dsgt",
    "gossip_learning",
    "gossip_steps",
    "md5_ranks",
    "mean_dual",
    "merge",
    "mixed",
    "modest",
    "msda",
    "probe",
    "sgp",
    "single_merging",
    "synchronized",
    "unit_rates",
]


def __dir__() -> list[str]:
    return __all__
