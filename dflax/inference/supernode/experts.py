"""Experts on many ranks: slots, messages, buffers, and what a dispatch and a combine take."""

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float

from dflax import validation
from dflax.inference.supernode.numbers import Real, numbers

SCALE, ALIGNMENT = 4, 512
FEW, MANY = 8, 256


def spare_slots(ranks: int, slots: int, *, routed: int = 256, shared: int = 0) -> int:
    """Slots for experts that are left for replicas: ranks slots - shared - routed.

    Args:
      ranks: dies among which the experts are dealt, >= 1.
      slots: experts that each of them holds, >= 1.
      routed: experts that a router chooses from, >= 1.
      shared: copies of the experts that every token passes, >= 0.

    Raises:
      TypeError, ValueError: naming the argument; fewer slots than experts.
    """
    validation.integer("ranks", ranks, low=1)
    validation.integer("slots", slots, low=1)
    validation.integer("routed", routed, low=1)
    validation.integer("shared", shared, low=0)
    spare = ranks * slots - shared - routed
    if spare < 0:
        raise ValueError(
            f"slots must hold {shared + routed} experts on {ranks} ranks, got {ranks} times {slots}. "
            "Give each rank more of them, or take more ranks."
        )
    return spare


def dispatch_bytes(width: int, *, early_int8: bool = True) -> int:
    """B of one token's message to one expert.

    In INT8 a byte for each entry and a float32 scale, filled up to 512 B; else two bytes for each entry.

    Args:
      width: entries of a token, >= 1.
      early_int8: whether tokens are quantised before they are sent.

    Raises:
      TypeError, ValueError: naming the argument.
    """
    validation.integer("width", width, low=1)
    validation.flag("early_int8", early_int8)
    return -(-(width + SCALE) // ALIGNMENT) * ALIGNMENT if early_int8 else 2 * width


def buffer_bytes(
    ranks: int,
    tokens: int,
    *,
    width: int = 7168,
    active: int = 8,
    slots: int = 1,
    early_int8: bool = True,
) -> int:
    """B of a rank's buffers, allocated once for the largest batch.

        ranks T (dispatch + combine),    T = tokens min(active, slots)

    A combined row has two bytes for each entry.

    Args:
      ranks: >= 1.
      tokens: of one rank, at most, >= 1.
      width: entries of a token, >= 1.
      active: experts that a token is sent to, >= 1.
      slots: experts that a rank holds, >= 1.
      early_int8: see `dispatch_bytes`.

    Raises:
      TypeError, ValueError: naming the argument.
    """
    for name, value in (("ranks", ranks), ("tokens", tokens), ("active", active), ("slots", slots)):
        validation.integer(name, value, low=1)
    message = dispatch_bytes(width, early_int8=early_int8) + 2 * width
    return ranks * tokens * min(active, slots) * message


class Exchange(NamedTuple):
    """How long a dispatch or a combine takes. From `exchange`.

    Attributes:
      step: s for each doubling of the ranks beyond 8.
      bandwidth: B/s that a rank reaches among 8.
      bytes: B of one token's message to one expert.
    """

    step: Real
    bandwidth: Real
    bytes: Real


def exchange(few: Real, many: Real, bytes: Real, *, tokens: int = 128, active: int = 8) -> Exchange:
    """The exchange that takes `few` seconds among 8 ranks and `many` among 256.

    Two times fix two constants: the bandwidth, and what a doubling of the ranks adds.

    Args:
      few: s among 8 ranks, > 0; traceable.
      many: s among 256 ranks, > 0; traceable.
      bytes: B of one token's message to one expert, > 0; traceable.
      tokens: of each rank in both measurements, >= 1.
      active: experts that each token was sent to, >= 1.

    Raises:
      TypeError, ValueError: naming the argument.
    """
    few = numbers("few", few, low=0.0, low_open=True)
    many = numbers("many", many, low=0.0, low_open=True)
    bytes = numbers("bytes", bytes, low=0.0, low_open=True)
    validation.integer("tokens", tokens, low=1)
    validation.integer("active", active, low=1)
    doublings = jnp.log2(MANY / FEW)
    return Exchange((many - few) / doublings, tokens * active * bytes / few, bytes)


def exchange_time(
    exchange: Exchange, ranks: Real, tokens: Real, *, active: Real = 8.0
) -> Float[Array, "..."]:
    """Seconds: step log2(ranks / 8) + tokens active bytes / bandwidth; no step below 8 ranks.

    Args:
      exchange: see `Exchange`.
      ranks: >= 1; traceable.
      tokens: of each rank, >= 0; traceable.
      active: experts that each token is sent to, >= 0; traceable.

    Raises:
      TypeError, ValueError: naming the argument.
    """
    validation.instance("exchange", exchange, Exchange)
    ranks = numbers("ranks", ranks, low=1.0)
    tokens = numbers("tokens", tokens, low=0.0)
    active = numbers("active", active, low=0.0)
    steps = exchange.step * jnp.log2(jnp.maximum(ranks / FEW, 1.0))
    return jnp.asarray(steps + tokens * active * exchange.bytes / exchange.bandwidth)


class Exchanges(NamedTuple):
    """Both ways of the tokens.

    Attributes:
      dispatch: to the experts.
      combine: back.
    """

    dispatch: Exchange
    combine: Exchange


def cloudmatrix_exchanges() -> Exchanges:
    """What a CloudMatrix384 takes, with INT8 before the dispatch; fitted to two points each.

    References:
      Zuo et al., arXiv 2506.12708: 116 and 152 us for a dispatch, 118 and 149 us for a combine, among
      8 and 256 ranks of 128 tokens.
    """
    return Exchanges(exchange(116e-6, 152e-6, 7680.0), exchange(118e-6, 149e-6, 14336.0))


def deepep_exchanges() -> Exchanges:
    """What DeepEP takes on H800s, as the same paper gives it: FP8 before the dispatch.

    References:
      Zuo et al., arXiv 2506.12708: 163 and 194 us, 318 and 360 us.
    """
    return Exchanges(exchange(163e-6, 194e-6, 7680.0), exchange(318e-6, 360e-6, 14336.0))
