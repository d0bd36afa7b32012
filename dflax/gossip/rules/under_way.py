"""Models on their way: neighbours hear what was sent some mixings ago."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool

from dflax.gossip.mixer import Models


class UnderWay(NamedTuple):
    """What each client sent in the last mixings, the oldest first.

    Attributes:
      models: leaves `[n, l, ...]`.
      there: `[n, l]` whether it took part, and sent, at all.
    """

    models: Models
    there: Bool[Array, "n l"]


def nothing_under_way(models: Models, latency: int) -> UnderWay:
    """Nobody has sent anything yet; of models `[n, ...]`."""
    clients = jax.tree.leaves(models)[0].shape[0]
    empty = jax.tree.map(
        lambda leaf: jnp.zeros((clients, latency, *leaf.shape[1:]), leaf.dtype), models
    )
    return UnderWay(empty, jnp.zeros((clients, latency), bool))


def passed_on(
    before: UnderWay, models: Models, active: Bool[Array, " n"] | None
) -> tuple[Models, Bool[Array, " n"], UnderWay]:
    """The models that arrive now, whose they are, and what is on its way after this mixing.

    Args:
      before: what was on its way.
      models: what is sent now, leaves `[n, ...]`.
      active: who sends; None for all.
    """
    there = before.there[:, 0]
    sends = jnp.ones_like(there) if active is None else active
    after = UnderWay(
        jax.tree.map(
            lambda held, new: jnp.concatenate([held[:, 1:], new[:, None]], 1), before.models, models
        ),
        jnp.concatenate([before.there[:, 1:], sends[:, None]], 1),
    )
    return jax.tree.map(lambda held: held[:, 0], before.models), there, after
