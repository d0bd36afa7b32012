"""Messages a chosen length away from the honest mean: inner product manipulation, ALIE, searches."""

import math
import statistics
from collections.abc import Callable
from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Key

from dflax import validation
from dflax.aggregation import Aggregator, Combining, finite_rows
from dflax.algorithm import Metrics
from dflax.attacks.among_peers import harm_to_peers
from dflax.attacks.collusion import (
    KNOWS,
    Clients,
    Knows,
    Messages,
    along,
    colluding,
    known_deviation,
    known_mean,
    replaced,
)
from dflax.channel import Channel, Sending
from dflax.channel.channel import membership
from dflax.clients import select
from dflax.gossip import NeighbourRule

Family = Literal["inner_product", "little_is_enough"]
Harm = Callable[[Float[Array, ""]], Float[Array, ""]]
FAMILIES = ("inner_product", "little_is_enough")


def inner_product(
    clients: Clients, factor: float | Float[Array, ""] = 2.0, *, knows: Knows = "all"
) -> Channel:
    """Inner product manipulation, the fall of empires: `x_i <- -factor mean of the known messages`.

    With factor 1 hostile clients send the opposite of the honest mean, a sign flip of those who know
    all; with 0.1 a short step back that hides among short honest ones.

    Args:
      clients: who is hostile, see `colluding`.
      factor: > 0, traceable.
      knows: whose messages the hostile clients know, see `colluding`.

    Returns:
      A `Channel` for any algorithm. Of the honest messages 1, 2, 3 it makes -4.

    Raises:
      TypeError, ValueError: naming the argument.

    References:
      Xie, Koyejo and Gupta, Fall of Empires: Breaking Byzantine-tolerant SGD by Inner Product
      Manipulation, arXiv 1903.03936.
    """
    validation.real("factor", factor, low=0.0, low_open=True, scalar=True)

    def forge(messages: Messages, known: Bool[Array, " m"], key: Key[Array, ""]) -> Messages:
        return along(*_line("inner_product", messages, known), factor)

    return colluding(forge, clients, knows=knows)


def little_is_enough(
    clients: Clients, deviations: float | Float[Array, ""] = 1.5, *, knows: Knows = "all"
) -> Channel:
    """A little is enough (ALIE): the mean of the known messages and some standard deviations.

        x_i <- mean + z std      coordinate by coordinate, std over k - 1 of k known ones, z = deviations

    Args:
      clients: who is hostile, see `colluding`.
      deviations: z, traceable; negative ones pull the other way. `hidden_deviations(n, f)` is the most
        that the paper finds hidden among the others.
      knows: whose messages the hostile clients know, see `colluding`; the paper's know their own.

    Returns:
      A `Channel` for any algorithm. Of the honest messages (0, 0), (2, 0), (4, 6) it makes (5, 7.196).

    Raises:
      TypeError, ValueError: naming the argument.

    References:
      Baruch, Baruch and Goldberg, A Little Is Enough: Circumventing Defenses For Distributed Learning,
      arXiv 1902.06156.
    """
    validation.real("deviations", deviations, scalar=True)

    def forge(messages: Messages, known: Bool[Array, " m"], key: Key[Array, ""]) -> Messages:
        return along(*_line("little_is_enough", messages, known), deviations)

    return colluding(forge, clients, knows=knows)


def hidden_deviations(clients: int, hostile: int) -> float:
    """The z up to which so many honest messages lie further out that a majority is with the hostile.

        z = Phi^-1((n - f - s) / (n - f)),  s = floor(n / 2 + 1) - f

    Args:
      clients: n >= 3.
      hostile: f in [1, (n - 1) // 2].

    Returns:
      z, for example 0.2533 of n = 50 and f = 10; 0 where half of the honest ones are needed.

    Raises:
      TypeError, ValueError: naming the argument.

    References:
      Baruch, Baruch and Goldberg, A Little Is Enough, arXiv 1902.06156.
    """
    validation.integer("clients", clients, low=3)
    validation.integer("hostile", hostile, low=1, high=(clients - 1) // 2)
    honest = clients - hostile
    supporters = math.floor(clients / 2 + 1) - hostile
    return statistics.NormalDist().inv_cdf((honest - supporters) / honest)


def line_searched(
    family: Family,
    aggregator: Aggregator | NeighbourRule,
    clients: Clients,
    *,
    evaluations: int = 20,
    step: float = 10.0,
    ratio: float = 0.8,
    knows: Knows = "all",
) -> Channel:
    """`inner_product` or `little_is_enough` at the length that moves the receiver's rule most.

        t = argmax |rule(messages with start + t direction) - mean of the known|          along a line

    From t = 0 the step is doubled while the result gets worse for the receiver. From the first time that
    it does not, each step is `ratio` times the one before, and is taken where it helps.

    Args:
      family: "inner_product": from 0 against the mean; "little_is_enough": from the mean along the
        standard deviations.
      aggregator: the receiver's rule, which the hostile clients know, with the f that it declares. Of a
        stateful one they look at a fresh state. Among peers the neighbour rule of all of them, made by
        `gossip.combining`, such as `gossip.nna`: what counts is then the mean over honest clients of
        what they make of all messages. A rule that does not look at who receives, such as the trimmed
        mean, is given as an aggregator there too.
      clients: who is hostile, see `colluding`.
      evaluations: how often the rule is tried, >= 1, static.
      step: the first step > 0, traceable.
      ratio: in (0.5, 1), traceable.
      knows: whose messages the line is made of, see `colluding`. The rule is tried on all messages.

    Returns:
      A `Channel` for any algorithm; its price is that of `evaluations` aggregations in every round; of a
      neighbour rule, that of one table of products.

    Raises:
      TypeError, ValueError: naming the argument.

    References:
      Shejwalkar and Houmansadr, Manipulating the Byzantine, NDSS 2021; Allouah et al., Fixing by Mixing,
      arXiv 2302.01772.
    """
    validation.choice("family", family, FAMILIES)
    fix = "Make one with dflax.aggregation, or a combining rule such as dflax.gossip.nna(1)."
    validation.instance("aggregator", aggregator, (Aggregator, NeighbourRule), fix)
    if isinstance(aggregator, NeighbourRule) and aggregator.shares is None:
        raise ValueError(f"aggregator must be a rule that combines, got one without shares. {fix}")
    hostile_among = membership(clients)
    validation.integer("evaluations", evaluations, low=1)
    validation.real("step", step, low=0.0, low_open=True, scalar=True)
    validation.real("ratio", ratio, low=0.5, high=1.0, low_open=True, high_open=True, scalar=True)
    validation.choice("knows", knows, KNOWS)

    def search(
        messages: Messages, weights: Float[Array, " m"], state: tuple[()], sending: Sending
    ) -> tuple[Messages, Float[Array, " m"], tuple[()], Metrics]:
        hostile = hostile_among(sending)

        there = weights > 0

        def forge(clean: Messages, known: Bool[Array, " m"], key: Key[Array, ""]) -> Messages:
            line = _line(family, clean, known)
            if isinstance(aggregator, NeighbourRule):
                finite = there & finite_rows(messages)
                present = select(finite, messages, jax.tree.map(jnp.zeros_like, messages))
                who = finite & ~hostile, hostile & there, known
                assert aggregator.shares is not None, "refused above"
                harm = harm_to_peers(aggregator.shares, present, *who, line, key)
            else:
                centre = known_mean(clean, known)
                told = Combining(key, sending.index, sending.senders, sending.clients)
                harm = _harm_to_server(aggregator, messages, weights, hostile, centre, line, told)
            return along(*line, _search(harm, evaluations, step, ratio))

        return colluding(forge, clients, knows=knows).apply(messages, weights, state, sending)

    return Channel(lambda message: (), search)


def _harm_to_server(
    aggregator: Aggregator,
    messages: Messages,
    weights: Float[Array, " m"],
    hostile: Bool[Array, " m"],
    centre: Messages,
    line: tuple[Messages, Messages],
    combining: Combining,
) -> Harm:
    """How far the rule's result lies from the centre, squared, by the length sent."""
    fresh = aggregator.init(centre)

    def harm(length: Float[Array, ""]) -> Float[Array, ""]:
        sent = replaced(messages, hostile, along(*line, length))
        found, _, _ = aggregator.apply(sent, weights, fresh, combining)
        away = jax.tree.map(
            lambda x, c: jnp.sum(jnp.square((x - c).astype(jnp.float32))), found, centre
        )
        return jnp.sum(jnp.stack(jax.tree.leaves(away)))

    return harm


def _search(harm: Harm, evaluations: int, step: float, ratio: float) -> Float[Array, ""]:
    """The length of most harm that the search finds, from 0 on."""

    def turn(number: Array, carry: tuple[Array, Array, Array, Array]) -> tuple[Array, ...]:
        best, most, step, expands = carry
        found = harm(best + step)
        better = found > most
        expands = expands & better
        after = jnp.where(expands, 2 * step, ratio * step)
        best, most = jnp.where(better, best + step, best), jnp.where(better, found, most)
        return best, most, after, expands

    begin = jnp.float32(0)
    carry = (begin, harm(begin), jnp.asarray(step, jnp.float32), jnp.bool_(True))
    return jax.lax.fori_loop(0, evaluations - 1, turn, carry)[0]


def _line(
    family: Family, messages: Messages, known: Bool[Array, " m"]
) -> tuple[Messages, Messages]:
    """Where a family starts, and in which direction it goes."""
    mean = known_mean(messages, known)
    if family == "inner_product":
        return jax.tree.map(jnp.zeros_like, mean), jax.tree.map(jnp.negative, mean)
    return mean, known_deviation(messages, known, mean)
