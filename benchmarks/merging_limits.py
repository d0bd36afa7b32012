"""The least that merging models takes: what is read and written, and the products that must be made."""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from dflax.aggregation.rows.coordinates import gram, mix_rows
from dflax.gossip import Mixer, Mixing
from dflax.gossip.mixer import Models

Mixed = tuple[Models, Any, dict[str, Array]]


def one_heard(clients: int) -> Mixer:
    """Everybody hears one other, as in gossip learning: two models read, their mean written.

    Whom, is the same in every round. Ages are left out.
    """

    def apply(models: Models, state: Any, mixing: Mixing) -> Mixed:
        mean = jax.tree.map(lambda leaf: 0.5 * (leaf + jnp.roll(leaf, 1, axis=0)), models)
        return mean, state, {"models_sent": jnp.float32(clients)}

    return Mixer(clients, lambda models: (), apply)


def nearest(clients: int, kept: int) -> Mixer:
    """The products of all models with each other, and means of so many of them, as MoNNA's.

    A distance is a sum of three products. Which models are kept is the same in every round: a client's
    own and those behind it. Models are read twice and written once. Nothing is made robust or compared.
    Means are one product with a matrix, zeros of it included, as that is the fastest way here.
    """

    def apply(models: Models, state: Any, mixing: Mixing) -> Mixed:
        ahead = (jnp.arange(clients) - jnp.arange(clients)[:, None]) % clients
        # By the products, or the compiler would leave them out.
        shares = jnp.where(ahead < kept, 1 / kept, 0.0) + 1e-30 * gram(models)
        return mix_rows(shares, models), state, {"models_sent": jnp.float32(clients * kept)}

    return Mixer(clients, lambda models: (), apply)


def looked_at(profit: Float[Array, "*B d d"]) -> Int[Array, "*B d"]:
    """A permutation in the place of an assignment, of the greatest profit in each row: one look at all.

    Whatever solves the problem must look at every profit.
    """
    return jnp.argsort(profit.max(-1), axis=-1).astype(jnp.int32)
