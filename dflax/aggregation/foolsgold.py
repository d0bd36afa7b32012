"""FoolsGold: a mean without those who always say the same as somebody else."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from dflax import validation
from dflax.aggregation.aggregator import Aggregator, Combining, Message, counted_mean
from dflax.aggregation.combination import count_dropped
from dflax.aggregation.rows.row_norms import who_counts
from dflax.aggregation.rows.similarity import row_cosines, similarity_scores
from dflax.algorithm import Metrics
from dflax.clients import against, replicate


class FoolsGoldState(NamedTuple):
    """What is remembered of the clients.

    Attributes:
      histories: every client's sum of its messages so far, leaves `[n, ...]`, float32 or wider.
    """

    histories: Message


def foolsgold(clients: int) -> Aggregator:
    """FoolsGold: the mean of messages by how little each sender resembles any other one.

        H_i <- H_i + x_i                                        for every i that reports
        out = sum_i s_i x_i / sum_i s_i,      s = scores of the cosines between the H_i

    The scores s_i in [0, 1] are those of `aggregation.rows.similarity`: 0 for Sybils, who push in one
    direction round after round and so resemble each other more than honest clients do. It needs honest
    clients that differ, and does not bound a single liar: put it behind `static_clipping`, or use it
    against Sybils only. Who is absent is not averaged, but it is remembered, and others are compared
    with it. Where all who report score 0, because all are alike, the result is their mean. Weights only
    tell who reported. A message with a NaN or an infinity counts as one that did not arrive; the metric
    `messages_dropped` counts them, and `trusted` is the sum of the scores.

    Args:
      clients: n, the number of clients of the federation.

    Returns:
      An `Aggregator` whose state is a `FoolsGoldState`, n messages on every device; 0 when nobody
      reports. It makes (0, 1) of the messages (0, 1), (1, 0), (1, -1) in the first round.

    Raises:
      TypeError, ValueError: naming the argument; and, when the messages of a round are seen, unknown
        senders or another number of clients.

    References:
      Fung, Yoon and Beschastnikh, The Limitations of Federated Learning in Sybil Settings, RAID 2020,
      arXiv 1808.04866.
    """
    validation.integer("clients", clients, low=1)

    def init(message: Message) -> FoolsGoldState:
        def nothing(leaf: Array) -> Array:
            return jnp.zeros(jnp.shape(leaf), jnp.result_type(jnp.float32, leaf))

        return FoolsGoldState(replicate(jax.tree.map(nothing, message), clients))

    def apply(
        messages: Message, weights: Float[Array, " m"], state: FoolsGoldState, combining: Combining
    ) -> tuple[Message, FoolsGoldState, Metrics]:
        _require_senders(combining, clients)
        senders = combining.senders
        present, dropped = who_counts(messages, weights)
        histories = jax.tree.map(
            lambda old, new: old.at[senders].add(
                jnp.where(against(present, new), new, 0).astype(old.dtype)
            ),
            state.histories,
            messages,
        )
        cosines, norms = row_cosines(histories)
        # A history that is no longer finite is compared with nobody, and its owner not trusted.
        known = (norms > 0) & jnp.isfinite(norms)
        here = jnp.zeros(clients, bool).at[senders].max(present)
        scores = similarity_scores(jnp.where(known[:, None] & known, cosines, 0), known, here)
        given = jnp.where(present, scores[senders], 0)
        shares = jnp.where(given.sum() > 0, given, present.astype(given.dtype))
        metrics = count_dropped({"trusted": given.sum()}, dropped)
        return counted_mean(messages, shares), FoolsGoldState(histories), metrics

    return Aggregator(init, apply)


def _require_senders(combining: Combining, clients: int) -> None:
    """Refuse messages of which nobody knows whose they are."""
    if combining.senders is None:
        raise ValueError(
            "combining.senders must be the clients' numbers for FoolsGold, which remembers each client, "
            "got None. Messages made of several clients', as by bucketing, are nobody's: put the rule "
            "outside."
        )
    if combining.clients not in (None, clients):
        raise ValueError(
            f"clients must be the number of all clients, {combining.clients}, got {clients}."
        )
