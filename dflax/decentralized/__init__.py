"""Algorithms without a server."""

from dflax.decentralized.adom_plus import adom_plus
from dflax.decentralized.continuized import continuized, unit_rates
from dflax.decentralized.dadao import dadao, synchronized
from dflax.decentralized.dfedadmm import Dual, dfedadmm, dfedadmm_sam, mean_dual
from dflax.decentralized.dimat import dimat, dimat_mixer
from dflax.decentralized.dispfl import Grow, dispfl
from dflax.decentralized.gossip_averaging import Order, dfedavg, dfedsam, dpsgd
from dflax.decentralized.gossip_learning import gossip_learning
from dflax.decentralized.gradient_tracking import Tracking, dsgt
from dflax.decentralized.hash_sampling import Probe, md5_ranks, probe
from dflax.decentralized.modest import modest
from dflax.decentralized.msda import gossip_steps, msda
from dflax.decentralized.protocol import (
    Client,
    Clients,
    Server,
    adapt_then_combine,
    combine_then_adapt,
    mixed,
)
from dflax.decentralized.single_merging import merge, single_merging
from dflax.decentralized.stochastic_gradient_push import sgp
from dflax.decentralized.transfer_times import Network
