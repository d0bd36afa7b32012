"""Instances that both prefill and decode: prefill goes first, and answers stand still meanwhile."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from dflax import validation
from dflax.algorithm import Algorithm, Metrics
from dflax.inference.disaggregated.work import Seconds
from dflax.inference.requests import Requests
from dflax.inference.service import Levels, Served, levels, service

Real = float | Float[Array, "..."]


def aggregated_throughput(prefill: Real, decode: Real, slots: Real) -> Float[Array, "..."]:
    """Requests a second that an instance serves at most: 1 / (T_p + T_d / b_a).

    Args:
      prefill: T_p, s of an instance for one prompt, > 0; traceable, as all others.
      decode: T_d, s of an answer in a full batch, > 0.
      slots: b_a, answers that an instance decodes at the same time, >= 1.

    Raises:
      TypeError, ValueError: naming the argument.
    """
    validation.real("prefill", prefill, low=0.0, low_open=True)
    validation.real("decode", decode, low=0.0, low_open=True)
    validation.real("slots", slots, low=1)
    return 1.0 / (jnp.asarray(prefill) + jnp.asarray(decode) / jnp.asarray(slots))


class AggregatedState(NamedTuple):
    """What aggregated instances carry from block to block.

    Decoding has a clock of its own on every instance, which stands still while the instance prefills.

    Attributes:
      open: `[instances]` s, when each has ended its last prefill.
      stood: `[instances]` s that its clock of decoding is behind.
      free: `[instances, slots]` when each slot is free, on that clock.
    """

    open: Float[Array, " instances"]
    stood: Float[Array, " instances"]
    free: Float[Array, "instances slots"]


class _Taken(NamedTuple):
    """Of each request: who takes it, the end of its prefill, and times on the clock of decoding."""

    instance: Int[Array, "..."]
    served: Bool[Array, "..."]
    first: Float[Array, "..."]
    stopped: Float[Array, "..."]
    prefill: Float[Array, "..."]
    target: Float[Array, "..."]


def aggregated_serve(
    instances: int,
    prefill: Seconds,
    answer: Seconds,
    *,
    slots: int = 32,
    promised: Levels | None = None,
) -> Algorithm:
    """Instances that do both, first come first served, as a step over blocks of requests.

    A request goes to the instance that can begin first, and needs a slot there until its last token. A
    prefill occupies the instance for T_p, in which none of its answers gets a token. So an answer whose
    first token is there at f ends at the t with

        t - f - (prefills of the instance between f and t) = T_d

    Nobody begins who would miss the promised TTFT. The stalls that a later block causes to answers of
    the one before are left out: take blocks that are long beside an answer.

    Args:
      instances: N >= 1.
      prefill: T_p, s, for example a profile's `scenario_seconds`.
      answer: T_d, s in a full batch without stalls.
      slots: b_a >= 1.
      promised: service levels; default TTFT within 0.5 s.

    Returns:
      `Algorithm` whose round is `(Requests, key)`. Metrics: those of `service`, and `timed_out`,
      `per_instance`, `load` (T_p + T_d / b_a of what came, over time) and `overloaded` (load >= 1).

    Raises:
      TypeError, ValueError: naming the argument.
    """
    validation.integer("instances", instances, low=1)
    validation.function("prefill", prefill, "It gets a row of requests.", takes=1)
    validation.function("answer", answer, "It gets a row of requests.", takes=1)
    validation.integer("slots", slots, low=1)
    promised = levels(ttft=0.5) if promised is None else promised
    validation.instance("promised", promised, Levels, "Make it with dflax.inference.levels.")

    def init(key: Key[Array, ""], params: Any) -> AggregatedState:
        zero = jnp.zeros((instances,))
        return AggregatedState(zero, zero, jnp.zeros((instances, slots)))

    def one(state: AggregatedState, came: tuple) -> tuple[AggregatedState, _Taken]:
        arrived, takes, decodes = came
        # On each instance's own clock, on which slots become free while it decodes.
        stops = jnp.maximum(jnp.min(state.free, axis=1), state.open - state.stood)
        stops = jnp.maximum(stops, arrived - state.stood)
        to = jnp.argmin(stops + state.stood)
        stopped, begin = stops[to], stops[to] + state.stood[to]
        served = begin + takes - arrived <= promised.ttft
        target, slot = stopped + decodes, jnp.argmin(state.free[to])
        after = AggregatedState(
            state.open.at[to].set(jnp.where(served, begin + takes, state.open[to])),
            state.stood.at[to].add(jnp.where(served, takes, 0.0)),
            state.free.at[to, slot].set(jnp.where(served, target, state.free[to, slot])),
        )
        return after, _Taken(to, served, begin + takes, stopped, takes, target)

    def step(
        state: AggregatedState, round: tuple[Requests, Key[Array, ""]]
    ) -> tuple[AggregatedState, Metrics]:
        requests, _ = round
        shape = requests.arrived.shape
        takes = jnp.broadcast_to(jnp.asarray(prefill(requests), jnp.float32), shape)
        decodes = jnp.broadcast_to(jnp.asarray(answer(requests), jnp.float32), shape)
        after, taken = jax.lax.scan(one, state, (requests.arrived, takes, decodes))
        last = taken.target + _stood(state, taken)
        first = jnp.where(taken.served, taken.first, jnp.inf)
        last = jnp.where(taken.served, last, jnp.inf)
        span = requests.arrived[-1]
        load = jnp.sum(takes + decodes / slots) / (jnp.maximum(span, 1e-9) * instances)
        found = service(requests, Served(first, last), promised)
        metrics = found | {
            "timed_out": 1.0 - jnp.mean(taken.served),
            "per_instance": found["throughput"] / instances,
            "load": load,
            "overloaded": load >= 1,
        }
        later = AggregatedState(
            after.open - span,
            jnp.zeros_like(after.stood),
            after.free + after.stood[:, None] - span,
        )
        return later, metrics

    return Algorithm(init, step)


def _stood(state: AggregatedState, taken: _Taken) -> Float[Array, " n"]:
    """How far the clock of each request's instance is behind when it shows the request's last token."""

    def of(instance: Int[Array, ""], before: Float[Array, ""]) -> Float[Array, " n"]:
        own = (taken.instance == instance) & taken.served
        shown = jax.lax.cummax(jnp.where(own, taken.stopped, -jnp.inf))
        stood = before + jnp.cumsum(jnp.where(own, taken.prefill, 0.0))
        count = jnp.searchsorted(shown, taken.target)
        return jnp.where(count > 0, stood[jnp.maximum(count - 1, 0)], before)

    each = jax.lax.map(lambda of_one: of(*of_one), (jnp.arange(len(state.stood)), state.stood))
    return jnp.take_along_axis(each, taken.instance[None, :], axis=0)[0]
