"""Messages as far from the honest mean as honest messages are from each other: min-max and min-sum."""

from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Key

from dflax import validation
from dflax.aggregation import squared_distances
from dflax.aggregation.rows.row_norms import row_norms, row_products
from dflax.attacks.collusion import (
    Clients,
    Knows,
    Messages,
    along,
    colluding,
    known_deviation,
    known_mean,
)
from dflax.channel import Channel

Direction = Literal["deviation", "sign", "mean"]
DIRECTIONS = ("deviation", "sign", "mean")


def min_max(
    clients: Clients, direction: Direction = "deviation", *, knows: Knows = "all"
) -> Channel:
    """Min-max: as far out as no known message is farther from it than two of them are apart.

        x_i <- mean + g d,   g the largest with max_j |mean + g d - x_j| <= max_jk |x_j - x_k|

    The condition is a parabola in g for every j, so g is the least of their roots: nothing is searched.

    Args:
      clients: who is hostile, see `colluding`.
      direction: d: "deviation", -std over k - 1 of k; "sign", -sign(mean); "mean", -mean / |mean|.
      knows: whose messages the hostile clients know, see `colluding`.

    Returns:
      A `Channel` for any algorithm. Of the honest messages 0, 2, 4 it makes 0, with g = 1.

    Raises:
      TypeError, ValueError: naming the argument.

    References:
      Shejwalkar and Houmansadr, Manipulating the Byzantine: Optimizing Model Poisoning Attacks and
      Defenses for Federated Learning, NDSS 2021.
    """

    def length(
        distances: Float[Array, "m m"],
        known: Bool[Array, " m"],
        away: Float[Array, " m"],
        slope: Float[Array, " m"],
        square: Float[Array, ""],
    ) -> Float[Array, ""]:
        room = jnp.maximum(distances.max() - jnp.square(away), 0)
        roots = (jnp.sqrt(jnp.square(slope) + square * room) - slope) / square
        return jnp.min(jnp.where(known, roots, jnp.inf))

    return _farthest(clients, direction, knows, length)


def min_sum(
    clients: Clients, direction: Direction = "deviation", *, knows: Knows = "all"
) -> Channel:
    """Min-sum: as far out as its squared distances add up to those of the known message farthest out.

        x_i <- mean + g d,   g the largest with sum_j |mean + g d - x_j|^2 <= max_j sum_k |x_j - x_k|^2

    Args:
      clients: who is hostile, see `colluding`.
      direction: as in `min_max`.
      knows: whose messages the hostile clients know, see `colluding`.

    Returns:
      A `Channel` for any algorithm. Of the honest messages 0, 2, 4 it makes 0, with g = 1.

    Raises:
      TypeError, ValueError: naming the argument.

    References:
      As `min_max`.
    """

    def length(
        distances: Float[Array, "m m"],
        known: Bool[Array, " m"],
        away: Float[Array, " m"],
        slope: Float[Array, " m"],
        square: Float[Array, ""],
    ) -> Float[Array, ""]:
        count = jnp.maximum(jnp.sum(known), 1)
        room = distances.sum(1).max() - jnp.sum(jnp.where(known, jnp.square(away), 0))
        return jnp.sqrt(jnp.maximum(room, 0) / (count * square))

    return _farthest(clients, direction, knows, length)


def _farthest(clients: Clients, direction: Direction, knows: Knows, length: object) -> Channel:
    validation.choice("direction", direction, DIRECTIONS)

    def forge(messages: Messages, known: Bool[Array, " m"], key: Key[Array, ""]) -> Messages:
        mean = known_mean(messages, known)
        towards = _towards(direction, messages, known, mean)
        distances = squared_distances(messages, known.astype(jnp.float32))
        distances = jnp.where(known[:, None] & known, distances, 0)
        away = jax.tree.map(lambda x, c: c - x, messages, mean)
        slope = row_products(away, towards)
        square = row_products(jax.tree.map(lambda d: d[None], towards), towards)[0]
        far = length(  # type: ignore[operator]
            distances, known, row_norms(away), slope, jnp.where(square > 0, square, 1)
        )
        return along(mean, towards, jnp.where((square > 0) & jnp.any(known), far, 0))

    return colluding(forge, clients, knows=knows)


def _towards(
    direction: Direction, messages: Messages, known: Bool[Array, " m"], mean: Messages
) -> Messages:
    if direction == "deviation":
        return jax.tree.map(jnp.negative, known_deviation(messages, known, mean))
    if direction == "sign":
        return jax.tree.map(lambda c: -jnp.sign(c), mean)
    norm = row_norms(jax.tree.map(lambda c: c[None], mean))[0]
    factor = jnp.where(norm > 0, 1 / jnp.where(norm > 0, norm, 1), 0)
    return jax.tree.map(lambda c: -c * factor.astype(c.dtype), mean)
