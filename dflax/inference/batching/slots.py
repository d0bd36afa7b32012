"""The slots of a replica, and many iterations of decoding at once."""

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from dflax.inference.batching.table import HELD, OUTPUT, SIZE
from dflax.inference.costs import Costs

# Iterations after which an empty slot finishes.
NEVER = jnp.iinfo(jnp.int32).max
# More iterations than any answer has tokens.
MANY = 2.0**30
# Iterations apart of the two that an iteration's growth is read off: its difference is above rounding.
APART = 1024.0


class Slots(NamedTuple):
    """Where a replica stands between two events.

    Every running request gets one token an iteration, so when it ends is a number of iterations.

    Attributes:
      clock: s.
      head: `[]`, rows of the table that have left the queue.
      begun: `[]`, rows that have their first token.
      iterations: `[]`, of decoding so far.
      context: `[]`, tokens of all running requests.
      finish: `[b]`, after which iteration the request of a slot has all its tokens; `NEVER`: empty.
      size: `[b]`, tokens that it has then.
      held: `[b]`, tokens of memory that it holds.
      filling: `[4]` of the request that is prefilled in chunks: 1 or 0 for none, tokens to compute,
        those computed, its row.
    """

    clock: Float[Array, ""]
    head: Int[Array, ""]
    begun: Int[Array, ""]
    iterations: Int[Array, ""]
    context: Float[Array, ""]
    finish: Int[Array, " b"]
    size: Float[Array, " b"]
    held: Float[Array, " b"]
    filling: Float[Array, " 4"]

    @property
    def running(self) -> Bool[Array, " b"]:
        """Which slots decode."""
        return self.finish < NEVER

    @property
    def used(self) -> Float[Array, ""]:
        """Tokens of memory that are held."""
        return jnp.sum(self.held)

    def until_done(self) -> Int[Array, ""]:
        """Iterations to the next end of a request; many where nobody decodes."""
        return jnp.min(self.finish) - self.iterations


def empty_slots(slots: int, dtype: jnp.dtype) -> Slots:
    """Empty slots at time 0."""
    zero, none = jnp.zeros((), dtype), jnp.zeros((), jnp.int32)
    return Slots(
        zero,
        none,
        none,
        none,
        zero,
        jnp.full(slots, NEVER, jnp.int32),
        jnp.zeros(slots, dtype),
        jnp.zeros(slots, dtype),
        jnp.zeros(4, dtype),
    )


def growth(
    costs: Costs, batch: Float[Array, ""], context: Float[Array, ""]
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """The next iteration's time, and by how much each one after it takes longer."""
    first = costs.decode(batch, context)
    later = costs.decode(batch, context + APART * batch)
    return first, (later - first) / APART


def together(
    iterations: Float[Array, ""], first: Float[Array, ""], more: Float[Array, ""]
) -> Float[Array, ""]:
    """Time of k iterations that take f, f + g, f + 2 g, ...: `k f + g k (k - 1) / 2`."""
    return iterations * (first + 0.5 * more * (iterations - 1.0))


def reaching(
    seconds: Float[Array, ""], first: Float[Array, ""], more: Float[Array, ""]
) -> Int[Array, ""]:
    """The fewest iterations that take `seconds` or longer: 0 if `seconds <= 0`, many if infinite."""
    linear = first - 0.5 * more
    root = jnp.sqrt(jnp.square(linear) + 2.0 * more * jnp.maximum(seconds, 0.0))
    # The root of g k^2 / 2 + linear k = seconds in the form that does not cancel.
    count = jnp.ceil(2.0 * seconds / (linear + root))
    count = jnp.where(jnp.isfinite(seconds), jnp.clip(count, 1.0, MANY), MANY)
    return jnp.where(seconds > 0, count, 0.0).astype(jnp.int32)


def iterated(replica: Slots, count: Int[Array, ""], seconds: Float[Array, ""]) -> Slots:
    """So many iterations later: every running request has as many tokens more, and some have ended."""
    running = replica.running
    iterations = replica.iterations + count
    batch = jnp.sum(running)
    ended = running & (replica.finish <= iterations)
    gone = jnp.sum(jnp.where(ended, replica.size, 0.0))
    return replica._replace(
        clock=replica.clock + seconds,
        iterations=iterations,
        context=replica.context + (batch * count).astype(replica.context.dtype) - gone,
        finish=jnp.where(ended, NEVER, replica.finish),
        held=jnp.where(ended, 0.0, replica.held),
    )


def reached(replica: Slots, arrived: Float[Array, ""], came: Bool[Array, ""]) -> Slots:
    """Where an arrival was waited for, the clock is not before it, whatever rounding says."""
    later = jnp.where(came & jnp.isfinite(arrived), arrived, -jnp.inf)
    return replica._replace(clock=jnp.maximum(replica.clock, later))


def seated(replica: Slots, rows: Float[Array, "a 5"], count: Int[Array, ""]) -> Slots:
    """The first `count` of the rows, at most as many as slots are empty, begin to decode."""
    empty = ~replica.running
    rank = jnp.cumsum(empty, dtype=jnp.int32) - 1
    chosen = rows[jnp.clip(rank, 0, len(rows) - 1)]
    # Who wants one token alone has it already, and takes no slot.
    further = chosen[:, OUTPUT].astype(jnp.int32) - 1
    takes = empty & (rank < count) & (further > 0)
    return replica._replace(
        context=replica.context + jnp.sum(jnp.where(takes, chosen[:, SIZE] - further, 0.0)),
        finish=jnp.where(takes, replica.iterations + further, replica.finish),
        size=jnp.where(takes, chosen[:, SIZE], replica.size),
        held=jnp.where(takes, chosen[:, HELD], replica.held),
    )
