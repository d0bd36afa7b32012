"""Secure aggregation: a server that learns the sum of its clients' messages, exactly."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Key

from dflax import validation
from dflax.aggregation import Aggregator, Combining, finite_rows
from dflax.aggregation.aggregator import Message
from dflax.algorithm import Metrics
from dflax.channel import Channel, Sending, perfect
from dflax.channel.broadcast import without_memory
from dflax.channel.channel import Messages, sent_through
from dflax.channel.compression import numbers
from dflax.clients import against, select, sum_clients
from dflax.privacy.secure_aggregation.fixed_point import FixedPoint, fixed_point
from dflax.privacy.secure_aggregation.masks import Ring, masked, removable, ring, unmasking
from dflax.privacy.secure_aggregation.message_sizes import message_bytes

# Into the round's key of the protocol: where neighbours come from, and masks.
OF_NEIGHBOURS, OF_MASKS = 0, 1


class SecureAggregation(NamedTuple):
    """The two ends of secure aggregation, and both in one.

    Attributes:
      channel: the clients' end and the network: encodes, masks and sends. What arrives are uint32 words.
        In a round whose masks cannot be taken off every message is lost.
      aggregator: the server's end: adds up what arrived modulo 2^m, takes the masks off and decodes.
        It makes float32. Give a method both ends.
      mean: both as one `Aggregator` of plain messages, for rules that are made of others. It decodes to
        the messages' dtype. In a round whose masks cannot be taken off it makes 0.
      encoding: of the numbers.
    """

    channel: Channel
    aggregator: Aggregator
    mean: Aggregator
    encoding: FixedPoint


class _Protocol(NamedTuple):
    """The settings of `secure_aggregation`."""

    key: Key[Array, ""]
    encoding: FixedPoint
    largest_weight: float | None
    neighbours: int | None
    threshold: int | None
    answering: float | Float[Array, ""]
    transport: Channel
    literal: bool


def secure_aggregation(
    key: Key[Array, ""],
    clients: int,
    *,
    bound: float,
    scale_bits: int = 16,
    modulus_bits: int = 32,
    largest_weight: float | None = None,
    neighbours: int | None = None,
    threshold: int | None = None,
    answering: float | Float[Array, ""] = 1.0,
    transport: Channel | None = None,
    literal: bool = False,
) -> SecureAggregation:
    """The mean of messages of which the server sees nothing but the sum.

        k_i = round(w_i x_i 2^s / W)          x_i cut to [-B, B] coordinate by coordinate
        y_i = k_i + PRG(b_i) + sum over neighbours j of (+ or -) PRG(s_ij)          mod 2^m, is sent
        sum_i k_i = sum_i y_i - masks                                               mod 2^m
        mean = sum_i k_i / sum_i round(w_i 2^s / W)

    i and j add and subtract the same mask, so the masks of those who send cancel. Of a client that
    participated and did not send, the server learns the pair secrets from t shares; of one that sent,
    the self-mask. Shares lie with the owner and its neighbours. Where fewer than t holders of a wanted
    secret answer, the round is dropped: no message counts, and `rounds_dropped` is 1. Otherwise the sum
    of the integers k_i is exact, whoever dropped out, and the mean is off by rounding alone:
    2^-(s + 1) per coordinate where all count the same.

    Participants are the clients of the round of positive weight. They drop out before sending by an
    earlier channel or a message that is not finite (`messages_dropped`), on the way by `transport`, and
    before the shares are asked for with probability `1 - answering`. `numbers_clipped` counts
    coordinates beyond B. `bytes_sent` and `bytes_received` are the clients' by `message_bytes`.

    **How it is computed.** Masks cancel in the modular sum whatever they are. Without `literal` none is
    drawn and the words travel bare; sums, metrics and dropped rounds are the same bit for bit. With
    `literal` every mask is drawn, added, and taken off as the server would: m k / 2 masks of a
    message's size each way, for tests and small runs.

    **What the simulation does not protect.** One process computes both ends, so nobody is kept from
    anything: keys are agreed by nobody, shares are counted and not made, a mask is `jax.random`, and
    without `literal` the words are in the clear. Neighbours, weights and who dropped out are known to
    the server, as in the protocol. A client that lies about its message is not found out, and no server
    can cut or compare messages behind the masks: let clients cut them (`proved_norms`). The sum itself
    is not private: add noise before it (`joint_noise`), with a `bound` far above its deviation. With too
    few neighbours or too low a threshold a server that colludes with clients can learn more; the papers
    say how many.

    Args:
      key: a typed key that all clients' secrets come from; round t uses what is folded in of t.
      clients: the most rows of a round, >= 1: n, or the size of a cohort.
      bound: B > 0, of every coordinate, before the weight; known when the program is traced.
      scale_bits: s in [0, 30].
      modulus_bits: m in [2, 32].
      largest_weight: W > 0, public and known when the program is traced; a weight above it counts as W
        and `weights_clipped` counts those. None: whoever reports counts the same.
      neighbours: k, even and >= 2, on a random ring (Bell et al.); of the order of log n. None:
        everybody (Bonawitz et al.).
      threshold: t >= 1 shares. None: more than half of a secret's holders.
      answering: probability in [0, 1], traceable, that a client whose message arrived answers with
        shares.
      transport: what happens to masked messages, for example `dflax.channel.lossy(0.1)`; without
        memory. None: all arrive.
      literal: whether masks are drawn.

    Returns:
      A `SecureAggregation`.

    Raises:
      TypeError, ValueError: naming the argument; a modulus too small for the sum, with the bits that it
        needs.

    References:
      See `message_bytes`.
    """
    validation.typed_key("key", key)
    validation.integer("clients", clients, low=1)
    encoding = fixed_point(clients, bound=bound, scale_bits=scale_bits, modulus_bits=modulus_bits)
    if largest_weight is not None:
        if validation.is_traced(largest_weight):
            raise TypeError(
                "largest_weight must be known when the program is traced, got a traced value."
            )
        validation.real("largest_weight", largest_weight, low=0.0, low_open=True, scalar=True)
        needed = (int(clients) << encoding.scale_bits).bit_length()
        if needed > encoding.modulus_bits:
            raise ValueError(
                f"modulus_bits must be at least {needed}, so that the sum of {clients} weights does not "
                f"wrap around, got {modulus_bits}. Take more bits or fewer scale_bits."
            )
    if neighbours is not None:
        validation.integer("neighbours", neighbours, low=2)
        if neighbours % 2:
            raise ValueError(
                f"neighbours must be even, as many on each side of the ring, got {neighbours}."
            )
    if threshold is not None:
        holders = clients if neighbours is None else min(neighbours + 1, clients)
        fix = f"A secret has {holders} holders: its owner and the neighbours."
        validation.integer("threshold", threshold, low=1, high=holders, fix=fix)
    validation.probability("answering", answering)
    validation.flag("literal", literal)
    carried = perfect() if transport is None else transport
    protocol = _Protocol(
        key,
        encoding,
        None if largest_weight is None else float(largest_weight),
        neighbours,
        threshold,
        answering,
        without_memory("transport", carried),
        bool(literal),
    )
    fused = not literal and transport is None
    return SecureAggregation(
        _sending_end(protocol, clients),
        _receiving_end(protocol),
        _fused(protocol, clients) if fused else _joined(protocol, clients),
        encoding,
    )


def _sending_end(protocol: _Protocol, clients: int) -> Channel:
    """Encodes, masks, sends, and finds whether the masks will come off."""

    def apply(
        messages: Messages, weights: Float[Array, " m"], state: tuple[()], sending: Sending
    ) -> tuple[Messages, Float[Array, " m"], tuple[()], Metrics]:
        _require_numbers(messages)
        _require_rows(messages, clients)
        sends = (weights > 0) & finite_rows(messages)
        participates = weights > 0 if sending.invited is None else sending.invited
        shares = _shares(protocol, weights)
        clean = select(sends, messages, jax.tree.map(jnp.zeros_like, messages))
        words = jax.tree.map(
            lambda leaf: protocol.encoding.encode(_scaled(leaf, against(shares, leaf))), clean
        )
        outside = [protocol.encoding.outside(leaf) for leaf in jax.tree.leaves(clean)]
        clipped = sum(outside, jnp.float32(0))
        round_key = jax.random.fold_in(protocol.key, sending.index)
        around = _ring(protocol, round_key, participates)
        if protocol.literal:
            words = masked(jax.random.fold_in(round_key, OF_MASKS), around, words)
            words = jax.tree.map(protocol.encoding.wrapped, words)
            words = select(sends, words, jax.tree.map(jnp.zeros_like, words))
        carry_key, answer_key = jax.random.split(sending.key)
        words, weights, _, metrics = sent_through(
            protocol.transport,
            words,
            jnp.where(sends, weights, 0),
            (),
            sending._replace(key=carry_key),
        )
        arrived = weights > 0
        off, told = _concluded(
            protocol, around, participates, sends, arrived, answer_key, numbers(_one(messages))
        )
        told["numbers_clipped"] = clipped
        told |= _weights_clipped(protocol, arrived, weights)
        return words, jnp.where(off, weights, 0), state, {**metrics, **told}

    return Channel(lambda message: (), apply)


def _receiving_end(protocol: _Protocol) -> Aggregator:
    """Adds up, takes the masks off, decodes to float32."""

    def apply(
        messages: Message, weights: Float[Array, " m"], state: tuple[()], combining: Combining
    ) -> tuple[Message, tuple[()], Metrics]:
        for leaf in jax.tree.leaves(messages):
            if leaf.dtype != jnp.uint32:
                raise TypeError(
                    "messages must be the uint32 words that the channel of the same secure_aggregation "
                    f"makes, got {leaf.dtype}. Give the method both: channel= and aggregator=."
                )
        arrived = weights > 0

        def term(words: Message, there: Array) -> Message:
            return jax.tree.map(lambda leaf: jnp.where(there, leaf, jnp.uint32(0)), words)

        total = sum_clients(term, messages, arrived)
        if protocol.literal:
            participates = arrived if combining.invited is None else combining.invited
            round_key = jax.random.fold_in(protocol.key, combining.index)
            around = _ring(protocol, round_key, participates)
            off = unmasking(jax.random.fold_in(round_key, OF_MASKS), around, arrived, messages)
            total = jax.tree.map(jnp.subtract, total, off)
        like = jax.tree.map(lambda leaf: jnp.zeros((), jnp.float32), total)
        return _mean(protocol, total, weights, like), state, {}

    return Aggregator(lambda message: (), apply)


def _joined(protocol: _Protocol, clients: int) -> Aggregator:
    """Both ends, one after the other."""
    sending_end, receiving_end = _sending_end(protocol, clients), _receiving_end(protocol)

    def apply(
        messages: Message, weights: Float[Array, " m"], state: tuple[()], combining: Combining
    ) -> tuple[Message, tuple[()], Metrics]:
        participates = weights > 0
        sending = Sending(
            combining.key, combining.index, combining.senders, combining.clients, participates
        )
        words, weights, _, metrics = sending_end.apply(messages, weights, (), sending)
        here = combining._replace(invited=participates)
        made, _, _ = receiving_end.apply(words, weights, (), here)
        made = jax.tree.map(lambda one, leaf: one.astype(leaf.dtype), made, messages)
        return made, state, metrics

    return Aggregator(lambda message: (), apply)


def _fused(protocol: _Protocol, clients: int) -> Aggregator:
    """Both ends without an array of words: the same result, for a transport that loses nothing."""
    encoding = protocol.encoding

    def apply(
        messages: Message, weights: Float[Array, " m"], state: tuple[()], combining: Combining
    ) -> tuple[Message, tuple[()], Metrics]:
        _require_numbers(messages)
        _require_rows(messages, clients)
        participates = weights > 0
        sends = participates & finite_rows(messages)

        def term(message: Message, share: Array, there: Array) -> tuple[Message, Array]:
            clean = jax.tree.map(lambda leaf: jnp.where(there, leaf, 0), message)
            words = jax.tree.map(lambda leaf: encoding.encode(_scaled(leaf, share)), clean)
            outside = [encoding.outside(leaf) for leaf in jax.tree.leaves(clean)]
            return words, sum(outside, jnp.float32(0))

        total, clipped = sum_clients(term, messages, _shares(protocol, weights), sends)
        round_key = jax.random.fold_in(protocol.key, combining.index)
        around = _ring(protocol, round_key, participates)
        answer_key = jax.random.split(combining.key)[1]
        off, told = _concluded(
            protocol, around, participates, sends, sends, answer_key, numbers(_one(messages))
        )
        told["numbers_clipped"] = clipped
        weights = jnp.where(sends, weights, 0)
        told |= _weights_clipped(protocol, sends, weights)
        counted = jnp.where(off, weights, 0)
        kept = jax.tree.map(lambda leaf: jnp.where(off, leaf, jnp.uint32(0)), total)
        return _mean(protocol, kept, counted, messages), state, told

    return Aggregator(lambda message: (), apply)


def _concluded(
    protocol: _Protocol,
    around: Ring,
    participates: Bool[Array, " m"],
    sends: Bool[Array, " m"],
    arrived: Bool[Array, " m"],
    key: Key[Array, ""],
    size: int,
) -> tuple[Bool[Array, ""], Metrics]:
    """Whether the masks come off, and what travelled."""
    answer = arrived & jax.random.bernoulli(key, protocol.answering, arrived.shape)
    off = removable(around, arrived, answer, protocol.threshold)
    size += protocol.largest_weight is not None
    each = message_bytes(
        size,
        around.neighbours_among(participates),
        modulus_bits=protocol.encoding.modulus_bits,
    )
    begun = jnp.where(participates, each.keys_sent + each.shares_sent, 0)
    sent = begun + jnp.where(sends, each.vector, 0) + jnp.where(answer, each.answer, 0)
    received = jnp.where(participates, each.keys_received + each.shares_received, 0)
    return off, {
        "rounds_dropped": (~off & jnp.any(participates)).astype(jnp.float32),
        "messages_dropped": jnp.sum(participates & ~sends).astype(jnp.float32),
        "bytes_sent": jnp.sum(sent),
        "bytes_received": jnp.sum(received),
    }


def _mean(
    protocol: _Protocol, total: Message, weights: Float[Array, " m"], like: Message
) -> Message:
    """The sum decoded and divided by the sum of the weights; 0 where that is 0."""
    encoding = protocol.encoding
    if protocol.largest_weight is None:
        count = jnp.sum(weights > 0).astype(jnp.float32)
    else:
        shares = jnp.where(weights > 0, _shares(protocol, weights), 0)
        count = jnp.sum(jnp.round(shares * 2.0**encoding.scale_bits)) * 2.0**-encoding.scale_bits
    divisor = jnp.where(count > 0, count, 1)

    def decoded(words: Array, leaf: Array) -> Array:
        wide = jnp.promote_types(leaf.dtype, jnp.float32)
        mean = encoding.decode(encoding.wrapped(words), wide) / divisor.astype(wide)
        return jnp.where(count > 0, mean, 0).astype(leaf.dtype)

    return jax.tree.map(decoded, total, like)


def _ring(protocol: _Protocol, round_key: Key[Array, ""], participates: Bool[Array, " m"]) -> Ring:
    return ring(jax.random.fold_in(round_key, OF_NEIGHBOURS), participates, protocol.neighbours)


def _shares(protocol: _Protocol, weights: Float[Array, " m"]) -> Float[Array, " m"]:
    """`w_i / W`, at most 1."""
    if protocol.largest_weight is None:
        return jnp.ones(weights.shape, jnp.float32)
    wide = weights.astype(jnp.promote_types(weights.dtype, jnp.float32))
    return jnp.minimum(wide / protocol.largest_weight, 1)


def _scaled(leaf: Array, share: Array) -> Array:
    wide = leaf.astype(jnp.promote_types(leaf.dtype, jnp.float32))
    return wide * share.astype(wide.dtype)


def _weights_clipped(
    protocol: _Protocol, there: Bool[Array, " m"], weights: Float[Array, " m"]
) -> Metrics:
    if protocol.largest_weight is None:
        return {}
    heavy = there & (weights > protocol.largest_weight)
    return {"weights_clipped": jnp.sum(heavy).astype(jnp.float32)}


def _one(messages: Message) -> Message:
    return jax.eval_shape(lambda tree: jax.tree.map(lambda leaf: leaf[0], tree), messages)


def _require_numbers(messages: Message) -> None:
    for path, leaf in jax.tree_util.tree_leaves_with_path(messages):
        if not jnp.issubdtype(leaf.dtype, jnp.floating):
            raise TypeError(
                f"messages{jax.tree_util.keystr(path)} must hold real numbers, got {leaf.dtype}."
            )


def _require_rows(messages: Message, clients: int) -> None:
    """Refuses more rows than the modulus was chosen for."""
    rows = validation.leading_axis("messages", messages)
    if rows > clients:
        raise ValueError(
            f"clients must be at least the {rows} messages of a round, for which the modulus is chosen, "
            f"got {clients}."
        )
