"""Decoding as slots that are held, behind links that carry keys and values."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, UInt32

from dflax import counter

Real = float | Float[Array, ""]


class DecodeState(NamedTuple):
    """What decoding carries from block to block.

    Attributes:
      free: `[instances, slots]` s, when each slot is free; infinity where it is off.
      link: `[instances]` s, when each instance's link is free.
    """

    free: Float[Array, "instances slots"]
    link: Float[Array, " instances"]


class Decoded(NamedTuple):
    """What decoding did with a request; all infinite for one that never came.

    Attributes:
      instance: `[]` int32.
      sent: s, when its transfer began.
      began: s, when its keys and values were there.
      last: s, when its last token was.
    """

    instance: Int[Array, "..."]
    sent: Float[Array, "..."]
    began: Float[Array, "..."]
    last: Float[Array, "..."]


class Wire(NamedTuple):
    """How transfers get in each other's way.

    Attributes:
      contended: whether those to the same instance follow one another.
      conflict: v >= 0: a transfer takes 1 + Exp(v for each other that is under way) as long.
    """

    contended: bool
    conflict: Real


def admit(
    state: DecodeState,
    wire: Wire,
    asked: Float[Array, ""],
    transfer: Float[Array, ""],
    decode: Float[Array, ""],
    bits: UInt32[Array, ""],
    allowed: Bool[Array, " instances"],
) -> tuple[DecodeState, Decoded]:
    """The instance that can begin first takes the request: its slot is held from the transfer on.

    Args:
      state: see `DecodeState`.
      wire: see `Wire`.
      asked: s, when the prefill has ended; infinity: it never came, and nothing happens.
      transfer: s that its keys and values travel alone.
      decode: s that a slot decodes it.
      bits: random bits of the request.
      allowed: instances that it may go to.
    """
    opens = jnp.where(allowed, jnp.min(state.free, axis=1), jnp.inf)
    begins = jnp.maximum(asked, opens)
    if wire.contended:
        begins = jnp.maximum(begins, state.link)
    chosen = jnp.argmin(begins)
    sent = begins[chosen]
    others = jnp.sum(state.link > sent)
    uniform = counter.uniform(bits)
    slower = 1.0 - jnp.log1p(-uniform) * wire.conflict * others
    began = sent + transfer * slower
    last = began + decode
    came = jnp.isfinite(sent)
    # Written as masks, which many runs side by side do faster than scatters.
    here = came & (jnp.arange(len(begins)) == chosen)
    slot = jnp.arange(state.free.shape[1]) == jnp.argmin(state.free[chosen])
    free = jnp.where(here[:, None] & slot, last, state.free)
    link = jnp.where(here, jnp.maximum(began, state.link), state.link)
    return (
        DecodeState(free, link),
        Decoded(chosen.astype(jnp.int32), sent, began, last),
    )


def decoded_in_order(
    state: DecodeState,
    wire: Wire,
    asked: Float[Array, " n"],
    transfer: Float[Array, " n"],
    decode: Float[Array, " n"],
    bits: UInt32[Array, " n"],
    allowed: Bool[Array, "n instances"],
) -> tuple[DecodeState, Decoded]:
    """Admits requests in the order in which their prefills end; see `admit`."""

    def one(state: DecodeState, came: tuple) -> tuple[DecodeState, Decoded]:
        return admit(state, wire, *came)

    return jax.lax.scan(one, state, (asked, transfer, decode, bits, allowed))


def random_bits(key: Array, n: int) -> UInt32[Array, " n"]:
    """Bits for the transfers of a block, other than those that forwarding draws from its key."""
    return counter.bits(jax.random.fold_in(key, 1), n)
