"""A replica that serves requests by continuous batching, event by event."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from dflax import validation
from dflax.algorithm import Algorithm, Metrics
from dflax.inference.batching.policies import Batching, prefill_first
from dflax.inference.batching.slots import NEVER, Slots, empty_slots
from dflax.inference.batching.table import Table, table
from dflax.inference.costs import Costs
from dflax.inference.requests import Requests
from dflax.inference.service import Levels, Served, levels, service

# Deviations of a queue at capacity beyond which what waits at the end counts as growing.
DEVIATIONS = 4.0


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


class Replica(NamedTuple):
    """One instance with slots, from `replica`.

    Attributes:
      init: `() -> Running`, with empty slots.
      serve: `(running, requests [n]) -> (running, Block)`.
    """

    init: Callable[[], Running]
    serve: Callable[[Running, Requests], tuple[Running, Block]]


def replica(
    costs: Costs,
    *,
    slots: int,
    batching: Batching | None = None,
    memory: float | Float[Array, ""] | None = None,
    block: int = 16,
    reuse: float | Float[Array, ""] = 0.0,
    drain: bool = True,
) -> Replica:
    """An instance whose requests join and leave the batch between two iterations, first come first.

    Time goes from event to event: an iteration is affine in the total context C, which grows by the
    batch B with each, so k of them take

        k decode(B, C) + (k (k - 1) / 2) (decode(B, C + B) - decode(B, C))

    until a request ends, or one comes that can be admitted. A request holds memory for its prompt and
    its whole answer from its admission on, so nobody is preempted; who needs more than there is at all
    is refused.

    Args:
      costs: of prefill and decoding; `decode` is affine in the context at each batch.
      slots: b >= 1, requests that decode at the same time.
      batching: `prefill_first()` (default), `chunked_prefill()` or `decode_only()`.
      memory: tokens of keys and values for which there is room, > 0; traceable; default as many as come.
      block: tokens in whose multiples memory is held, >= 1.
      reuse: share in [0, 1] of the shared tokens whose keys and values are there already; traceable.
      drain: whether a block begins with empty slots and is served to its end. Else a block begins
        where the one before it had its last arrival, and ends when its last request has its first
        token: who decodes then goes on in the next block, and counts there.

    Raises:
      TypeError, ValueError: naming the argument.

    References:
      Yu et al., Orca, OSDI 2022; Kwon et al., arXiv 2309.06180; Agrawal et al., arXiv 2403.02310;
      Zhong et al., DistServe, arXiv 2401.09670.
    """
    _check(costs, slots, batching, memory, block, reuse, drain)
    how = batching or prefill_first()
    room = jnp.inf if memory is None else memory
    advance = how.advance(costs, slots, room)

    def init() -> Running:
        return _nobody(slots)

    def serve(state: Running, requests: Requests) -> tuple[Running, Block]:
        validation.instance("requests", requests, Requests)
        known = table(requests, room, block, reuse, how.ahead)
        began = _resumed(state, block, known.rows.dtype)
        total = known.place[-1] + 1

        def one(now: Slots, _: None) -> tuple[Slots, Events]:
            decoded, after = advance(known.rows, now)
            if not drain:
                over = now.begun >= total
                after = jax.tree.map(lambda new, old: jnp.where(over, old, new), after, now)
                decoded = jnp.where(over, now.clock, decoded)
            batch = jnp.sum(after.running)
            return after, Events(after.begun, after.iterations, decoded, after.clock, batch)

        events = how.events * len(known.place) + slots + 1
        ended, seen = jax.lax.scan(one, began, None, length=events)
        done, finish = _read(requests, state, known, seen, how.immediate)
        done = done._replace(mean_batch=_mean_batch(began, seen), finished=ended.begun >= total)
        if drain:
            return _nobody(slots), done
        return _left(done, finish, ended, requests.arrived[-1]), done

    return Replica(init, serve)


def continuous_batching(served_by: Replica, *, promised: Levels | None = None) -> Algorithm:
    """The system of one replica. Several are a `jax.vmap` over rounds, designs a sweep.

    Args:
      served_by: from `replica`.
      promised: service levels; default none.

    Returns:
      An `Algorithm` with `init(key, params=None)`; a round is `(Requests, key)`, n requests whose times
      count from the block's beginning. Clocks are float32: at 10^4 s they resolve 1 ms. Metrics are
      those of `service`, over requests that ended in the block or were refused, and how many were
      `refused`; `backlog`, requests that had not begun at the last arrival; `unbounded`, whether that
      is more than b + 4 sqrt(n): a queue at capacity wanders by sqrt(n), above it grows with n;
      `mean_batch`, requests that decode in an iteration; `finished`, whether all events fitted.

    Raises:
      TypeError: naming the argument.
    """
    validation.instance("served_by", served_by, Replica, "Make it with dflax.inference.replica.")
    promises = levels() if promised is None else promised
    validation.instance("promised", promises, Levels, "Make it with dflax.inference.levels.")

    def init(key: Key[Array, ""], params: Any = None) -> Running:
        validation.typed_key("key", key)
        return served_by.init()

    def step(state: Running, round: tuple[Requests, Key[Array, ""]]) -> tuple[Running, Metrics]:
        requests, _ = round
        state, done = served_by.serve(state, requests)
        metrics = service(done.requests, done.served, promises, counted=done.counted)
        late = (done.joined > requests.arrived[-1]) & ~done.refused
        backlog = jnp.sum(late)
        most = len(state.finish) + DEVIATIONS * len(late) ** 0.5
        return state, metrics | {
            "refused": jnp.sum(done.refused),
            "backlog": backlog,
            "unbounded": backlog > most,
            "mean_batch": done.mean_batch,
            "finished": done.finished,
        }

    return Algorithm(init, step)


def _read(
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


def _mean_batch(began: Slots, seen: Events) -> Float[Array, ""]:
    batch = jnp.concatenate([jnp.sum(began.running)[None], seen.batch[:-1]])
    done = jnp.diff(seen.iterations, prepend=0).astype(seen.decoded.dtype)
    return jnp.sum(done * batch) / jnp.maximum(jnp.sum(done), 1.0)


def _nobody(slots: int) -> Running:
    zeros = jnp.zeros(slots, jnp.int32)
    requests = Requests(jnp.zeros(slots), zeros, zeros, zeros, zeros - 1, zeros)
    return Running(jnp.zeros(()), requests, jnp.zeros(slots), jnp.full(slots, NEVER, jnp.int32))


def _resumed(state: Running, block: int, dtype: jnp.dtype) -> Slots:
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


def _left(done: Block, finish: Int[Array, " m"], ended: Slots, begins: Float[Array, ""]) -> Running:
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


def _check(
    costs: Any, slots: Any, batching: Any, memory: Any, block: Any, reuse: Any, drain: Any
) -> None:
    validation.instance("costs", costs, Costs, "For example dflax.inference.opt_13b_costs().")
    validation.integer("slots", slots, low=1)
    if batching is not None:
        fix = "For example dflax.inference.prefill_first()."
        validation.instance("batching", batching, Batching, fix)
    if memory is not None:
        validation.real("memory", memory, low=0.0, low_open=True, scalar=True)
    validation.integer("block", block, low=1)
    validation.probability("reuse", reuse)
    validation.flag("drain", drain)
