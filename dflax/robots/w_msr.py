"""W-MSR in a swarm: robots average what they hear at first hand, without the extremes."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from dflax import validation
from dflax.algorithm import Algorithm, FederatedState, Metrics
from dflax.clients import everywhere, map_clients
from dflax.population import Round
from dflax.robots.application import Application, Claims, Robot, Statement
from dflax.robots.motion import Motion
from dflax.robots.swarm import (
    Bodies,
    Byzantine,
    mean_of_cooperative,
    measured,
    require_parts,
    sensed,
    started,
    statement_shape,
)


class Averaging(NamedTuple):
    """The robots of a swarm that averages.

    Attributes:
      bodies: places, memories, estimates.
      said: `[n, k]` what each said at the tick before.
      spoke: `[n]` whether it said anything.
    """

    bodies: Bodies
    said: Float[Array, "n k"]
    spoke: Bool[Array, " n"]


def w_msr(
    application: Application,
    liars: Byzantine,
    motion: Motion,
    *,
    tolerated: int | Int[Array, ""],
    radio: float | Float[Array, ""] = 4.0,
) -> Algorithm:
    """Weighted mean-subsequence-reduced as a swarm's protocol, to hold `dbp` against, a tick a round.

    Only who senses something says it, to its neighbours, and nothing is passed on. With F = tolerated,
    coordinate by coordinate,

        who senses:         mean of its own value and of those heard without the F largest above it and
                            the F smallest below it
        the others:         mean of those heard without the F largest and the F smallest, if there are
                            at least 2 F + 1

    Others keep the estimate they have. What is heard is one tick old and aged by as much
    (`Application.aged`). The result counts as one claim of the robot's own, of which the application
    makes its estimate; an application whose claims are not what it estimates, as `localisation`, makes
    no sense of it.

    Args:
      application: what the swarm works at.
      liars: the Byzantine robots, see `byzantine`. Whom they accuse does not count.
      motion: how robots move, see `motion`.
      tolerated: F >= 0; it may be traced.
      radio: up to which distance robots hear each other, in metres, > 0.

    Returns:
      An `Algorithm` as `dbp` gives it, with the metrics `error`, `error_median`, `error_95`,
      `error_worst` and `valid`, and `stalled`, the share of the cooperative robots that heard too little
      at this tick.

    Raises:
      TypeError, ValueError: naming the argument.

    References:
      LeBlanc, Zhang, Koutsoukos and Sundaram, Resilient Asymptotic Consensus in Robust Networks, IEEE
      Journal on Selected Areas in Communications 31, 2013; its use in swarms as in arXiv 2301.06977.
    """
    require_parts(application, liars, motion, radio)
    if not validation.is_traced(tolerated):
        validation.integer("tolerated", tolerated, low=0)
    robots = liars.members.shape[0]

    def init(key: Key[Array, ""], params: Float[Array, "n 2"]) -> FederatedState:
        bodies = started(application, motion, key, params, robots)
        one = statement_shape(application, bodies)
        said = jnp.zeros((robots, *one.shape), one.dtype)
        return FederatedState(jnp.int32(0), (), Averaging(bodies, said, jnp.zeros(robots, bool)))

    def step(state: FederatedState, round: Round) -> tuple[FederatedState, Metrics]:
        tick, before = state.round, state.clients
        now = sensed(application, liars, motion, radio, before.bodies, tick, round)

        def average(
            robot: Robot,
            own: Bodies,
            links: Array,
            statement: Statement,
            said: Array,
            spoke: Array,
        ) -> tuple[Any, Array, Array, Array]:
            there = links & spoke
            old = jax.vmap(application.aged, (0, None))(said, jnp.int32(1))
            heard = there.sum()
            above = (there[:, None] & (old > statement.value)).sum(0)
            below = (there[:, None] & (old < statement.value)).sum(0)
            low = jnp.where(statement.made, jnp.minimum(tolerated, below), tolerated)
            high = jnp.where(statement.made, jnp.minimum(tolerated, above), tolerated)
            # Who is left out lies at the ends of the order.
            place = jnp.arange(robots)[:, None]
            kept = (place >= low) & (place < heard - high)
            rising = jnp.sort(jnp.where(there[:, None], old, jnp.inf), axis=0)
            own_value = jnp.where(statement.made, statement.value, 0)
            total = jnp.where(kept, rising, 0).sum(0) + own_value
            count = kept.sum(0) + statement.made
            enough = statement.made | (heard > 2 * tolerated)
            me = (jnp.arange(robots) == robot.number) & enough
            value = jnp.broadcast_to(total / jnp.maximum(count, 1), said.shape)
            nothing = jnp.zeros(robots, jnp.int32)
            memory, made = application.estimate(robot, Claims(value, nothing, nothing, me, me))
            memory, estimate, valid = jax.tree.map(
                lambda new, old: jnp.where(enough, new, old),
                (memory, made.value, made.valid),
                (own.memory, own.estimate, own.valid),
            )
            return memory, estimate, valid, ~enough

        numbers = jnp.arange(robots, dtype=jnp.int32)
        ticks = jnp.full(robots, tick)
        seen = Robot(numbers, now.bodies.position, ticks, now.bodies.memory, now.keys)
        memory, estimate, valid, stalled = map_clients(
            average,
            *(seen, now.bodies, now.links, now.statements),
            shared=everywhere((before.said, before.spoke)),
            at_once=robots,
        )
        bodies = now.bodies._replace(memory=memory, estimate=estimate, valid=valid)
        metrics = measured(application, liars, bodies, tick)
        metrics["stalled"] = mean_of_cooperative(stalled, liars)
        after = Averaging(bodies, now.statements.value, now.statements.made)
        return FederatedState(tick + 1, (), after), metrics

    return Algorithm(init, step)
