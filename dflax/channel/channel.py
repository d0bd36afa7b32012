"""The protocol of what happens to messages on their way, and channels that compose."""

from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Key, PyTree

from dflax import returned, validation
from dflax.algorithm import Metrics
from dflax.clients import select
from dflax.metrics import disjoint
from dflax.participation import Count

Messages = PyTree[Array]


class Sending(NamedTuple):
    """One sending: what a channel may know of it beside the messages.

    A channel that wraps another hands this on whole, changed where it means to change something.

    Attributes:
      key: the sending's own typed key.
      index: `[]` int32, number of the round, for what varies in time.
      senders: `[m]` int32, the clients' numbers in [0, n), so that an attack, a rate or a fault can be
        said of a client. On the way down, from a server, they are the clients that the copies are
        for. None only where messages are sent by hand, outside of a federation.
      clients: n, static, so that a mask over all clients can be checked; None as for `senders`.
      invited: `[m]` who of them takes part in the round, whether or not another channel has lost its
        message since; None where that is not known.
    """

    key: Key[Array, ""]
    index: Int[Array, ""] | int = 0  # type: ignore[assignment]  # over the method of tuples
    senders: Int[Array, " m"] | None = None
    clients: Count | None = None
    invited: Bool[Array, " m"] | None = None


class Channel(NamedTuple):
    """What happens to the messages of a cohort between clients and receiver.

    Compression, noise, loss and attacks have this shape. A channel sees all messages at once, so a
    sender may depend on the others (a Byzantine one that knows everything).

    Attributes:
      init: `init(message) -> state` of ONE client, from one message's shape; the algorithm keeps one
        per client (error feedback remembers what a client has not sent yet).
      apply: `apply(messages, weights, state, sending) -> (messages, weights, state, metrics)` with
        leaves `[m, ...]` and weights `[m]`, see `Sending`; a lost message gets weight 0, and zeros in
        its place.
    """

    init: Callable[[Messages], Any]
    apply: Callable[
        [Messages, Float[Array, " m"], Any, Sending],
        tuple[Messages, Float[Array, " m"], Any, Metrics],
    ]


def sent_through(
    channel: Channel,
    messages: Messages,
    weights: Float[Array, " m"],
    state: Any,
    sending: Sending,
) -> tuple[Messages, Float[Array, " m"], Any, Metrics]:
    """`channel.apply`, with what it returns checked against what it was given.

    Raises:
      TypeError, ValueError: naming what `Channel.apply` returned and what it must return.
    """
    sent = channel.apply(messages, weights, state, sending)
    returned.parts("Channel.apply", sent, ("messages", "weights", "state", "metrics"))
    returned.alike(
        "the messages of Channel.apply", sent[0], messages, "those it was given", dtypes=False
    )
    returned.alike(
        "the weights of Channel.apply", sent[1], weights, "those it was given", dtypes=False
    )
    returned.alike("the state of Channel.apply", sent[2], state, "the one it was given")
    returned.metrics("the metrics of Channel.apply", sent[3])
    return sent


def perfect() -> Channel:
    """Every message arrives as it was sent."""
    return Channel(
        lambda message: (), lambda messages, weights, state, sending: (messages, weights, state, {})
    )


def chain(*channels: Channel) -> Channel:
    """One channel after another: the first argument acts first.

    Two of them that measure something under the same name are refused while a step is traced:
    neither their sum nor one of the two is what a reader would take it for. Give one of them a name of
    its own with `named`.

    Raises:
      TypeError: an argument that is no `Channel`.

    Examples:
      >>> import jax, jax.numpy as jnp, dflax as dx
      >>> channel = dx.channel.chain(dx.channel.top_k(0.5), dx.channel.finite_only())
      >>> messages = jnp.array([[1.0, -5.0, 2.0, 0.0], [jnp.nan, 1.0, 0.0, 4.0]])
      >>> state = jax.vmap(channel.init)(messages)
      >>> sending = dx.channel.Sending(jax.random.key(0))
      >>> arrived, weights, *_ = channel.apply(messages, jnp.ones(2), state, sending)
      >>> arrived[0].tolist(), weights.tolist()
      ([0.0, -5.0, 2.0, 0.0], [1.0, 0.0])
    """
    for number, channel in enumerate(channels):
        validation.instance(f"channels[{number}]", channel, Channel, "Make one with dflax.channel.")

    def init(message: Messages) -> tuple[Any, ...]:
        return tuple(channel.init(message) for channel in channels)

    def apply(
        messages: Messages, weights: Float[Array, " m"], state: Any, sending: Sending
    ) -> tuple[Messages, Float[Array, " m"], Any, Metrics]:
        states: list[Any] = []
        measured: dict[str, Metrics] = {}
        keys = jax.random.split(sending.key, max(len(channels), 1))
        for number, (channel, own) in enumerate(zip(channels, state, strict=True)):
            messages, weights, own, metrics = channel.apply(
                messages, weights, own, sending._replace(key=keys[number])
            )
            states.append(own)
            measured[f"channels[{number}]"] = metrics
        return messages, weights, tuple(states), disjoint(**measured)

    return Channel(init, apply)


def named(channel: Channel, name: str) -> Channel:
    """The channel with its metrics under names of its own: `messages_lost` as `radio_messages_lost`.

    Args:
      channel: whose metrics are renamed.
      name: put before each of them, with an underscore.
    """
    validation.instance("channel", channel, Channel, "Make one with dflax.channel.")
    validation.text("name", name)

    def apply(
        messages: Messages, weights: Float[Array, " m"], state: Any, sending: Sending
    ) -> tuple[Messages, Float[Array, " m"], Any, Metrics]:
        *sent, metrics = channel.apply(messages, weights, state, sending)
        return (*sent, {f"{name}_{key}": value for key, value in metrics.items()})

    return Channel(channel.init, apply)


def only(
    channel: Channel, clients: int | Int[Array, " k"] | Bool[Array, " n"] | Sequence[int]
) -> Channel:
    """A channel for the messages of some clients; those of all others pass untouched.

    To the channel the others do not send: their weights are 0 there, so that its metrics count the
    messages that went through it, and its memory of the others stays as it is.

    Args:
      channel: what happens to the messages of these clients.
      clients: their numbers: one, `[k]` integers, or a mask `[n]` over all clients; traceable.

    Raises:
      TypeError, ValueError: naming the argument; and, while a step is traced, messages whose senders
        are not known.

    Examples:
      >>> import jax, jax.numpy as jnp, dflax as dx
      >>> channel = dx.channel.only(dx.channel.lossy(1.0), 0)
      >>> messages = jnp.array([[1.0], [2.0]])
      >>> sending = dx.channel.Sending(jax.random.key(0), senders=jnp.arange(2))
      >>> state = channel.init(messages[0])
      >>> arrived, weights, state, metrics = channel.apply(messages, jnp.ones(2), state, sending)
      >>> arrived.tolist()
      [[0.0], [2.0]]
    """
    validation.instance("channel", channel, Channel, "Make one with dflax.channel.")
    among = membership(clients)

    def apply(
        messages: Messages, weights: Float[Array, " m"], state: Any, sending: Sending
    ) -> tuple[Messages, Float[Array, " m"], Any, Metrics]:
        theirs = among(sending)
        sent = channel.apply(messages, jnp.where(theirs, weights, 0), state, sending)
        through = select(theirs, sent[:3], (messages, weights, state))
        return (*through, sent[3])

    return Channel(channel.init, apply)


def membership(
    clients: int | Int[Array, " k"] | Bool[Array, " n"] | Sequence[int],
    name: str = "clients",
) -> Callable[[Sending], Bool[Array, " m"]]:
    """From a sending to who of its senders, `[m]`, is one of these clients; see `only`.

    Args:
      clients: who.
      name: of the argument that names them.

    Raises:
      TypeError, ValueError: naming the argument; and, while a step is traced, unknown senders.
    """
    fix = "Give one number, several, or a mask over all clients."
    first = next(iter(jax.tree.leaves(clients)), 0)
    is_mask = getattr(first, "dtype", type(first)) in (bool, np.dtype(bool))
    kind: Literal["boolean", "integer"] = "boolean" if is_mask and np.ndim(clients) else "integer"
    high = validation.LARGEST_COUNT
    given = validation.array(name, clients, kind=kind, low=0, high=high, fix=fix)
    chosen = jnp.atleast_1d(given)
    if chosen.ndim != 1 or not chosen.size:
        raise ValueError(
            f"{name} must be one axis of at least one number, got shape {chosen.shape}. {fix}"
        )

    def among(sending: Sending) -> Bool[Array, " m"]:
        if sending.senders is None:
            raise ValueError(
                "sending.senders must be the clients' numbers for a channel of some of them, got None."
            )
        if is_mask and sending.clients not in (None, chosen.size):
            raise ValueError(
                f"{name} must be a mask over all {sending.clients} clients, got one of {chosen.size}. "
                "Give numbers to name a few."
            )
        if is_mask:
            return chosen.at[sending.senders].get(mode="fill", fill_value=False)
        return jnp.isin(sending.senders, chosen)

    return among


def gaussian_noise(deviation: float) -> Channel:
    """Adds independent noise N(0, deviation^2) to every number of every message.

    Args:
      deviation: standard deviation >= 0, in the units of the message; traceable.

    Examples:
      >>> import jax, jax.numpy as jnp, dflax as dx
      >>> channel = dx.channel.gaussian_noise(0.1)
      >>> messages = jnp.array([[1.0, -5.0, 2.0, 0.0], [3.0, 1.0, 0.0, 4.0]])
      >>> sending = dx.channel.Sending(jax.random.key(0))
      >>> state = channel.init(messages[0])
      >>> arrived, weights, state, metrics = channel.apply(messages, jnp.ones(2), state, sending)
      >>> bool(jnp.abs(arrived - messages).max() < 1)
      True
    """
    validation.real("deviation", deviation, low=0.0, scalar=True)

    def apply(
        messages: Messages, weights: Float[Array, " m"], state: tuple[()], sending: Sending
    ) -> tuple[Messages, Float[Array, " m"], tuple[()], Metrics]:
        leaves, structure = jax.tree.flatten(messages)
        keys = jax.random.split(sending.key, len(leaves))
        noisy = [
            leaf + deviation * jax.random.normal(own, leaf.shape, leaf.dtype)
            for leaf, own in zip(leaves, keys, strict=True)
        ]
        return jax.tree.unflatten(structure, noisy), weights, state, {}

    return Channel(lambda message: (), apply)


def lossy(probability: float) -> Channel:
    """Loses each message independently; the metric `messages_lost` counts those of reporting clients.

    Args:
      probability: of losing a message, in [0, 1]; traceable.

    Examples:
      >>> import jax, jax.numpy as jnp, dflax as dx
      >>> channel = dx.channel.lossy(1.0)
      >>> messages = jnp.array([[1.0, -5.0, 2.0, 0.0], [3.0, 1.0, 0.0, 4.0]])
      >>> sending = dx.channel.Sending(jax.random.key(0))
      >>> state = channel.init(messages[0])
      >>> arrived, weights, state, metrics = channel.apply(messages, jnp.ones(2), state, sending)
      >>> weights.tolist(), float(metrics["messages_lost"])
      ([0.0, 0.0], 2.0)
    """
    validation.real("probability", probability, low=0.0, high=1.0, scalar=True)

    def apply(
        messages: Messages, weights: Float[Array, " m"], state: tuple[()], sending: Sending
    ) -> tuple[Messages, Float[Array, " m"], tuple[()], Metrics]:
        lost = jax.random.bernoulli(sending.key, probability, weights.shape) & (weights > 0)
        metrics = {"messages_lost": lost.sum().astype(jnp.float32)}
        return (*_without(lost, messages, weights), state, metrics)

    return Channel(lambda message: (), apply)


def finite_only() -> Channel:
    """Drops messages that hold a NaN or an infinity, so that a diverged client poisons nobody else.

    The metric `messages_dropped` counts them among the reporting clients.

    Examples:
      >>> import jax, jax.numpy as jnp, dflax as dx
      >>> channel = dx.channel.finite_only()
      >>> messages = jnp.array([[1.0, 2.0], [jnp.nan, 3.0]])
      >>> sending = dx.channel.Sending(jax.random.key(0))
      >>> state = channel.init(messages[0])
      >>> arrived, weights, state, metrics = channel.apply(messages, jnp.ones(2), state, sending)
      >>> arrived.tolist(), weights.tolist()
      ([[1.0, 2.0], [0.0, 0.0]], [1.0, 0.0])
    """

    def apply(
        messages: Messages, weights: Float[Array, " m"], state: tuple[()], sending: Sending
    ) -> tuple[Messages, Float[Array, " m"], tuple[()], Metrics]:
        whole = [
            jnp.isfinite(leaf).reshape(leaf.shape[0], -1).all(1)
            for leaf in jax.tree.leaves(messages)
        ]
        broken = ~jnp.stack(whole).all(0)
        metrics = {"messages_dropped": jnp.sum(broken & (weights > 0)).astype(jnp.float32)}
        return (*_without(broken, messages, weights), state, metrics)

    return Channel(lambda message: (), apply)


def _without(
    gone: Bool[Array, " m"], messages: Messages, weights: Float[Array, " m"]
) -> tuple[Messages, Float[Array, " m"]]:
    """Weight 0 for messages that are gone, and zeros in their place: 0 times NaN would be NaN."""
    nothing = jax.tree.map(jnp.zeros_like, messages)
    return select(gone, nothing, messages), jnp.where(gone, 0.0, weights)
