"""Which prefill instance gets a request, and when the gateway gives up."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from dflax import validation
from dflax.inference.stations import Memory, Moment, Placement, Policy, first_free, ties


class Forwarding(NamedTuple):
    """How requests get to prefill. From `on_demand` or `local_queue`.

    Attributes:
      policy: which instance.
      stays: `(wait [], duration [], limit []) -> []` bool, whether it is served at all.
      retry: s between two offers of the gateway; None: it knows at once when a slot is free.
      waiting: requests that the gateway can keep, where it retries.
      on_demand: whether the gateway offers them, so that nobody waits at an instance.
    """

    policy: Policy
    stays: Callable[[Array, Array, Any], Bool[Array, ""]]
    retry: float | Float[Array, ""] | None
    waiting: int
    on_demand: bool


def on_demand(*, retry: float | Float[Array, ""] | None = None, waiting: int = 256) -> Forwarding:
    """The paper's: no queue at an instance; the gateway offers a request until a slot accepts it.

    Who could not meet the limit any more leaves, before any slot has worked for it. Without `retry`
    that is one queue for all slots, first come first served. With it a request is offered at a,
    a + tau, a + 2 tau, ..., and one that retries sooner may overtake.

    Args:
      retry: tau_r, s, > 0; traceable. None: 0.
      waiting: requests that the gateway keeps at most, >= 1, where it retries. Further ones leave.

    Raises:
      TypeError, ValueError: naming the argument.
    """
    if retry is not None:
        validation.real("retry", retry, low=0.0, low_open=True, scalar=True)
    validation.integer("waiting", waiting, low=1)
    return Forwarding(
        first_free(), lambda wait, duration, limit: wait + duration <= limit, retry, waiting, True
    )


def local_queue(policy: Policy) -> Forwarding:
    """A scheduler sends a request to an instance at once, where it waits in the instance's queue.

    Who waits longer than the limit is removed and uses no slot. Who starts in time may still end too
    late, and its slot has worked for nothing.

    Args:
      policy: for example `stale_reports(1.0)`, `round_robin()`, `at_random()` or `least_work()`, which
        knows the true backlog.

    Raises:
      TypeError: naming the argument.
    """
    validation.instance("policy", policy, Policy, "Make it with dflax.inference.stale_reports.")
    return Forwarding(policy, lambda wait, duration, limit: wait <= limit, None, 1, False)


class Reports(NamedTuple):
    """What a scheduler knows, from `stale_reports`.

    Attributes:
      time: `[]` s, when the last report was made.
      seen: `[instances]` what it said, and what was dispatched since if that is counted.
      ends: `[instances, kept]` s, when the last requests of each instance are done.
      tokens: `[instances, kept]` their prompts.
    """

    time: Float[Array, ""]
    seen: Float[Array, " instances"]
    ends: Float[Array, "instances kept"]
    tokens: Float[Array, "instances kept"]


def stale_reports(
    interval: float | Float[Array, ""],
    *,
    unit: str = "seconds",
    tie: str = "random",
    dispatches: bool = False,
    tokens: Callable[[Any], Array] | None = None,
    kept: int = 64,
) -> Policy:
    """The instance whose last report was the smallest; reports come at multiples of the interval.

    Args:
      interval: Delta_r, s, > 0; traceable.
      unit: what a report says: "seconds" of work that is left, or "tokens" of the prompts that are not
        done, which knows nothing of prefixes that are reused.
      tie: who is chosen among equals, as idle instances mostly are: "random" or "lowest" number.
      dispatches: whether a scheduler adds what it has sent itself since.
      tokens: `row -> []`, a request's tokens; default its `prompt`.
      kept: requests of an instance that are remembered to count tokens, >= 1.

    Raises:
      TypeError, ValueError: naming the argument.
    """
    validation.real("interval", interval, low=0.0, low_open=True, scalar=True)
    validation.choice("unit", unit, ("seconds", "tokens"))
    validation.choice("tie", tie, ("random", "lowest"))
    validation.flag("dispatches", dispatches)
    if tokens is not None:
        validation.function("tokens", tokens, "It gets a row of the table.", takes=1)
    validation.integer("kept", kept, low=1)
    size = kept if unit == "tokens" else 1

    def init(instances: int) -> Reports:
        empty = jnp.zeros((instances, size))
        return Reports(jnp.zeros(()), jnp.zeros(instances), empty, empty)

    def choose(memory: Reports, moment: Moment) -> tuple[Int[Array, ""], Reports]:
        passed = jnp.floor((moment.now - memory.time) / interval)
        time = memory.time + passed * interval
        if unit == "tokens":
            backlog = jnp.sum(jnp.where(memory.ends > time, memory.tokens, 0.0), axis=1)
        else:
            backlog = jnp.sum(jnp.maximum(moment.free - time, 0.0), axis=1)
        seen = jnp.where(passed > 0, backlog, memory.seen)
        allowed = jnp.isfinite(moment.opens)
        known = jnp.where(allowed, seen, jnp.inf)
        least = known <= jnp.min(known)
        order = ties(moment.bits, len(known)) if tie == "random" else jnp.arange(len(known)) * 1.0
        chosen = jnp.argmin(jnp.where(allowed & least, order, jnp.inf))
        return chosen, memory._replace(time=time, seen=seen)

    def hear(memory: Reports, moment: Moment, placed: Placement) -> Reports:
        to = placed.instance
        if unit == "tokens":
            size_of = moment.row.prompt if tokens is None else tokens(moment.row)
            work = jnp.asarray(size_of, jnp.float32)
            place = jnp.argmin(memory.ends[to])
            ends = jnp.where(placed.served, placed.finish, memory.ends[to, place])
            sizes = jnp.where(placed.served, work, memory.tokens[to, place])
            memory = memory._replace(
                ends=memory.ends.at[to, place].set(ends),
                tokens=memory.tokens.at[to, place].set(sizes),
            )
        else:
            work = moment.durations[to]
        if dispatches:
            memory = memory._replace(seen=memory.seen.at[to].add(jnp.where(placed.served, work, 0)))
        return memory

    def later(memory: Reports, seconds: Float[Array, ""]) -> Reports:
        return memory._replace(time=memory.time - seconds, ends=memory.ends - seconds)

    return Policy(init, choose, hear, later)


def fewest_connections(answer: Callable[[Any], Array], *, kept: int = 256) -> Policy:
    """The instance with the fewest open connections, which stay open until the answer has ended.

    The count is exact as long as an instance has at most `kept` of them.

    Args:
      answer: `row -> []`, s from the end of the prefill to the last token.
      kept: connections of an instance that are counted at most, >= 1.

    Raises:
      TypeError, ValueError: naming the argument.
    """
    validation.function("answer", answer, "It gets a row of the table.", takes=1)
    validation.integer("kept", kept, low=1)

    def choose(memory: Array, moment: Moment) -> tuple[Int[Array, ""], Array]:
        # Without order a connection that has ended is one that counts no more.
        count = jnp.sum(memory > moment.now, axis=1)
        return jnp.argmin(jnp.where(jnp.isfinite(moment.opens), count, kept + 1)), memory

    def hear(memory: Array, moment: Moment, placed: Placement) -> Array:
        to = placed.instance
        place = jnp.argmin(memory[to])
        ends = placed.finish + answer(moment.row)
        return memory.at[to, place].set(jnp.where(placed.served, ends, memory[to, place]))

    return Policy(
        lambda instances: jnp.zeros((instances, kept)),
        choose,
        hear,
        lambda memory, seconds: memory - seconds,
    )


def within_groups(policy: Policy, sizes: Sequence[int]) -> Policy:
    """The policy within a request's own group of instances: those of its scenario.

    Instances lie group after group; a row's `scenario` is the number of its group.

    Args:
      policy: of every group.
      sizes: instances of each group, >= 1.

    Raises:
      TypeError, ValueError: naming the argument.
    """
    validation.instance("policy", policy, Policy)
    counts = validation.sequence("sizes", sizes, "counts")
    for one in counts:
        validation.integer("sizes", one, low=1)
    group = jnp.asarray(np.repeat(np.arange(len(counts)), counts))

    def init(instances: int) -> Memory:
        each = policy.init(instances)
        return jax.tree.map(lambda leaf: jnp.stack([leaf] * len(counts)), each)

    def own(memory: Memory, moment: Moment) -> tuple[Memory, Moment, Array]:
        at = jnp.clip(moment.row.scenario, 0, len(counts) - 1)
        inside = group == at
        seen = moment._replace(
            opens=jnp.where(inside, moment.opens, jnp.inf),
            free=jnp.where(inside[:, None], moment.free, jnp.inf),
        )
        return jax.tree.map(lambda leaf: leaf[at], memory), seen, at

    def put(memory: Memory, part: Memory, at: Array) -> Memory:
        return jax.tree.map(lambda leaf, one: leaf.at[at].set(one), memory, part)

    def choose(memory: Memory, moment: Moment) -> tuple[Int[Array, ""], Memory]:
        part, seen, at = own(memory, moment)
        chosen, part = policy.choose(part, seen)
        return chosen, put(memory, part, at)

    def hear(memory: Memory, moment: Moment, placed: Placement) -> Memory:
        part, seen, at = own(memory, moment)
        return put(memory, policy.hear(part, seen, placed), at)

    def later(memory: Memory, seconds: Float[Array, ""]) -> Memory:
        if not jax.tree.leaves(memory):
            return memory
        return jax.vmap(lambda part: policy.later(part, seconds))(memory)

    return Policy(init, choose, hear, later)
