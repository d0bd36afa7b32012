"""What clients without a server hear of each other: absence, loss and channels, for all methods."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from dflax.algorithm import Metrics, Params
from dflax.channel.channel import Channel, Sending, sent_through
from dflax.clients import select
from dflax.gossip.mixer import Mixer, MixerState, Mixing, in_models, mix
from dflax.metrics import disjoint
from dflax.population import Round

Message = PyTree[Array]
Size = Callable[[Message, Params], float]


class Exchange(NamedTuple):
    """What a round's messages became.

    Attributes:
      heard: what everyone hears, leaves `[n, ...]`.
      mixer: the mixer's state after the mixing.
      channel: the channel's memory after it, leaves `[n, ...]`; None without a channel.
      arrived: `[n]`, 0 for clients whose message came to nobody; None without a channel.
      metrics: those of mixer and channel.
    """

    heard: Message
    mixer: MixerState
    channel: Any
    arrived: Array | None
    metrics: Metrics


def exchange(
    mixer: Mixer,
    channel: Channel | None,
    mixing_state: MixerState,
    channel_state: Any,
    round: Round,
    messages: Message,
    models: Params,
    size: Size | None = None,
) -> Exchange:
    """What everyone hears in a round: `heard_i = sum_j W_ij channel(message_j)`.

    Three rules hold for every method. Who does not take part is not heard, hears its own message, and
    its channel remembers what it remembered. Whose message is lost is heard by nobody and hears its
    own message as it was before the channel. Everyone else, the sender too, mixes what was sent.

    Args:
      mixer: of the messages.
      channel: what happens to them on the way; None for nothing.
      mixing_state: the mixer's.
      channel_state: the channel's memory, leaves `[n, ...]`.
      round: in which clients mix.
      messages: leaves `[n, ...]`.
      models: the clients' models, in whose numbers `models_sent` counts.
      size: `(message, model) -> ` how many models a message is, where that is not the ratio of their
        numbers.

    Returns:
      An `Exchange`.
    """
    active = taking_part(round, mixer.clients)
    if channel is None:
        mixing = Mixing(round.key, round.number, active, round)
        heard, mixing_state, metrics = mix(mixer, messages, mixing_state, mixing)
        metrics = _in_models(metrics, messages, models, size)
        return Exchange(heard, mixing_state, None, None, metrics)
    channel_key, mixer_key = jax.random.split(round.key)
    weights = jnp.ones(mixer.clients) if active is None else active
    everyone = jnp.arange(mixer.clients, dtype=jnp.int32)
    sent, weights, memory, counted = sent_through(
        channel,
        messages,
        weights,
        channel_state,
        Sending(channel_key, round.number, everyone, round.clients),
    )
    mixing = Mixing(mixer_key, round.number, weights, round)
    heard, mixing_state, metrics = mix(mixer, sent, mixing_state, mixing)
    memory = memory if active is None else select(active > 0, memory, channel_state)
    # A client whose own message is lost still has it.
    heard = select(weights > 0, heard, messages)
    metrics = disjoint(mixer=_in_models(metrics, messages, models, size), channel=counted)
    return Exchange(heard, mixing_state, memory, weights, metrics)


def taking_part(round: Round, clients: int) -> Float[Array, " n"] | None:
    """The mask of clients that take part in a round; None when all do, whatever is drawn."""
    if round.cohort is None:
        return round.reports
    reports = jnp.ones(round.cohort.shape, jnp.float32) if round.reports is None else round.reports
    return jnp.zeros(clients, jnp.float32).at[round.cohort].set(reports, unique_indices=True)


def _in_models(metrics: Metrics, messages: Message, models: Params, size: Size | None) -> Metrics:
    if size is None:
        return in_models(metrics, messages, models)
    one, model = jax.eval_shape(
        lambda trees: jax.tree.map(lambda leaf: leaf[0], trees), (messages, models)
    )
    return metrics | {"models_sent": metrics["models_sent"] * size(one, model)}
