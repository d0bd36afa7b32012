"""Swarms of robots: static scenes, what is known in them, and runs of moving ones."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import networkx
import numpy as np
from jaxtyping import Array, Bool, Float

import dflax as dx
from dflax import robots
from dflax.gossip import Mixing

TRUTH, LIE, RADIUS = 10.0, -50.0, 0.35


class Scene(NamedTuple):
    """Robots that stand still; the Byzantine ones are the last.

    Attributes:
      places: `[n, 2]`, the square's centre is the origin.
      links: `[n, n]` who is within reach of whom.
      diameter: of the graph of the cooperative robots.
    """

    places: Float[np.ndarray, "n 2"]
    links: Bool[np.ndarray, "n n"]
    diameter: int


def scene(honest: int, lying: int, side: float, seed: int) -> Scene:
    """Places uniform in a square, radius 0.35, redrawn until the cooperative graph is connected.

    Every Byzantine robot must have a cooperative neighbour.
    """
    rng = np.random.default_rng(seed)
    for _ in range(1000):
        places = side * (rng.random((honest + lying, 2)) - 0.5)
        places = places.astype(np.float32)
        links = np.square(places[:, None] - places).sum(-1) <= RADIUS**2
        links &= ~np.eye(len(links), dtype=bool)
        graph = networkx.from_numpy_array(links[:honest, :honest])
        if networkx.is_connected(graph) and links[honest:, :honest].any(1).all():
            return Scene(places, links, networkx.diameter(graph))
    raise ValueError(f"no connected scene of {honest} robots in a square of {side:g} was drawn.")


def observers(honest: int, lying: int, count: int, seed: int) -> Bool[np.ndarray, " n"]:
    """Which robots know the truth: so many cooperative ones, the first of an order of the seed."""
    chosen = np.random.default_rng([seed, 1]).permutation(honest)[:count]
    return np.isin(np.arange(honest + lying), chosen)


@functools.cache
def blocklists(honest: int, lying: int, ticks: int) -> Callable[..., dict[str, Array]]:
    """The compiled `(observers, places) -> metrics` of the protocol in a scene."""
    members = np.arange(honest + lying) >= honest

    def simulate(observers: Array, places: Array) -> dict[str, Array]:
        application = robots.known_value(observers, value=TRUTH, lie=LIE)
        # A square that every scene fits into; nobody moves.
        still = robots.motion(0.0, side=1000.0)
        swarm = robots.dbp(application, robots.byzantine(members), still, radio=RADIUS)
        key = jax.random.key(0)
        state = swarm.init(key, places)
        return dx.rollout(swarm, state, dx.Population(len(members)), key, ticks)[1]

    return jax.jit(simulate)


def averaged(
    drawn: Scene, knows: Bool[np.ndarray, " n"], honest: int, left_out: tuple[int, ...], rounds: int
) -> Float[np.ndarray, " f"]:
    """Mean error of the cooperative robots under W-MSR that leaves out f a side, for each f.

    Observers stay at the truth, Byzantine robots at their lie, and the others start from 0.
    """
    graph = dx.topology.from_adjacency(drawn.links)
    matrix = dx.topology.uniform(graph, row_stochastic=True)
    lying = np.arange(len(knows)) >= honest
    fixed = jnp.where(lying, LIE, TRUTH)

    def error(f: Array) -> Array:
        mixer = dx.gossip.by_rule(matrix, dx.gossip.w_msr(f))
        start = jnp.where(knows | lying, fixed, 0.0)

        def one(carry: Any, index: Array) -> tuple[Any, None]:
            held, state = carry
            mixing = Mixing(jax.random.key(0), index)
            held, state, _ = mixer.apply(held, state, mixing)
            return (jnp.where(knows | lying, fixed, held), state), None

        (held, _), _ = jax.lax.scan(one, (start, mixer.init(start)), jnp.arange(rounds))
        return jnp.abs(held[:honest] - TRUTH).mean()

    return np.asarray(jax.jit(jax.vmap(error))(jnp.asarray(left_out)))


class Moving(NamedTuple):
    """A swarm that moves and works at something.

    Attributes:
      application: what.
      members: `[n]` the Byzantine robots.
      motion: how.
      window: ticks until a claim is forgotten.
      unit: of its errors.
    """

    application: robots.Application
    members: Bool[np.ndarray, " n"]
    motion: robots.Motion
    window: int
    unit: str


# Metres in a tick: of robots, and of the target on its circle.
SPEED, STEP = 0.02, 0.02


def moving(share: float) -> dict[str, Moving]:
    """The three applications at this share of the paper's sizes, 300, 195 and 250 robots.

    Kinds of robots are shuffled: claims are gone through in the order of their origins' numbers.
    """

    def part(*counts: int) -> list[Bool[np.ndarray, " n"]]:
        sizes = [max(1, round(share * count)) for count in counts]
        group = np.random.default_rng(0).permutation(np.repeat(np.arange(len(sizes)), sizes))
        return [group == place for place in range(len(counts))]

    _, tracked = part(200, 100)
    _, clock_anchors, late = part(100, 50, 45)
    _, place_anchors, lost = part(120, 80, 50)
    target = robots.circling(2.5, STEP)
    tracking = robots.target_tracking(target, robot_speed=SPEED)
    wandering = robots.motion(SPEED)
    return {
        "tracking": Moving(tracking, tracked, wandering._replace(pursuit=True), 50, "m"),
        "time": Moving(robots.time_synchronisation(clock_anchors), late, wandering, 200, "ticks"),
        "localisation": Moving(
            robots.localisation(place_anchors, robot_speed=SPEED), lost, wandering, 200, "m"
        ),
    }


def swarm(task: Moving, rule: str, tolerated: int) -> dx.Algorithm:
    """The swarm under a rule: "DBP", "believing" (no suspicion) or "W-MSR"."""
    liars = robots.byzantine(task.members)
    if rule == "W-MSR":
        return robots.w_msr(task.application, liars, task.motion, tolerated=tolerated)
    return robots.dbp(
        task.application, liars, task.motion, window=task.window, suspicion=rule == "DBP"
    )


def runs(algorithm: dx.Algorithm, count: int, ticks: int, seeds: range) -> dict[str, np.ndarray]:
    """Metrics of a run for each seed, `[seeds, ticks]`, by one compiled program."""
    source = dx.Population(count)

    def one(key: Array, source: dx.Population) -> dict[str, Array]:
        begin, way = jax.random.split(key)
        state = algorithm.init(begin, robots.scattered(begin, count))
        return dx.rollout(algorithm, state, source, way, ticks)[1]

    compiled = jax.jit(one)
    found = [compiled(jax.random.key(seed), source) for seed in seeds]
    return jax.tree.map(lambda *each: np.stack([np.asarray(x) for x in each]), *found)
