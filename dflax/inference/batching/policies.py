"""Who gets an iteration: prompts before answers, chunks of prompts beside answers, or answers alone."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from dflax import validation
from dflax.inference.batching.slots import (
    NEVER,
    Slots,
    growth,
    iterated,
    reached,
    reaching,
    seated,
    together,
)
from dflax.inference.batching.table import ARRIVED, COMPUTED, HELD
from dflax.inference.costs import Costs

Rows = Float[Array, "m 5"]


class Batching(NamedTuple):
    """How a replica spends its time; each call of `advance` is one event.

    Attributes:
      advance: `(costs, slots, memory) -> (rows, replica) -> (time after decoding, replica)`. An event
        ends with the end of a request or with the first token of one, or both.
      events: events that a request causes at most.
      ahead: rows that it looks at beyond the head of the queue.
      immediate: whether first tokens come with the request.
    """

    advance: Callable[..., Callable[[Rows, Slots], tuple[Float[Array, ""], Slots]]]
    events: int
    ahead: int
    immediate: bool = False


def prefill_first(*, tokens: int = 4096, requests: int = 16) -> Batching:
    """Prompts come first, whole, and decoding waits for them, as in vLLM's first scheduler.

    After every iteration those who wait are admitted in the order of their arrival, as long as there
    are slots and memory, up to `tokens` tokens in one batch; the first is admitted however long it is.
    The batch takes `prefill(sum l, sum l^2)` and gives each its first token.

    Args:
      tokens: of the prompts of one batch, >= 1.
      requests: prompts of one batch, >= 1.

    Raises:
      TypeError, ValueError: naming the argument.

    References:
      Kwon et al., Efficient Memory Management for Large Language Model Serving with PagedAttention,
      arXiv 2309.06180.
    """
    validation.integer("tokens", tokens, low=1)
    validation.integer("requests", requests, low=1)

    def prefill(costs: Costs, rows: Rows, counted: Array) -> Float[Array, ""]:
        length = jnp.where(counted, rows[:, COMPUTED], 0.0)
        return costs.prefill(jnp.sum(length), jnp.sum(jnp.square(length)))

    return _in_turns(prefill, tokens, requests, immediate=False)


def decode_only(*, requests: int = 16) -> Batching:
    """Prompts were computed elsewhere: requests arrive with their keys, values and first token.

    Args:
      requests: who join between two iterations at most, >= 1.

    Raises:
      TypeError, ValueError: naming the argument.
    """
    validation.integer("requests", requests, low=1)

    def nothing(costs: Costs, rows: Rows, counted: Array) -> Float[Array, ""]:
        return jnp.zeros((), rows.dtype)

    return _in_turns(nothing, validation.LARGEST_COUNT, requests, immediate=True)


def chunked_prefill(*, tokens: int = 512) -> Batching:
    """Every iteration has room for `tokens` tokens, which running requests and one prompt share.

    With B running requests, an iteration takes `tokens - B` of the prompt at the head of the queue,
    or what is left of it; the next prompt begins with the next iteration:

        time = decode(B, C) + prefill(p, (l + p)^2 - l^2) - prefill(0, 0)    l tokens done, p new ones

    The constant part of a prefill, weights that are read, is not paid twice; without running requests
    it is paid once.

    Args:
      tokens: of an iteration, more than the replica's slots.

    Raises:
      TypeError, ValueError: naming the argument.

    References:
      Agrawal et al., Taming Throughput-Latency Tradeoff in LLM Inference with Sarathi-Serve,
      arXiv 2403.02310.
    """
    validation.integer("tokens", tokens, low=2)

    def advance(costs: Costs, slots: int, memory: Float[Array, ""]) -> Callable:
        if slots >= tokens:
            raise ValueError(f"tokens must be more than the {slots} slots, got {tokens}.")

        def event(rows: Rows, replica: Slots) -> tuple[Float[Array, ""], Slots]:
            kind = rows.dtype
            batch = jnp.sum(replica.running).astype(kind)
            filling, length, done, row = replica.filling
            first, more = growth(costs, batch, replica.context)
            first, more = (jnp.where(batch > 0, x, 0.0) for x in (first, more))
            # All iterations but the last take a whole chunk, and the last takes the rest.
            chunk = tokens - batch
            needed = jnp.ceil((length - done) / chunk).astype(jnp.int32)
            until_done = replica.until_done()
            gap = rows[replica.head, ARRIVED] - replica.clock
            may_begin = (batch < slots) & (rows[replica.head, HELD] <= memory - replica.used)
            arrival = jnp.where(may_begin & (batch > 0), reaching(gap, first, more), NEVER)
            stop = jnp.where(filling > 0, needed, arrival)
            count = jnp.where((batch > 0) | (filling > 0), jnp.minimum(until_done, stop), 0)
            k = count.astype(kind)
            computed = filling * jnp.minimum(k * chunk, length - done)
            whole = filling * jnp.floor(computed / chunk)
            rest = computed - whole * chunk
            seconds = (
                together(k, first, more)
                + whole * _per_chunk(costs, batch, chunk)
                + jnp.where(rest > 0, _per_chunk(costs, batch, rest), 0.0)
                + _squares(costs, jnp.square(done + computed) - jnp.square(done))
            )
            came = may_begin & (filling == 0) & ((batch == 0) | (arrival <= until_done))
            replica = reached(iterated(replica, count, seconds), rows[replica.head, ARRIVED], came)
            # Who has its whole prompt has its first token, and decodes from the next iteration on.
            complete = (filling > 0) & (done + computed >= length)
            own = jax.lax.dynamic_slice_in_dim(rows, row.astype(jnp.int32), 1)
            replica = seated(replica, own, complete.astype(jnp.int32))
            replica = replica._replace(begun=replica.begun + complete)
            busy = (filling > 0) & ~complete
            # The head of the queue takes the empty place.
            head = rows[replica.head]
            begins = ~busy & (jnp.sum(replica.running) < slots)
            begins &= (head[HELD] <= memory - replica.used) & (head[ARRIVED] <= replica.clock)
            kept = jnp.stack([busy.astype(kind), length, done + computed, row])
            new = jnp.stack([jnp.ones((), kind), head[COMPUTED], 0.0, replica.head.astype(kind)])
            replica = replica._replace(
                head=replica.head + begins, filling=jnp.where(begins, new, kept)
            )
            return replica.clock, replica

        return event

    return Batching(advance, events=3, ahead=1)


def _per_chunk(costs: Costs, batch: Float[Array, ""], tokens: Float[Array, ""]) -> Float[Array, ""]:
    """Time of one chunk without its squares."""
    zero = jnp.zeros_like(tokens)
    return costs.prefill(tokens, zero) - jnp.where(batch > 0, costs.prefill(zero, zero), 0.0)


def _squares(costs: Costs, squares: Float[Array, ""]) -> Float[Array, ""]:
    """Time of attention over a prompt's earlier tokens, in which a prefill is linear."""
    zero = jnp.zeros_like(squares)
    return costs.prefill(zero, squares) - costs.prefill(zero, zero)


def _in_turns(
    prefill: Callable[[Costs, Rows, Array], Float[Array, ""]],
    tokens: int,
    requests: int,
    *,
    immediate: bool,
) -> Batching:
    """Iterations of decoding until somebody ends or can be admitted, then a batch of prompts."""

    def advance(costs: Costs, slots: int, memory: Float[Array, ""]) -> Callable:
        ahead = min(requests, slots)

        def event(rows: Rows, replica: Slots) -> tuple[Float[Array, ""], Slots]:
            batch = jnp.sum(replica.running)
            head = rows[replica.head]
            gap = head[ARRIVED] - replica.clock
            first, more = growth(costs, batch.astype(rows.dtype), replica.context)
            fits = (batch < slots) & (head[HELD] <= memory - replica.used)
            arrival = jnp.where(fits, reaching(gap, first, more), NEVER)
            count = jnp.where(batch > 0, jnp.minimum(replica.until_done(), arrival), 0)
            seconds = together(count.astype(rows.dtype), first, more)
            came = fits & ((batch == 0) | (arrival <= replica.until_done()))
            replica = reached(iterated(replica, count, seconds), head[ARRIVED], came)
            decoded = replica.clock
            window = jax.lax.dynamic_slice_in_dim(rows, replica.head, ahead)
            counted = _admitted(window, replica, slots, memory, tokens)
            many = jnp.sum(counted, dtype=jnp.int32)
            spent = jnp.where(many > 0, prefill(costs, window, counted), 0.0)
            replica = seated(replica, window, many)
            replica = replica._replace(
                clock=decoded + spent, head=replica.head + many, begun=replica.begun + many
            )
            return decoded, replica

        return event

    return Batching(advance, events=2, ahead=requests, immediate=immediate)


def _admitted(
    window: Rows, replica: Slots, slots: int, memory: Float[Array, ""], tokens: int
) -> Array:
    """Which of the first in the queue are admitted: all before the first who is not."""
    order = jnp.arange(len(window))
    sums = jnp.cumsum(window[:, COMPUTED : HELD + 1], axis=0)
    prompts, held = sums[:, 0], sums[:, HELD - COMPUTED]
    empty: Int[Array, ""] = slots - jnp.sum(replica.running)
    return (
        (window[:, ARRIVED] <= replica.clock)
        & (order < empty)
        & (held <= memory - replica.used)
        & ((prompts <= tokens) | (order == 0))
    )
