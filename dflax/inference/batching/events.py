"""What became of each request, read off the events of a block, and who goes on in the next one."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from dflax.inference.batching.slots import NEVER, Slots, empty_slots
from dflax.inference.batching.table import Table
from dflax.inference.requests import Requests
from dflax.inference.service import Served


class Running(NamedTuple):
    """Who decodes where a block ends, and goes on in the next one; all empty of a drained block.

    Attributes:
      clock: s from the next block's beginning, when the replica is free for it.
      requests: `[b]`, whose arrivals lie before 0.
      first: `[b]` s, when each had its first token.
      finish: `[b]`, iterations that are left of each; `NEVER`: the slot is empty.
    """

    clock: Float[Array, ""]
    requests: Requests
    first: Float[Array, " b"]
    finish: Int[Array, " b"]


class Events(NamedTuple):
    """What each event of a block ended with, `[e]`.

    Attributes:
      begun: rows that have their first token.
      iterations: of decoding so far.
      decoded: s, when the last of them ended.
      started: s, when those who are new had their first token.
      batch: requests that decode from then on.
    """

    begun: Int[Array, " e"]
    iterations: Int[Array, " e"]
    decoded: Float[Array, " e"]
    started: Float[Array, " e"]
    batch: Int[Array, " e"]


class Block(NamedTuple):
    """What became of a block: of the b requests carried into it, and after them of its own n.

    Attributes:
      requests: `[b + n]`.
      served: `[b + n]`.
      counted: `[b + n]`, who ended in the block, or was refused.
      refused: `[n]`, of its own, who need more memory than there is.
      joined: `[n]` s, when each of its own had its first token, or without prefill its slot.
      mean_batch: requests that decode in an iteration.
      finished: whether all events fitted into the scan; they do.
    """

    requests: Requests
    served: Served
    counted: Bool[Array, " m"]
    refused: Bool[Array, " n"]
    joined: Float[Array, " n"]
    mean_batch: Float[Array, ""]
    finished: Bool[Array, ""]


def read(
    requests: Requests, state: Running, known: Table, seen: Events, immediate: bool
) -> tuple[Block, Int[Array, " m"]]:
    """Reads each request's times off the events: rows begin in order, and end with an iteration.

    Beside the block, after which iteration each has all its tokens.
    """
    place = jnp.minimum(jnp.searchsorted(seen.begun, known.place + 1), len(seen.begun) - 1)
    joined = jnp.where(known.refused, jnp.inf, seen.started[place])
    first = jnp.where(known.refused, jnp.inf, requests.arrived) if immediate else joined
    finish = jnp.where(known.refused, NEVER, seen.iterations[place] + requests.output - 1)
    finish = jnp.concatenate([state.finish, finish])
    first = jnp.concatenate([state.first.astype(first.dtype), first])
    everyone = jax.tree.map(
        lambda old, new: jnp.concatenate([old.astype(new.dtype), new]), state.requests, requests
    )
    ended = finish <= seen.iterations[-1]
    end = jnp.minimum(jnp.searchsorted(seen.iterations, finish), len(seen.iterations) - 1)
    last = jnp.where(everyone.output == 1, first, seen.decoded[end])
    last = jnp.where(ended, last, jnp.inf)
    refused = jnp.concatenate([jnp.zeros(state.finish.shape, bool), known.refused])
    nothing = jnp.zeros((), first.dtype)
    counted = ended | refused
    done = Block(
        everyone, Served(first, last), counted, known.refused, joined, nothing, jnp.bool_(True)
    )
    return done, finish


def mean_batch(began: Slots, seen: Events) -> Float[Array, ""]:
    """Requests that decode in an iteration."""
    batch = jnp.concatenate([jnp.sum(began.running)[None], seen.batch[:-1]])
    done = jnp.diff(seen.iterations, prepend=0).astype(seen.decoded.dtype)
    return jnp.sum(done * batch) / jnp.maximum(jnp.sum(done), 1.0)


def nobody(slots: int) -> Running:
    """Empty slots."""
    zeros = jnp.zeros(slots, jnp.int32)
    requests = Requests(jnp.zeros(slots), zeros, zeros, zeros, zeros - 1, zeros)
    return Running(jnp.zeros(()), requests, jnp.zeros(slots), jnp.full(slots, NEVER, jnp.int32))


def resumed(state: Running, block: int, dtype: jnp.dtype) -> Slots:
    """The slots as they were left."""
    slots = empty_slots(len(state.finish), dtype)
    running = state.finish < NEVER
    size = state.requests.prompt + state.requests.output
    size, held = (x.astype(dtype) for x in (size, -(-size // block) * block))
    return slots._replace(
        clock=state.clock.astype(dtype),
        context=jnp.sum(jnp.where(running, size - state.finish, 0.0)),
        finish=state.finish,
        size=jnp.where(running, size, 0.0),
        held=jnp.where(running, held, 0.0),
    )


def left(done: Block, finish: Int[Array, " m"], ended: Slots, begins: Float[Array, ""]) -> Running:
    """Who still decodes, with times that count from the next block's beginning."""
    slots = len(ended.finish)
    going = (finish > ended.iterations) & (finish < NEVER)
    rows = jnp.nonzero(going, size=slots, fill_value=0)[0]
    some = jnp.arange(slots) < jnp.sum(going)
    kept = jax.tree.map(lambda column: jnp.where(some, column[rows], 0), done.requests)
    kept = kept._replace(arrived=(kept.arrived - begins).astype(jnp.float32))
    return Running(
        (ended.clock - begins).astype(jnp.float32),
        kept,
        (done.served.first[rows] - begins).astype(jnp.float32),
        jnp.where(some, finish[rows] - ended.iterations, NEVER),
    )
