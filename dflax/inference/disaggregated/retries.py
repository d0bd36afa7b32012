"""A gateway that offers waiting requests again and again, exactly, two events a request."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from dflax.inference.disaggregated.forwarding import Forwarding
from dflax.inference.requests import Requests
from dflax.inference.stations import Memory, Placement, Work

Real = float | Float[Array, ""]


class Gateway(NamedTuple):
    """Who waits.

    Attributes:
      row: `[waiting]` int32 their rows, -1 for nobody.
      since: `[waiting]` s, when they came; infinity for nobody.
    """

    row: Int[Array, " waiting"]
    since: Float[Array, " waiting"]


class _Carry(NamedTuple):
    free: Float[Array, "instances slots"]
    work: Memory
    gateway: Gateway
    coming: Int[Array, ""]


def retried(
    free: Float[Array, "instances slots"],
    memory: Memory,
    requests: Requests,
    work: Work,
    forwarding: Forwarding,
    limit: Real,
) -> tuple[Float[Array, "instances slots"], Memory, Placement]:
    """Serves a block whose requests are offered at a, a + tau, a + 2 tau, ... until a slot is free.

    Every event is the arrival of a request, or the first offer that meets a free slot, which is
    accepted or comes too late: 2 n events. Who still waits at the end of the block is offered on, with
    nobody coming behind.

    Args:
      free: s, when each slot is free; infinity where it is off.
      memory: of the work.
      requests: `[n]`.
      work: how long.
      forwarding: from `on_demand(retry=...)`.
      limit: s from arrival to the end of the prefill.

    Returns:
      Slots, the work's memory, and `Placement` `[n]`.
    """
    n = len(requests.arrived)
    retry = 1.0 if forwarding.retry is None else forwarding.retry
    nobody = Gateway(
        jnp.full((forwarding.waiting,), -1, jnp.int32), jnp.full((forwarding.waiting,), jnp.inf)
    )

    def event(carry: _Carry, _: None) -> tuple[_Carry, tuple[Array, Placement]]:
        opens = jnp.min(carry.free, axis=1)
        chosen = jnp.argmin(opens)
        first = opens[chosen]
        waits = carry.gateway.row >= 0
        since = jnp.where(waits, carry.gateway.since, 0.0)
        offers = jnp.ceil(jnp.maximum(first - since, 0.0) / retry)
        offered = jnp.where(waits, since + offers * retry, jnp.inf)
        place = jnp.argmin(offered)
        begins, row = offered[place], carry.gateway.row[place]
        next_row = jnp.minimum(carry.coming, n - 1)
        arrives = jnp.where(carry.coming < n, requests.arrived[next_row], jnp.inf)
        comes = arrives <= begins
        accepts = ~comes & (row >= 0)

        # A request comes: it waits, or leaves where the gateway is full.
        vacant = jnp.argmin(waits)
        has_room = ~waits[vacant]
        enters = comes & (carry.coming < n) & has_room
        full = comes & (carry.coming < n) & ~has_room
        # A request is offered to a slot that is free.
        of = jnp.where(full, next_row, jnp.maximum(row, 0))
        body = jax.tree.map(lambda column: column[of], requests)
        durations = jnp.broadcast_to(work.durations(carry.work, body), (len(opens),))
        waited = begins - since[place]
        served = accepts & forwarding.stays(waited, durations[chosen], limit)
        begins = jnp.where(full, arrives, begins)
        finish = begins + durations[chosen]
        placed = Placement(chosen.astype(jnp.int32), begins, finish, served)
        slot = jnp.argmin(carry.free[chosen])
        at = jnp.where(enters, vacant, place)
        row_then = jnp.where(enters, next_row, jnp.where(accepts, -1, row))
        since_then = jnp.where(enters, arrives, carry.gateway.since[place])
        since_then = jnp.where(accepts, jnp.inf, since_then)
        gateway = Gateway(
            carry.gateway.row.at[at].set(row_then.astype(jnp.int32)),
            carry.gateway.since.at[at].set(since_then),
        )
        after = _Carry(
            carry.free.at[chosen, slot].set(jnp.where(served, finish, carry.free[chosen, slot])),
            work.done(carry.work, body, placed),
            gateway,
            carry.coming + (enters | full),
        )
        return after, (jnp.where(accepts | full, of, n), placed)

    begun = _Carry(free, memory, nobody, jnp.zeros((), jnp.int32))
    ended, (rows, events) = jax.lax.scan(event, begun, length=2 * n)
    empty = Placement(
        jnp.zeros((n,), jnp.int32),
        jnp.full((n,), jnp.inf),
        jnp.full((n,), jnp.inf),
        jnp.zeros(n, bool),
    )
    placed = jax.tree.map(
        lambda column, found: column.at[rows].set(found, mode="drop"), empty, events
    )
    return ended.free, ended.work, placed
