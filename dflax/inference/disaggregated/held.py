"""Prefill slots that are held until the keys and values have left them: prefill and decoding as one."""

from typing import NamedTuple, TypeVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, UInt32

from dflax.inference.disaggregated.decoding import Decoded, DecodeState, Wire, admit
from dflax.inference.disaggregated.forwarding import Forwarding
from dflax.inference.requests import Requests
from dflax.inference.stations import Memory, Placement, Work

Real = float | Float[Array, ""]
Rows = TypeVar("Rows", Placement, Decoded)


class _Carry(NamedTuple):
    free: Float[Array, "instances slots"]
    done: Float[Array, "instances slots"]
    row: Int[Array, "instances slots"]
    work: Memory
    decode: DecodeState
    coming: Int[Array, ""]


def held(
    free: Float[Array, "instances slots"],
    memory: Memory,
    decode: DecodeState,
    requests: Requests,
    work: Work,
    forwarding: Forwarding,
    limit: Real,
    wire: Wire,
    transfer: Float[Array, "n"],
    answer: Float[Array, "n"],
    bits: UInt32[Array, "n"],
) -> tuple[Float[Array, "instances slots"], Memory, DecodeState, Placement, Decoded]:
    """Serves a block, first come first served, where a slot waits for its request's transfer.

    An event is the begin of a prefill (or that its request gives up), or the admission to decoding
    of the request whose prefill ended first: 2 n events in the order of their times.

    Args:
      free: s, when each slot of prefill is free; infinity where it is off.
      memory: of the work.
      decode: see `DecodeState`.
      requests: `[n]`.
      work: how long prefill takes.
      forwarding: from `on_demand()`.
      limit: s from arrival to the end of the prefill.
      wire: see `Wire`.
      transfer: s that keys and values travel alone.
      answer: s that decoding takes.
      bits: random bits.

    Returns:
      Slots of prefill, the work's memory, decoding's state, `Placement` and `Decoded` `[n]`.
    """
    n = len(requests.arrived)
    everywhere = jnp.ones(decode.link.shape, bool)

    def event(carry: _Carry, _: None) -> tuple[_Carry, tuple]:
        row_next = jnp.minimum(carry.coming, n - 1)
        opens = jnp.min(carry.free, axis=1)
        chosen = jnp.argmin(jnp.maximum(opens, requests.arrived[row_next]))
        begins = jnp.maximum(requests.arrived[row_next], opens[chosen])
        begins = jnp.where(carry.coming < n, begins, jnp.inf)
        at = jnp.unravel_index(jnp.argmin(carry.done), carry.done.shape)
        asked, leaving = carry.done[at], jnp.maximum(carry.row[at], 0)
        moved, decoded = admit(
            carry.decode, wire, asked, transfer[leaving], answer[leaving], bits[leaving], everywhere
        )
        # Decoding that never has a slot, and no request that could come before: nothing happens.
        leaves = (decoded.sent <= begins) & jnp.isfinite(decoded.sent)
        starts = ~leaves & jnp.isfinite(begins)

        body = jax.tree.map(lambda column: column[row_next], requests)
        durations = jnp.broadcast_to(work.durations(carry.work, body), (len(opens),))
        waited = begins - requests.arrived[row_next]
        served = starts & forwarding.stays(waited, durations[chosen], limit)
        finish = begins + durations[chosen]
        placed = Placement(chosen.astype(jnp.int32), begins, finish, served)
        slot = (chosen, jnp.argmin(carry.free[chosen]))

        after = _Carry(
            _put(_put(carry.free, at, leaves, decoded.began), slot, served, jnp.inf),
            _put(_put(carry.done, at, leaves, jnp.inf), slot, served, finish),
            _put(carry.row, slot, served, row_next),
            work.done(carry.work, body, placed),
            jax.tree.map(lambda new, old: jnp.where(leaves, new, old), moved, carry.decode),
            carry.coming + starts,
        )
        rows = (jnp.where(starts, row_next, n), jnp.where(leaves, leaving, n))
        return after, (rows, placed, decoded)

    begun = _Carry(
        free,
        jnp.full(free.shape, jnp.inf),
        jnp.full(free.shape, -1, jnp.int32),
        memory,
        decode,
        jnp.zeros((), jnp.int32),
    )
    ended, ((starting, leaving), placements, admissions) = jax.lax.scan(event, begun, length=2 * n)
    never = jnp.full((n,), jnp.inf)
    placed = _dealt(
        Placement(jnp.zeros(n, jnp.int32), never, never, jnp.zeros(n, bool)), starting, placements
    )
    decoded = _dealt(Decoded(jnp.zeros(n, jnp.int32), never, never, never), leaving, admissions)
    return ended.free, ended.work, ended.decode, placed, decoded


def _put(array: Array, at: tuple, where: Bool[Array, ""], value: Array | float) -> Array:
    return array.at[at].set(jnp.where(where, value, array[at]).astype(array.dtype))


def _dealt(empty: Rows, rows: Int[Array, " events"], events: Rows) -> Rows:
    """What each event found, in its request's row."""
    return jax.tree.map(
        lambda column, found: column.at[rows].set(found, mode="drop"), empty, events
    )
