"""Measuring models inside the compiled program: on a test set, at the server, over all clients.

Everything here is a `jax.tree_util.Partial`: a function that carries its test set as data, so that
`run(..., evaluate=...)` hands the set to the compiled program as an argument.
"""

from dflax.evaluation.attacked import attacked
from dflax.evaluation.chosen import disagreement, models_of
from dflax.evaluation.measures import (
    Measure,
    client_models,
    consensus,
    consensus_distance,
    mean_model,
    on,
    server_model,
    together,
)
from dflax.evaluation.personal import distribution, on_own_data, personalized
from dflax.evaluation.recalibrated import recalibrated

__all__ = [
    "Measure",
    "attacked",
    "client_models",
    "consensus",
    "consensus_distance",
    "disagreement",
    "distribution",
    "mean_model",
    "models_of",
    "on",
    "on_own_data",
    "personalized",
    "recalibrated",
    "server_model",
    "together",
]


def __dir__() -> list[str]:
    return __all__
