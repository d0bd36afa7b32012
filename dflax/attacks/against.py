"""Messages made against one rule: Fang's attacks on Krum and on the trimmed mean."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Key

from dflax import validation
from dflax.aggregation import finite_rows, squared_distances
from dflax.aggregation.krum import OTHERS, Others, krum_scores
from dflax.aggregation.rows.row_norms import row_norms, row_products
from dflax.algorithm import Metrics
from dflax.attacks.collusion import KNOWS, Clients, Knows, Messages, known_mean
from dflax.channel import Channel, Sending
from dflax.channel.channel import membership
from dflax.clients import against, select

# From the messages, who is known, who is hostile, and a key to the messages that are sent instead.
Forge = Callable[[Messages, Bool[Array, " m"], Bool[Array, " m"], Key[Array, ""]], Messages]


def against_krum(
    clients: Clients, *, others: Others = "m-f-2", least: float = 1e-5, knows: Knows = "all"
) -> Channel:
    """Against Krum: as far back as Krum still chooses it.

        x_i <- -l sign(mean of the known messages)                      the same for every hostile i

    l is halved, from a bound beyond which it is not chosen, until Krum with f = the number of hostile
    clients chooses it among the known and the forged messages, or it falls below `least`.

    Args:
      clients: who is hostile, see `colluding`.
      others: how many others a score of Krum counts, see `aggregation.krum`.
      least: l > 0 at which the search gives up, in the units of a coordinate; traceable.
      knows: whose messages the hostile clients know, see `colluding`.

    Returns:
      A `Channel` for any algorithm.

    Raises:
      TypeError, ValueError: naming the argument; and, while a step is traced, senders not known.

    References:
      Fang, Cao, Jia and Gong, Local Model Poisoning Attacks to Byzantine-Robust Federated Learning,
      USENIX Security 2020, arXiv 1911.11815.
    """
    validation.choice("others", others, OTHERS)
    validation.real("least", least, low=0.0, low_open=True, scalar=True)
    fewer = 2 if others == "m-f-2" else 1

    def forge(
        messages: Messages, known: Bool[Array, " m"], hostile: Bool[Array, " m"], key: Array
    ) -> Messages:
        back = jax.tree.map(lambda leaf: -jnp.sign(leaf), known_mean(messages, known))
        length = _longest_chosen(messages, known, hostile, back, fewer, least)
        return jax.tree.map(
            lambda leaf, one: jnp.broadcast_to(length.astype(one.dtype) * one, leaf.shape),
            messages,
            back,
        )

    return _forging(forge, clients, knows)


def against_trimmed_mean(clients: Clients, factor: float = 2.0, *, knows: Knows = "all") -> Channel:
    """Against the trimmed mean and the median: beyond all known values, away from their mean's sign.

        x_ij drawn from [max_j, b max_j] where the known mean is below 0 in coordinate j, else from
        [min_j / b, min_j]; with 1 / b in the place of b where max_j < 0, and b in that of 1 / b where
        min_j < 0                                                                     b = factor

    Each hostile client draws its own, uniformly.

    Args:
      clients: who is hostile, see `colluding`.
      factor: b > 1, traceable.
      knows: whose messages the hostile clients know, see `colluding`.

    Returns:
      A `Channel` for any algorithm. Of the honest messages (1, -1), (2, -2), (3, -3) it makes one in
      [0.5, 1] x [-1, -0.5].

    Raises:
      TypeError, ValueError: as `against_krum`.

    References:
      As `against_krum`.
    """
    validation.real("factor", factor, low=1.0, low_open=True, scalar=True)

    def forge(
        messages: Messages, known: Bool[Array, " m"], hostile: Bool[Array, " m"], key: Array
    ) -> Messages:
        leaves, structure = jax.tree.flatten(messages)
        means = jax.tree.leaves(known_mean(messages, known))
        anybody = jnp.any(known)

        def beyond(leaf: Array, mean: Array, own: Array) -> Array:
            rows = against(known, leaf)
            most = jnp.max(jnp.where(rows, leaf, -jnp.inf), axis=0)
            fewest = jnp.min(jnp.where(rows, leaf, jnp.inf), axis=0)
            edge = jnp.where(anybody, jnp.where(mean < 0, most, fewest), 0)
            outward = (edge > 0) == (mean < 0)
            far = jnp.where(outward, factor * edge, edge / factor)
            drawn = jax.random.uniform(own, leaf.shape, leaf.dtype)
            return (edge + drawn * (far - edge)).astype(leaf.dtype)

        keys = jax.random.split(key, len(leaves))
        made = [beyond(*one) for one in zip(leaves, means, keys, strict=True)]
        return jax.tree.unflatten(structure, made)

    return _forging(forge, clients, knows)


def _longest_chosen(
    messages: Messages,
    known: Bool[Array, " m"],
    hostile: Bool[Array, " m"],
    back: Messages,
    fewer: int,
    least: float,
) -> Float[Array, ""]:
    """The first l of l, l / 2, ... such that Krum chooses `l back`, sent by all hostile ones."""
    honest = squared_distances(messages, known.astype(jnp.float32))
    squares, along = jnp.square(row_norms(messages)), row_products(messages, back)
    size = row_products(jax.tree.map(lambda leaf: leaf[None], back), back)[0]
    everyone = jnp.concatenate([known, hostile])
    count, liars = jnp.sum(everyone), jnp.sum(hostile)
    apart = ~(hostile[:, None] & hostile)
    itself = jnp.eye(len(everyone), dtype=bool)

    def chosen(length: Float[Array, ""]) -> Bool[Array, ""]:
        away = jnp.maximum(squares - 2 * length * along + jnp.square(length) * size, 0)
        across = jnp.where(known[:, None] & hostile, away[:, None], jnp.inf)
        theirs = jnp.where(apart, jnp.inf, 0)
        table = jnp.block([[honest, across], [across.T, theirs]])
        table = jnp.where(itself, 0, table)
        return jnp.argmin(krum_scores(table, everyone, count - liars - fewer)) >= len(known)

    # No message of an honest neighbourhood is farther from the rest than this.
    near = jnp.min(krum_scores(honest, known, count - liars - fewer))
    near = jnp.where(jnp.isfinite(near), near, 0) / jnp.maximum(count - 2 * liars - 1, 1)
    most = jnp.max(jnp.where(known, squares, 0))
    bound = (jnp.sqrt(near) + jnp.sqrt(most)) / jnp.sqrt(jnp.maximum(size, 1))
    return jax.lax.while_loop(
        lambda length: (length >= least) & ~chosen(length), lambda length: length / 2, bound
    )


def _forging(forge: Forge, clients: Clients, knows: Knows) -> Channel:
    """Hostile clients send what is forged of what they know, each its own row."""
    hostile_among = membership(clients)
    validation.choice("knows", knows, KNOWS)

    def apply(
        messages: Messages, weights: Float[Array, " m"], state: tuple[()], sending: Sending
    ) -> tuple[Messages, Float[Array, " m"], tuple[()], Metrics]:
        among = hostile_among(sending)
        hostile = among & (weights > 0)
        there = (weights > 0) & finite_rows(messages)
        known = there & (~among if knows == "all" else among)
        clean = select(known, messages, jax.tree.map(jnp.zeros_like, messages))
        forged = forge(clean, known, hostile, sending.key)
        return select(hostile, forged, messages), weights, state, {}

    return Channel(lambda message: (), apply)
