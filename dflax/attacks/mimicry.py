"""Clients that repeat what an honest client says."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, Int, Key

from dflax import validation
from dflax.aggregation import finite_rows
from dflax.aggregation.rows.row_norms import row_products
from dflax.algorithm import Metrics
from dflax.attacks.collusion import Clients, Messages, known_mean, replaced
from dflax.channel import Channel, Sending
from dflax.channel.channel import membership
from dflax.clients import against, select


def mimic(clients: Clients, victim: int) -> Channel:
    """Hostile clients send what one honest client sends, so that it counts several times.

    No rule can tell such messages from honest ones; where honest clients' data differ, the victim's
    are over-represented. In a round in which the victim does not report they send what they should.

    Args:
      clients: who is hostile, see `colluding`.
      victim: the number of the client that is copied, >= 0.

    Returns:
      A `Channel` for any algorithm.

    Raises:
      TypeError, ValueError: naming the argument.

    References:
      Karimireddy, He and Jaggi, Byzantine-Robust Learning on Heterogeneous Datasets via Bucketing,
      arXiv 2006.09365.
    """
    hostile_among = membership(clients)
    validation.integer("victim", victim, low=0)

    def apply(
        messages: Messages, weights: Float[Array, " m"], state: tuple[()], sending: Sending
    ) -> tuple[Messages, Float[Array, " m"], tuple[()], Metrics]:
        hostile = hostile_among(sending) & (weights > 0)
        theirs = (sending.senders == victim) & (weights > 0)
        copied = jax.tree.map(lambda leaf: leaf[jnp.argmax(theirs)], messages)
        return replaced(messages, hostile & jnp.any(theirs), copied), weights, state, {}

    return Channel(lambda message: (), apply)


class Observed(NamedTuple):
    """What hostile clients have learnt of the honest ones; every one of them holds it.

    Attributes:
      direction: z, of length 1, in which honest messages differ most.
      mean: mu, of honest messages over the rounds observed.
      rounds: t, `[]` int32, rounds observed.
      victim: `[]` int32, whom they copied last; -1 before that.
    """

    direction: Messages
    mean: Messages
    rounds: Int[Array, ""]
    victim: Int[Array, ""]


def learned_mimic(clients: Clients, warmup: int | Int[Array, ""] = 100) -> Channel:
    """Hostile clients look for the honest client that stands out most, then copy it for good.

        mu <- (t mu + mean of the honest x_i) / (t + 1)                     t = 0, 1, ..., warmup - 1
        z  <- t z + u / |u|, made of length 1,       u = sum_i <x_i - mu, z> (x_i - mu)
        they send x_v,    v = argmax_i |<x_i, z>|;   from round `warmup` on v stays what it is

    z follows Oja's rule towards the direction in which honest messages differ most, from a normal
    vector, and so the copies add to the variance there as much as copies can.

    Args:
      clients: who is hostile, see `colluding`. They know what every honest client sends.
      warmup: rounds of learning, >= 1, traceable. They attack in these rounds, too.

    Returns:
      A `Channel` for any algorithm. Its state is `Observed`, a row for each client, the same in all
      hostile rows that take part. In a round in which v does not report they send what they should, and
      a round without honest messages teaches nothing.

    Raises:
      TypeError, ValueError: naming the argument.

    References:
      Karimireddy, He and Jaggi, Byzantine-Robust Learning on Heterogeneous Datasets via Bucketing,
      arXiv 2006.09365.
    """
    hostile_among = membership(clients)
    if not validation.is_traced(warmup):
        validation.integer("warmup", warmup, low=1)

    def init(message: Messages) -> Observed:
        wide = jax.tree.map(
            lambda leaf: jnp.zeros(leaf.shape, jnp.promote_types(leaf.dtype, jnp.float32)), message
        )
        return Observed(wide, wide, jnp.int32(0), jnp.int32(-1))

    def apply(
        messages: Messages, weights: Float[Array, " m"], state: Observed, sending: Sending
    ) -> tuple[Messages, Float[Array, " m"], Observed, Metrics]:
        assert sending.senders is not None, "membership has asked for them"
        among, there = hostile_among(sending), weights > 0
        known = there & finite_rows(messages) & ~among
        clean = select(known, messages, jax.tree.map(jnp.zeros_like, messages))
        # Of those that take part, who was there last knows most.
        most = jnp.argmax(jnp.where(among & there, state.rounds, -1))
        before = jax.tree.map(lambda leaf: leaf[most], state)
        learns = (before.rounds < warmup) & jnp.any(known)
        after = select(learns, _observe(before, clean, known, sending.key), before)
        standing_out = jnp.abs(row_products(clean, after.direction))
        found = jnp.argmax(jnp.where(known, standing_out, -1))
        victim = jnp.where(learns, sending.senders[found], after.victim)
        after = after._replace(victim=victim.astype(jnp.int32))
        theirs = known & (sending.senders == victim)
        copied = jax.tree.map(lambda leaf: leaf[jnp.argmax(theirs)], clean)
        sent = replaced(messages, among & there & jnp.any(theirs), copied)
        everywhere = jax.tree.map(
            lambda old, new: jnp.where(against(among & there, old), new, old), state, after
        )
        return sent, weights, everywhere, {}

    return Channel(init, apply)


def _observe(
    seen: Observed, messages: Messages, known: Bool[Array, " m"], key: Key[Array, ""]
) -> Observed:
    """One more round."""
    step = seen.rounds.astype(jnp.float32)
    mean = jax.tree.map(
        lambda old, new: (step * old + new.astype(old.dtype)) / (step + 1),
        seen.mean,
        known_mean(messages, known),
    )
    away = jax.tree.map(
        lambda leaf, mu: jnp.where(against(known, leaf), leaf.astype(mu.dtype) - mu, 0),
        messages,
        mean,
    )
    drawn = optax.tree.random_like(key, mean, jax.random.normal)
    direction = select(step > 0, seen.direction, drawn)
    along = row_products(away, direction)
    pull = jax.tree.map(lambda leaf: jnp.tensordot(along.astype(leaf.dtype), leaf, 1), away)
    pulled = _of_length_one(pull)
    return Observed(
        _of_length_one(jax.tree.map(lambda z, u: step * z + u, direction, pulled)),
        mean,
        seen.rounds + 1,
        seen.victim,
    )


def _of_length_one(tree: Messages) -> Messages:
    """The tree over its norm; 0 of 0."""
    norm = optax.tree.norm(tree)
    return jax.tree.map(lambda leaf: leaf / jnp.where(norm > 0, norm, 1), tree)
