"""Instances with slots, in front of which requests wait: exact queues as one scan.

A station serves requests in the order in which they come. For each of them a policy chooses the
instance, the request takes that instance's earliest free slot, or leaves when its patience says so.
Prefill, transfers and decoding are stations; `sorted_by` puts one behind another.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key, PyTree, UInt32

from dflax import counter, validation

Memory = Any
Row = Any


class Moment(NamedTuple):
    """What a policy sees of a request that comes in.

    Attributes:
      now: `[]` s, when it comes.
      bits: `[]` random bits of its own; `ties` spreads them over the instances.
      row: its row of the table that is served.
      durations: `[instances]` s that it would occupy a slot of each.
      opens: `[instances]` s, when a slot of each is next free; infinity where it is off.
      free: `[instances, slots]` s, when each slot is free.
    """

    now: Float[Array, ""]
    bits: UInt32[Array, ""]
    row: Row
    durations: Float[Array, " instances"]
    opens: Float[Array, " instances"]
    free: Float[Array, "instances slots"]


class Placement(NamedTuple):
    """Where a request went.

    Attributes:
      instance: `[]` int32.
      start: `[]` s, when its slot begins with it.
      finish: `[]` s, when the slot is free again.
      served: `[]` whether it was served; who is not has occupied nothing.
    """

    instance: Int[Array, ""]
    start: Float[Array, ""]
    finish: Float[Array, ""]
    served: Bool[Array, ""]


class Policy(NamedTuple):
    """Which instance a request goes to.

    Attributes:
      init: `(instances) -> memory`.
      choose: `(memory, moment) -> (instance, memory)`.
      hear: `(memory, moment, placement) -> memory`, after the request was placed.
      later: `(memory, seconds) -> memory` whose clocks count from so much later.
    """

    init: Callable[[int], Memory]
    choose: Callable[[Memory, Moment], tuple[Int[Array, ""], Memory]]
    hear: Callable[[Memory, Moment, Placement], Memory]
    later: Callable[[Memory, Float[Array, ""]], Memory]


class Work(NamedTuple):
    """How long a request occupies a slot, which may depend on what an instance has cached.

    Attributes:
      init: `() -> memory`.
      durations: `(memory, row) -> [instances]` s.
      done: `(memory, row, placement) -> memory`.
    """

    init: Callable[[], Memory]
    durations: Callable[[Memory, Row], Float[Array, " instances"]]
    done: Callable[[Memory, Row, Placement], Memory]


class StationState(NamedTuple):
    """What a station carries from block to block.

    Attributes:
      free: `[instances, slots]` s, when each slot is free; infinity where it is off.
      policy: the policy's memory.
      work: the work's memory.
    """

    free: Float[Array, "instances slots"]
    policy: Memory
    work: Memory


class Station(NamedTuple):
    """Slots behind a policy, from `station`.

    Attributes:
      init: `() -> StationState`, all slots free from 0 on.
      serve: `(state, arrived [n], rows, key) -> (state, Placement [n])`; times must not decrease.
      later: `(state, seconds) -> state` whose clocks count from so much later.
    """

    init: Callable[[], StationState]
    serve: Callable[..., tuple[StationState, Placement]]
    later: Callable[[StationState, Float[Array, ""]], StationState]


def fixed_work(durations: Callable[[Row], Float[Array, ""]]) -> Work:
    """Work that takes the same time on every instance.

    Args:
      durations: `row -> []` s, or `[instances]`.

    Raises:
      TypeError: naming the argument.
    """
    validation.function("durations", durations, "It gets a row of the table.", takes=1)
    return Work(lambda: (), lambda memory, row: durations(row), lambda memory, row, placed: memory)


def stateless(choose: Callable[[Moment], Int[Array, ""]]) -> Policy:
    """A policy that remembers nothing.

    Args:
      choose: `moment -> []` int32, the instance.

    Raises:
      TypeError: naming the argument.
    """
    validation.function("choose", choose, "It gets a Moment.", takes=1)
    return Policy(
        lambda instances: (),
        lambda memory, moment: (choose(moment), memory),
        lambda memory, moment, placement: memory,
        lambda memory, seconds: memory,
    )


def ties(bits: UInt32[Array, ""], instances: int) -> Float[Array, " instances"]:
    """Random numbers in [0, 1), one an instance, by which ties are broken.

    Args:
      bits: `[]` those of a `Moment`.
      instances: >= 1.

    Raises:
      TypeError, ValueError: naming `instances`.
    """
    validation.integer("instances", instances, low=1)
    words = counter.mix(bits ^ counter.mix(jnp.arange(instances, dtype=jnp.uint32)))
    return counter.uniform(words)


def first_free() -> Policy:
    """The instance whose next slot is free first, the lowest number among equals: one queue for all."""
    return stateless(lambda moment: jnp.argmin(jnp.maximum(moment.opens, moment.now)))


def least_work() -> Policy:
    """The instance with the least work that is still to be done, summed over its slots."""
    return stateless(
        lambda moment: jnp.argmin(jnp.sum(jnp.maximum(moment.free - moment.now, 0.0), axis=1))
    )


def round_robin() -> Policy:
    """The instances that are on in turn."""

    def choose(memory: Int[Array, ""], moment: Moment) -> tuple[Int[Array, ""], Int[Array, ""]]:
        count = moment.opens.shape[0]
        order = (jnp.arange(count) - memory) % count
        chosen = jnp.argmin(jnp.where(jnp.isfinite(moment.opens), order, count))
        return chosen, (chosen + 1) % count

    return Policy(
        lambda instances: jnp.zeros((), jnp.int32),
        choose,
        lambda memory, moment, placement: memory,
        lambda memory, seconds: memory,
    )


def at_random() -> Policy:
    """Any instance that is on."""

    def choose(moment: Moment) -> Int[Array, ""]:
        drawn = ties(moment.bits, moment.opens.shape[0])
        return jnp.argmin(jnp.where(jnp.isfinite(moment.opens), drawn, 2.0))

    return stateless(choose)


def station(
    policy: Policy,
    work: Work,
    *,
    instances: int,
    slots: int = 1,
    stays: Callable[[Array, Array], Array] = lambda wait, duration: jnp.isfinite(wait),
    on: Int[Array, ""] | None = None,
) -> Station:
    """Instances with slots behind a policy.

    A request that comes at `a` and goes to instance i starts at s = max(a, its next free slot) and
    occupies the slot for its duration d, if `stays(s - a, d)`; otherwise it leaves at once and
    occupies nothing.

    Args:
      policy: which instance, for example `first_free()`.
      work: how long, for example `fixed_work(...)`.
      instances: >= 1, those that are off included.
      slots: requests that an instance serves at the same time, >= 1.
      stays: `(wait [], duration []) -> []` bool; default all who find an instance that is on.
      on: how many instances are on, in [1, instances]; traceable; default all.

    Raises:
      TypeError, ValueError: naming the argument.
    """
    validation.instance("policy", policy, Policy, "Make it with dflax.inference.first_free.")
    validation.instance("work", work, Work, "Make it with dflax.inference.fixed_work.")
    validation.integer("instances", instances, low=1)
    validation.integer("slots", slots, low=1)
    validation.function("stays", stays, "It gets a wait and a duration.", takes=2)
    count = instances if on is None else on
    if not validation.is_traced(count):
        validation.real("on", count, low=1, high=instances, scalar=True)

    def init() -> StationState:
        running = jnp.arange(instances) < count
        free = jnp.where(running[:, None], jnp.zeros((instances, slots)), jnp.inf)
        return StationState(free, policy.init(instances), work.init())

    def one(state: StationState, came: tuple) -> tuple[StationState, Placement]:
        now, bits, row = came
        durations = jnp.broadcast_to(work.durations(state.work, row), (instances,))
        opens = jnp.min(state.free, axis=1)
        moment = Moment(now, bits, row, durations, opens, state.free)
        chosen, memory = policy.choose(state.policy, moment)
        begins = jnp.maximum(now, opens[chosen])
        served = stays(begins - now, durations[chosen])
        finish = begins + durations[chosen]
        slot = jnp.argmin(state.free[chosen])
        free = state.free.at[chosen, slot].set(jnp.where(served, finish, state.free[chosen, slot]))
        placed = Placement(chosen.astype(jnp.int32), begins, finish, served)
        return (
            StationState(
                free,
                policy.hear(memory, moment, placed),
                work.done(state.work, row, placed),
            ),
            placed,
        )

    def serve(
        state: StationState, arrived: Float[Array, " n"], rows: PyTree[Array], key: Key[Array, ""]
    ) -> tuple[StationState, Placement]:
        return jax.lax.scan(one, state, (arrived, counter.bits(key, len(arrived)), rows))

    def later(state: StationState, seconds: Float[Array, ""]) -> StationState:
        return StationState(state.free - seconds, policy.later(state.policy, seconds), state.work)

    return Station(init, serve, later)


def sorted_by(
    times: Float[Array, " n"],
    serve: Callable[[Float[Array, " n"], Int[Array, " n"]], PyTree[Array]],
) -> PyTree[Array]:
    """Serves rows in the order of `times` and returns what came of them in the rows' own order.

    Args:
      times: `[n]`; infinity comes last.
      serve: `(times in order [n], numbers of the rows in that order [n]) -> (kept, leaves [n, ...])`.

    Returns:
      `(kept, leaves)`, the leaves back in the rows' order.

    Raises:
      TypeError, ValueError: naming the argument.
    """
    validation.arrays("times", times)
    validation.leading_axis("times", times, least=1)
    if jnp.ndim(times) != 1:
        raise ValueError(f"times must have one axis, got shape {jnp.shape(times)}.")
    validation.function("serve", serve, "It gets times in order and the rows' numbers.", takes=2)
    order = jnp.argsort(times)
    kept, found = serve(times[order], order)
    back = jnp.zeros_like(order).at[order].set(jnp.arange(len(order), dtype=order.dtype))
    return kept, jax.tree.map(lambda leaf: leaf[back], found)
