"""dflax: federated and decentralized learning as pure functions, compiled whole."""

from dflax import (
    aggregation,
    channel,
    checkpoint,
    data,
    decentralized,
    evaluation,
    export,
    gossip,
    local,
    losses,
    matching,
    mesh,
    models,
    participation,
    profile,
    server,
    sinks,
    topology,
)
from dflax.algorithm import Algorithm, Events, FederatedState, Source, rollout
from dflax.clients import (
    gather,
    map_clients,
    map_cohort,
    mean_metrics,
    replicate,
    scatter,
    select,
    weighted_mean,
)
from dflax.federation import Assignment, Federation, Round
from dflax.mesh import client_mesh
from dflax.metrics import disjoint
from dflax.run import History, run
from dflax.side_by_side import SideBySide, side_by_side
from dflax.sweep import Sweep, sweep

__version__ = "0.1.0"
