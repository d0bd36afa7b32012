"""Measures of some of the clients: of the honest ones, while others are hostile."""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial
from jaxtyping import Bool, Int

from dflax import validation
from dflax.algorithm import FederatedState, Metrics, Params
from dflax.evaluation.measure import Bound
from dflax.evaluation.measures import Models, consensus_distance

Clients = Sequence[int] | Int[np.ndarray, " k"] | Bool[np.ndarray, " n"]


def models_of(clients: Clients, *, but: bool = False) -> Models:
    """The models of some clients, as `models=` of `client_models`, `mean_model` and `disagreement`.

    `client_models(measure, models=models_of(hostile, but=True))` measures the honest clients of an
    experiment: their mean accuracy and, under `accuracy_min`, the worst.

    Args:
      clients: numbers, or a mask over all n.
      but: all others instead.

    Returns:
      `state -> stacked models [k, ...]`, in the order of the clients' numbers.

    Raises:
      TypeError, ValueError: naming the argument; and, when it is traced, numbers beyond the clients.
    """
    first = np.asarray(next(iter(np.atleast_1d(np.asarray(clients))), 0))
    kind = "boolean" if first.dtype == bool else "integer"
    given = validation.array("clients", clients, kind=kind, shape=("k",), low=0)  # type: ignore[arg-type]
    validation.flag("but", but)
    return Bound(_chosen, tuple(given.tolist()), kind == "boolean", but)


def disagreement(*, models: Models | None = None) -> Callable[[FederatedState], Metrics]:
    """`consensus_distance`, (1/k) sum_i |x_i - mean of x|^2, of the chosen clients' models.

    Args:
      models: `state -> stacked models [k, ...]`, see `models_of`; default: `state.clients.params`, as
        `consensus` measures.
    """
    if models is not None:
        validation.function("models", models, takes=1)
    return Partial(Bound(_disagreement, models))


def _chosen(given: tuple, is_mask: bool, but: bool, state: FederatedState) -> Params:
    models = state.clients.params
    count = validation.leading_axis("the clients' models", models)
    mask = np.zeros(count, bool)
    if is_mask and len(given) != count:
        raise ValueError(
            f"clients must be a mask over all {count} clients, got one of {len(given)}."
        )
    if not is_mask and max(given, default=0) >= count:
        raise ValueError(f"clients must be numbers below {count}, got {max(given)}.")
    mask[np.asarray(given, bool if is_mask else int)] = True
    places = np.flatnonzero(mask != but)
    if not len(places):
        raise ValueError("clients must leave at least one to measure, got none.")
    return jax.tree.map(lambda leaf: jnp.asarray(leaf)[places], models)


def _disagreement(models: Models | None, state: FederatedState) -> Metrics:
    chosen = state.clients.params if models is None else models(state)
    return {"consensus_distance": consensus_distance(chosen)}
