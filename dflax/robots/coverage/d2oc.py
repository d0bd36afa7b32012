"""D2OC: agents carry a density away, sample by sample, and tell each other what they have taken."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Key

from dflax import validation
from dflax.algorithm import Algorithm, FederatedState, Metrics
from dflax.clients import map_clients
from dflax.population import Round
from dflax.robots.coverage.control import Controller
from dflax.robots.coverage.dynamics import Dynamics
from dflax.robots.coverage.mass import Ledger, left, newest, take, twice, within_reach
from dflax.robots.swarm import present


class Reference(NamedTuple):
    """What all agents know.

    Attributes:
      samples: `[N, 2]` points of the density, each of mass 1 / N.
      gains: the controller's, leaves `[n, ...]`.
    """

    samples: Float[Array, "N 2"]
    gains: Any


class Agents(NamedTuple):
    """What n agents carry.

    Attributes:
      states: `[n, d]`.
      plans: the controller's memory, leaves `[n, ...]`.
      ledger: what each knows of everybody's consumption.
      visited: `[n, steps, 2]`, where each was after each step; NaN for steps that it did not do.
    """

    states: Float[Array, "n d"]
    plans: Any
    ledger: Ledger
    visited: Float[Array, "n steps 2"]


class Moved(NamedTuple):
    """What a step did with one agent: `saturated` is whether its input was cut."""

    state: Array
    plan: Any
    position: Array
    taken: Array
    input: Array
    saturated: Array


def d2oc(
    dynamics: Dynamics,
    controller: Controller,
    agents: int,
    steps: int,
    *,
    radio: float | Float[Array, ""] = jnp.inf,
    sequential: bool = False,
    shares: Float[Array, " n"] | None = None,
) -> Algorithm:
    """Density-driven optimal control (D2OC), a time step a round.

    All places that n agents visit in T steps are to have the distribution of N sample points, in the
    2-Wasserstein distance. A visit carries the mass alpha = 1 / (n T) away. Agent i believes w_ij to be
    left of sample j, and in a step

        A   y_i = the mean of the samples that hold the next alpha, by |z_j - p_i|^2 / w_ij^2
            u_i = controller(x_i, y_i), cut to its bound;   x_i <- dynamics(x_i, u_i), within its limits
        B   takes alpha from the samples nearest to its new place, and notes it in its ledger
        C   of the ledgers within reach the newest record of every agent wins;
            w_ij = max(0, 1 / N - sum_k taken_kj)

    The transport of alpha to those samples costs alpha |p - y_i|^2 and a constant, which is why their
    mean is the target. An agent that believes nothing to be left stops, and leaves the network. Whom
    the round leaves out flies with its radio off.

    Args:
      dynamics: for example `dflax.robots.double_integrator(0.1, bound=0.5, speed=0.3)`.
      controller: `linear_quadratic`, `iterated`, or `straight` (the earlier law D2C).
      agents: n.
      steps: T >= 1, the steps of a mission; later ones do nothing.
      radio: below which distance agents hear each other, > 0; infinite by default; traceable.
      sequential: whether agents do A, B and C one after another, as in the authors' code, so that
        nobody takes what another has just taken. By default all do A and B at once, then C.
      shares: `[n]`, alpha_i T of agents that weigh differently, > 0, of sum 1; default 1 / n.

    Returns:
      An `Algorithm`. `init(key, positions, samples)` takes first places `[n, 2]` and the density's
      points `[N, 2]`; rounds come from a `dflax.Population(n)`. Metrics: `remaining`, the mean mass
      that agents believe to be left; `overlap`, the mass that several have taken without knowing of
      each other; `links`, pairs that hear each other; `energy`, mean |u|^2; `saturated`, the share of
      agents whose input was cut; `active`, of those that still fly.

    Raises:
      TypeError, ValueError: naming the argument.

    References:
      Seo and Lee, Density-Driven Optimal Control for Non-Uniform Area Coverage in Decentralized
      Multi-Agent Systems Using Optimal Transport, arXiv 2511.12756.
    """
    fix = "For example dflax.robots.double_integrator()."
    validation.instance("dynamics", dynamics, Dynamics, fix)
    fix = "For example dflax.robots.linear_quadratic(dynamics, 10, input_cost=1e-5)."
    validation.instance("controller", controller, Controller, fix)
    validation.integer("agents", agents, low=1)
    validation.integer("steps", steps, low=1)
    require_radio(radio)
    validation.flag("sequential", sequential)
    alphas = _masses(shares, agents, steps)
    numbers = jnp.arange(agents, dtype=jnp.int32)

    def init(
        key: Key[Array, ""], params: Float[Array, "n 2"], samples: Float[Array, "N 2"]
    ) -> FederatedState:
        positions, points = placed(key, params, samples, agents)
        states = jax.vmap(dynamics.start)(positions)
        count = points.shape[0]
        ledger = Ledger(
            jnp.zeros((agents, agents, count), states.dtype),
            jnp.zeros((agents, agents), jnp.int32),
        )
        gains = jax.vmap(controller.gains)(alphas)
        visited = jnp.full((agents, steps, 2), jnp.nan, states.dtype)
        own = Agents(states, jax.vmap(controller.start)(states), ledger, visited)
        return FederatedState(jnp.int32(0), Reference(points, gains), own)

    def fly(
        own: Agents, mass: Array, alpha: Array, gains: Any, samples: Array, active: Array
    ) -> Moved:
        """A and B of one agent."""
        x = own.states
        C = jnp.asarray(dynamics.position, x.dtype)
        there = mass > 0
        away = jnp.sum(jnp.square(samples - C @ x), axis=-1)
        weighed = jnp.where(there, away / jnp.square(jnp.where(there, mass, 1)), jnp.inf)
        ahead = take(weighed, mass, alpha)
        target = ahead @ samples / jnp.maximum(ahead.sum(), 1e-30)
        wanted, plan = controller.input(gains, own.plans, x, target, alpha)
        u = jnp.clip(wanted, -dynamics.bound, dynamics.bound)
        after = dynamics.limited(dynamics.step(x, u))
        x = jnp.where(active, after, x)
        position = C @ x
        away = jnp.where(there, jnp.sum(jnp.square(samples - position), axis=-1), jnp.inf)
        taken = jnp.where(active, take(away, mass, alpha), 0)
        plan = jax.tree.map(lambda new, old: jnp.where(active, new, old), plan, own.plans)
        u = jnp.where(active, u, 0)
        return Moved(x, plan, position, taken, u, active & jnp.any(u != wanted))

    def noted(ledger: Ledger, taken: Array, active: Array, index: Array) -> Ledger:
        """Everybody's own record with what it has just taken."""
        one = numbers[:, None] == numbers
        return Ledger(
            ledger.taken + jnp.where(one[:, :, None], taken[:, None], 0),
            jnp.where(one & active[:, None], index + 1, ledger.clock),
        )

    def at_once(state: FederatedState, active: Array, heard: Array) -> tuple[Moved, Ledger, Array]:
        own, reference = state.clients, state.server
        mass = left(own.ledger, reference.samples.shape[0])
        rows = (own._replace(ledger=(), visited=()), mass, alphas, reference.gains)
        found = map_clients(
            lambda own, mass, alpha, gains, active, samples: fly(
                own, mass, alpha, gains, samples, active
            ),
            *(*rows, active),
            shared=(reference.samples,),
            at_once=agents,
        )
        ledger = noted(own.ledger, found.taken, active, state.round)
        links = within_reach(found.position, radio, active & heard)
        return found, newest(ledger, links), links

    def in_turn(state: FederatedState, active: Array, heard: Array) -> tuple[Moved, Ledger, Array]:
        own, reference = state.clients, state.server
        count = reference.samples.shape[0]
        places = own.states @ jnp.asarray(dynamics.position, own.states.dtype).T

        def one(carry: tuple[Ledger, Array], number: Array) -> tuple[tuple[Ledger, Array], Moved]:
            ledger, places = carry
            mass = left(jax.tree.map(lambda leaf: leaf[number][None], ledger), count)[0]
            row: Any = jax.tree.map(lambda leaf: leaf[number], own._replace(ledger=(), visited=()))
            gains = jax.tree.map(lambda leaf: leaf[number], reference.gains)
            flies = active[number] & (mass.sum() > 0)
            moved = fly(row, mass, alphas[number], gains, reference.samples, flies)
            places = places.at[number].set(moved.position)
            alone = numbers == number
            taken = jnp.where(alone[:, None], moved.taken, 0)
            ledger = noted(ledger, taken, alone & flies, state.round)
            links = within_reach(places, radio, active & heard)
            # The agent hears all within its reach, and they hear it.
            near = links[number]
            for pairs in (alone[:, None] & near, alone[None] & near[:, None]):
                ledger = newest(ledger, pairs | (numbers[:, None] == numbers))
            return (ledger, places), moved

        (ledger, places), found = jax.lax.scan(one, (own.ledger, places), numbers)
        return found, ledger, within_reach(places, radio, active & heard)

    def step(state: FederatedState, round: Round) -> tuple[FederatedState, Metrics]:
        own, samples = state.clients, state.server.samples
        require_agents(round, agents)
        count = samples.shape[0]
        active = (left(own.ledger, count).sum(1) > 0) & (state.round < steps)
        there = present(round, agents)
        heard = jnp.ones(agents, bool) if there is None else there
        found, ledger, links = (in_turn if sequential else at_once)(state, active, heard)
        visited = noted_places(own.visited, found.position, active, state.round)
        after = Agents(found.state, found.plan, ledger, visited)
        metrics = {
            "remaining": left(ledger, count).sum(1).mean(),
            "overlap": twice(ledger, count),
            "links": (links.sum() - agents) / 2,
            "energy": jnp.sum(jnp.square(found.input), axis=-1).mean(),
            "saturated": found.saturated.mean(),
            "active": active.mean(),
        }
        return FederatedState(state.round + 1, state.server, after), metrics

    return Algorithm(init, step)


def placed(
    key: Any, params: Any, samples: Any, agents: int
) -> tuple[Float[Array, "n 2"], Float[Array, "N 2"]]:
    """First places and samples, after all checks."""
    validation.typed_key("key", key)
    fix = f"Give each of the {agents} agents a place."
    positions = validation.array("params", params, kind="real", shape=(agents, 2), fix=fix)
    points = validation.array("samples", samples, kind="real", shape=("N", 2))
    if points.shape[0] < 1:
        raise ValueError("samples must hold at least one point, got none.")
    kind = jnp.result_type(float)
    return jnp.asarray(positions, kind), jnp.asarray(points, kind)


def noted_places(
    visited: Float[Array, "n steps 2"],
    position: Float[Array, "n 2"],
    active: Bool[Array, " n"],
    index: Array,
) -> Float[Array, "n steps 2"]:
    """The record of a mission with the places after a step; steps beyond its end are not written."""
    here = jnp.where(active[:, None], position, jnp.nan)
    return visited.at[:, index].set(here, mode="drop")


def require_agents(round: Round, agents: int) -> None:
    """Refuses rounds of another population."""
    if int(round.clients) != agents:
        raise ValueError(
            f"the source must draw rounds of the mission's {agents} agents, got "
            f"{int(round.clients)}. Use dflax.Population({agents})."
        )


def require_radio(radio: Any) -> None:
    """Refuses a reach that is not positive; infinite is everybody's."""
    if not (isinstance(radio, float) and radio == float("inf")):
        validation.real("radio", radio, low=0.0, low_open=True, scalar=True)


def _masses(shares: Any, agents: int, steps: int) -> Float[Array, " n"]:
    """The mass alpha_i of an agent's point."""
    if shares is None:
        return jnp.full(agents, 1.0 / (agents * steps))
    given = validation.array("shares", shares, kind="real", shape=(agents,), low=0.0)
    if not validation.is_traced(given):
        total = float(np.sum(np.asarray(given, np.float64)))
        if abs(total - 1) > 1e-4 or not np.all(np.asarray(given) > 0):
            raise ValueError(
                f"shares must be positive and of sum 1, got {np.asarray(given).tolist()} of sum "
                f"{total:g}. Divide them by their sum."
            )
    return jnp.asarray(given, jnp.result_type(float)) / steps
