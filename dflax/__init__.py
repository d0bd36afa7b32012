"""dflax: federated and decentralized learning as pure functions, compiled whole."""

import importlib
import typing

from dflax import (
    aggregation,
    channel,
    data,
    decentralized,
    evaluation,
    gossip,
    local,
    losses,
    matching,
    mesh,
    models,
    participation,
    privacy,
    server,
    topology,
)
from dflax.algorithm import Algorithm, Events, FederatedState, Limit, Source, rollout
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
from dflax.condensed import condensed, stretches
from dflax.federation import Federation
from dflax.mesh import client_mesh
from dflax.metrics import disjoint
from dflax.population import Assignment, Population, Round
from dflax.running import interrupt, plan, plots, profile, sinks, stop
from dflax.running.checkpoints import checkpoint
from dflax.running.history import History
from dflax.running.run import run
from dflax.running.sweep import Sweep, sweep
from dflax.side_by_side import SideBySide, side_by_side

if typing.TYPE_CHECKING:
    from dflax import (
        active,
        asynchronous,
        attacks,
        experts,
        export,
        gaussian_processes,
        generative,
        heavy_hitters,
        imaging,
        inference,
        p2p,
        recipes,
        rl,
        robots,
        sparse_coding,
        verified_inference,
    )

# Rooms of single families, which most programs do not need: loaded when they are first named.
_LATER = frozenset(
    {
        "active",
        "asynchronous",
        "attacks",
        "experts",
        "export",
        "gaussian_processes",
        "generative",
        "heavy_hitters",
        "imaging",
        "inference",
        "p2p",
        "recipes",
        "rl",
        "robots",
        "sparse_coding",
        "verified_inference",
    }
)


if not typing.TYPE_CHECKING:  # Who reads types knows the rooms above, and no other name.

    def __getattr__(name: str) -> typing.Any:
        if name in _LATER:
            return importlib.import_module(f"dflax.{name}")
        raise AttributeError(f"module 'dflax' has no attribute {name!r}.")


__version__ = "0.1.0"

__all__ = [
    "Algorithm",
    "Assignment",
    "Events",
    "FederatedState",
    "Federation",
    "History",
    "Limit",
    "Population",
    "Round",
    "SideBySide",
    "Source",
    "Sweep",
    "__version__",
    "active",
    "aggregation",
    "asynchronous",
    "attacks",
    "channel",
    "checkpoint",
    "client_mesh",
    "condensed",
    "data",
    "decentralized",
    "disjoint",
    "evaluation",
    "experts",
    "export",
    "gather",
    "gaussian_processes",
    "generative",
    "gossip",
    "heavy_hitters",
    "imaging",
    "inference",
    "interrupt",
    "local",
    "losses",
    "map_clients",
    "map_cohort",
    "matching",
    "mean_metrics",
    "mesh",
    "models",
    "p2p",
    "participation",
    "plan",
    "plots",
    "privacy",
    "profile",
    "recipes",
    "replicate",
    "rl",
    "robots",
    "rollout",
    "run",
    "scatter",
    "select",
    "server",
    "side_by_side",
    "sinks",
    "sparse_coding",
    "stop",
    "stretches",
    "sweep",
    "topology",
    "verified_inference",
    "weighted_mean",
]


def __dir__() -> list[str]:
    return __all__
