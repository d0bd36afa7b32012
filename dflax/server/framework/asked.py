"""Rounds that ask others than the cohort, and algorithms whose rounds are of two kinds."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int, Key

from dflax.algorithm import FederatedState, Metrics
from dflax.population import Assignment, Round

Step = Callable[[FederatedState, Round], tuple[FederatedState, Metrics]]


def everyone(round: Round, key: Key[Array, ""]) -> Round:
    """The round with all n clients for its cohort, each counting the same.

    Whoever is known not to report does not: members of the cohort with weight 0. Of those who were not
    invited nothing is known, and they answer. Nobody has minibatches: a client does no local step.

    Args:
      round: a federation's.
      key: of the round and its clients.
    """
    n = int(round.clients)
    round_key, clients_key = jax.random.split(key)
    weights = (round.weights > 0).astype(jnp.float32)
    if round.cohort is not None:
        weights = jnp.ones(n).at[round.cohort].set(weights, unique_indices=True)
    round = round._replace(cohort=None, weights=weights, reports=weights, key=round_key)
    none = jax.tree.map(
        lambda indices: jnp.zeros((n, 0, indices.shape[-1]), jnp.int32),
        round.assignments.minibatches,
    )
    idle = Assignment(
        none, jnp.zeros(n, jnp.int32), jax.random.split(clients_key, n), round.members
    )
    return round._replace(assignments=idle)


def alone(round: Round, member: Int[Array, ""], key: Key[Array, ""]) -> Round:
    """The round with one member of its cohort, at the place `member`, and keys of its own."""

    def row(leaf: Array) -> Array:
        return leaf[member][None]

    round_key, client_key = jax.random.split(key)
    assignment = jax.tree.map(row, round.assignments)
    return round._replace(
        cohort=row(round.members),
        weights=row(round.weights),
        reports=None if round.reports is None else row(round.reports),
        assignments=assignment._replace(key=client_key[None]),
        key=round_key,
    )


def either(
    condition: Bool[Array, ""],
    one: Callable[[], tuple[FederatedState, Metrics]],
    other: Callable[[], tuple[FederatedState, Metrics]],
) -> tuple[FederatedState, Metrics]:
    """The result of one of two rounds, of which only that one is computed.

    Metrics that only the other measures are NaN.
    """
    names: dict[str, Any] = {}
    for make in (other, one):
        names |= jax.eval_shape(lambda make=make: make()[1])

    def completed(make: Callable[[], Any]) -> Callable[[], tuple[FederatedState, Metrics]]:
        def made() -> tuple[FederatedState, Metrics]:
            state, metrics = make()
            return state, {
                name: metrics[name]
                if name in metrics
                else jnp.full(like.shape, jnp.nan, like.dtype)
                for name, like in names.items()
            }

        return made

    return jax.lax.cond(condition, completed(one), completed(other))
