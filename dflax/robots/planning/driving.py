"""Closed loop: a car plans, drives one interval, sees what has come into view, and plans again."""

from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Key

from dflax import validation
from dflax.algorithm import Algorithm, FederatedState, Metrics
from dflax.clients import map_clients
from dflax.population import Round
from dflax.robots.planning.barrier import VOID
from dflax.robots.planning.planner import Plan, Planner, shifted
from dflax.robots.planning.scene import Scene, Start
from dflax.robots.planning.traffic import following, in_view
from dflax.robots.planning.trajectory import Trajectory, straight_guess


class Road(NamedTuple):
    """B scenes of up to M other cars, leaves `[B, ...]`.

    Attributes:
      places: `[B, M, 2]`, centres in metres.
      speeds: `[B, M]` along x, m/s.
      wanted: `[B, M]` the speed that a car wants; 0: it is parked.
      axes: `[B, M, 2]`, half axes of safety ellipses, > 0.
      bodies: `[B, M, 2]`, half axes of what cars hide behind them, >= 0.
      there: `[B, M]`, which cars there are.
      known: `[B, M]`, which of them are known before they are seen.
      phantoms: `[B, M, 2]`, where a hypothesis may imagine a car, until the place is in view.
      drifts: `[B, M]`, how fast that place moves along x, m/s: with what hides it.
      hidden: `[B, M]`, whether there is such a place.
      speed: `[B]`, the speed of the planning car, and the one it wants.
      detour: `[B]`, the y that it wants while there is something in its way; 0 otherwise.
      wary: `[B]`, the speed that it wants meanwhile.
    """

    places: Float[Array, "B M 2"]
    speeds: Float[Array, "B M"]
    wanted: Float[Array, "B M"]
    axes: Float[Array, "B M 2"]
    bodies: Float[Array, "B M 2"]
    there: Bool[Array, "B M"]
    known: Bool[Array, "B M"]
    phantoms: Float[Array, "B M 2"]
    drifts: Float[Array, "B M"]
    hidden: Bool[Array, "B M"]
    speed: Float[Array, " B"]
    detour: Float[Array, " B"]
    wary: Float[Array, " B"]


class Track(NamedTuple):
    """What happened, leaves `[B, T, ...]`, one row an interval.

    Attributes:
      start: from where it was planned.
      cars: `[B, T, M, 2]`.
      known: `[B, T, M]`.
      imagined: `[B, T, S, M]`, phantoms in hypotheses.
      plans: `[B, T, S, 2, n+1]`, coefficients of x and y.
      chosen: `[B, T]`.
      change: `[B, T]`, the largest distance between the last plan's times 1 .. 4 and this one's 0 .. 3.
      nearest: `[B, T, M]`, (dx/a)^2 + (dy/b)^2 after the interval; infinite for cars that are not there.
    """

    start: Start
    cars: Float[Array, "B T M 2"]
    known: Bool[Array, "B T M"]
    imagined: Bool[Array, "B T S M"]
    plans: Float[Array, "B T S 2 n+1"]
    chosen: Int[Array, "B T"]
    change: Float[Array, "B T"]
    nearest: Float[Array, "B T M"]


class Drive(NamedTuple):
    """The state of B drives, leaves `[B, ...]`.

    Attributes:
      road: with cars where they are.
      start: the planning car.
      guess: for the next plan.
      last: the trajectory followed, `[B, 2, n+1]`.
      track: what happened so far; rows of intervals to come are 0.
    """

    road: Road
    start: Start
    guess: Trajectory
    last: Float[Array, "B 2 n+1"]
    track: Track


def driving(
    planner: Planner, steps: int, imagined: Bool[Array, "S M"], *, lane: float = 1.75
) -> Algorithm:
    """Receding horizon over many scenes at once, an interval of the plans a round.

    In a round, in every scene:

        sees       cars whose centres are in view are known from then on; a phantom whose place is in
                   view, or in whose place a car is known, is gone
        plans      hypothesis s: known cars, and the phantoms that it imagines, at constant speeds
        drives     to the next time of the trajectory of the least cost
        others     cars move by the intelligent driver model behind whoever is ahead in their lane

    A hypothesis with anything known or imagined ahead whose ellipse covers y = 0 wants the detour's y
    and the wary speed, the others y = 0.

    Args:
      planner: of `dflax.robots.planner`.
      steps: T >= 1, intervals of a drive; later ones do nothing.
      imagined: `[S, M]`, which hypothesis imagines which phantom: `[[True] * M, [False] * M]` for two
        hypotheses, one of which fears everything.
      lane: cars whose y differ by less follow each other; > 0.

    Returns:
      An `Algorithm` with `init(key, road)`, a `Road` of B scenes. Rounds come from a
      `dflax.Population(B)`; scenes are dealt over the devices of a mesh. `state.clients` is a `Drive`.
      Metrics, means over scenes: `clearance`, the least of (dx/a)^2 + (dy/b)^2 of the moment's cars;
      `collisions`, the share of scenes where it is below 0.49; `speed`; `offset`, |y|; `change` from
      plan to plan in metres; `known`, cars known; and `kinematic`, the planner's residual.

    Raises:
      TypeError, ValueError: naming the argument.
    """
    fix = "For example dflax.robots.planner(dflax.robots.bernstein(), 2, 2)."
    validation.instance("planner", planner, Planner, fix)
    validation.integer("steps", steps, low=1)
    validation.real("lane", lane, low=0.0, low_open=True, scalar=True)
    shape = (planner.hypotheses, planner.obstacles)
    fancied = jnp.asarray(validation.array("imagined", imagined, kind="boolean", shape=shape))
    loop = Loop(planner, lane)

    def init(key: Key[Array, ""], params: Road) -> FederatedState:
        validation.typed_key("key", key)
        road = paved(params, planner.obstacles)
        return FederatedState(jnp.int32(0), fancied, jax.vmap(lambda r: loop.begin(r, steps))(road))

    def step(state: FederatedState, round: Round) -> tuple[FederatedState, Metrics]:
        count = state.clients.road.speed.shape[0]
        if int(round.clients) != count:
            raise ValueError(
                f"the source must draw rounds of the {count} scenes, got {int(round.clients)}. Use "
                f"dflax.Population({count})."
            )
        after, metrics = map_clients(
            loop.interval, state.clients, shared=(state.server, state.round), at_once=count
        )
        means = jax.tree.map(lambda leaf: jnp.mean(leaf, dtype=jnp.result_type(float)), metrics)
        return FederatedState(state.round + 1, state.server, after), means

    return Algorithm(init, step)


class Loop(NamedTuple):
    """An interval in one scene."""

    planner: Planner
    lane: Any

    def begin(self, road: Road, steps: int) -> Drive:
        """A scene before its first interval."""
        curves, S, M = self.planner.curves, self.planner.hypotheses, self.planner.obstacles
        zero = jnp.zeros_like(road.speed)
        start = Start(jnp.zeros(2, zero.dtype), jnp.stack([road.speed, zero]), zero, zero)
        scene = Scene(start, (), (), jnp.full(S, road.speed), jnp.zeros(S, zero.dtype))  # type: ignore[arg-type]
        guess = straight_guess(curves, scene)
        rows = Track(
            start,
            road.places,
            road.known,
            jnp.zeros((S, M), bool),
            jnp.zeros((S, 2, curves.degree + 1), zero.dtype),
            jnp.int32(0),
            zero,
            jnp.zeros(M, zero.dtype),
        )
        track = jax.tree.map(lambda leaf: jnp.zeros((steps, *leaf.shape), leaf.dtype), rows)
        last = jnp.stack([guess.x[0], guess.y[0]])
        return Drive(road, start, guess, last, track)

    def interval(
        self, drive: Drive, fancied: Bool[Array, "S M"], index: Int[Array, ""]
    ) -> tuple[Drive, Metrics]:
        """Sees, plans, drives; the others move."""
        curves, road = self.planner.curves, self.sees(drive.road, drive.start.position)
        phantoms = fancied & road.hidden & ~(road.there & road.known)
        scene = self.believed(road, phantoms, drive.start)
        plan: Plan = self.planner.plan(drive.guess, scene)
        found, followed = plan.trajectories, plan.chosen
        both = jnp.stack([found.x, found.y], 1)
        mine = both[followed]
        motion = curves.at(mine)
        heading = curves.at(found.heading[followed])
        start = Start(motion[:, 0, 1], motion[:, 1, 1], heading[0, 1], heading[1, 1])
        moved = self.moves(road, drive.start)
        near = jnp.sum(jnp.square((start.position - moved.places) / moved.axes), -1)
        near = jnp.where(moved.there, near, jnp.inf)
        apart = curves.at(drive.last)[:, 0, 1:5] - motion[:, 0, :4]
        change = jnp.where(index > 0, jnp.sqrt(jnp.square(apart).sum(0)).max(), 0)
        row = Track(drive.start, road.places, road.known, phantoms, both, followed, change, near)
        track = jax.tree.map(
            lambda rows, one: rows.at[index].set(one, mode="drop"), drive.track, row
        )
        over = index >= drive.track.chosen.shape[0]
        after = Drive(moved, start, shifted(curves, found), mine, track)
        after = jax.tree.map(lambda new, old: jnp.where(over, old, new), after, drive)
        metrics = {
            "clearance": near.min(),
            "collisions": near.min() < 0.49,
            "speed": jnp.linalg.norm(start.velocity),
            "offset": jnp.abs(start.position[1]),
            "change": change,
            "known": jnp.sum(road.known & road.there),
            "kinematic": plan.metrics["kinematic"],
        }
        return after, metrics

    def sees(self, road: Road, eye: Float[Array, " 2"]) -> Road:
        """What is known after a look, and which hidden places there still are."""
        M = self.planner.obstacles
        bodies = jnp.where(road.there[:, None], road.bodies, 0)
        others = jnp.asarray(~np.eye(M, dtype=bool))
        seen = in_view(eye, road.places, road.places, bodies, others)
        looked_into = in_view(eye, road.phantoms, road.places, bodies, others)
        return road._replace(
            known=road.known | (seen & road.there), hidden=road.hidden & ~looked_into
        )

    def believed(self, road: Road, phantoms: Bool[Array, "S M"], start: Start) -> Scene:
        """The hypotheses as a `Scene`."""
        curves = self.planner.curves
        times = jnp.asarray(np.linspace(0, curves.duration, curves.steps), road.speed.dtype)
        known = road.there & road.known
        places = jnp.where(known[:, None], road.places, road.phantoms)
        speeds = jnp.where(known, road.speeds, road.drifts)
        ahead = jnp.stack([speeds[:, None] * times, jnp.zeros((speeds.size, times.size))], 1)
        centres = places[:, :, None] + ahead
        real = known | phantoms
        axes = jnp.where(real[..., None], road.axes, 0)
        # What covers the middle of the lane and is not yet passed.
        in_way = (jnp.abs(places[:, 1]) < road.axes[:, 1]) & (
            places[:, 0] + road.axes[:, 0] > start.position[0]
        )
        evades = (real & in_way).any(1)
        S = phantoms.shape[0]
        return Scene(
            start,
            jnp.broadcast_to(centres, (S, *centres.shape)),
            jnp.broadcast_to(axes[..., None], (S, *centres.shape)),
            jnp.where(evades, road.wary, road.speed),
            jnp.where(evades, road.detour, 0),
        )

    def moves(self, road: Road, ego: Start) -> Road:
        """The other cars an interval later."""
        seconds = self.planner.curves.interval
        pushed = following(
            road.places,
            road.speeds,
            road.wanted,
            2 * road.bodies[:, 0],
            road.there,
            ego.position,
            ego.velocity[0],
            lane=self.lane,
        )
        speeds = jnp.maximum(0, road.speeds + seconds * pushed)
        mean = (road.speeds + speeds) / 2
        return road._replace(
            places=road.places.at[:, 0].add(seconds * mean),
            speeds=speeds,
            phantoms=road.phantoms.at[:, 0].add(seconds * road.drifts),
        )


def paved(road: Any, obstacles: int) -> Road:
    """The road as arrays, after all checks."""
    validation.instance("params", road, Road, "See dflax.robots.Road.")
    places = validation.array("params.places", road.places, kind="real", shape=("B", obstacles, 2))
    count = places.shape[0]
    shapes: dict[str, tuple[Any, Literal["real", "boolean"]]] = {
        "places": ((count, obstacles, 2), "real"),
        "speeds": ((count, obstacles), "real"),
        "wanted": ((count, obstacles), "real"),
        "axes": ((count, obstacles, 2), "real"),
        "bodies": ((count, obstacles, 2), "real"),
        "there": ((count, obstacles), "boolean"),
        "known": ((count, obstacles), "boolean"),
        "phantoms": ((count, obstacles, 2), "real"),
        "drifts": ((count, obstacles), "real"),
        "hidden": ((count, obstacles), "boolean"),
        "speed": ((count,), "real"),
        "detour": ((count,), "real"),
        "wary": ((count,), "real"),
    }
    low = {"speeds": 0.0, "wanted": 0.0, "axes": VOID, "bodies": 0.0, "speed": 0.1, "wary": 0.0}
    made = {}
    for name, (shape, kind) in shapes.items():
        least = low.get(name, -np.inf)
        given = validation.array(
            f"params.{name}", getattr(road, name), kind=kind, shape=shape, low=least
        )
        made[name] = jnp.asarray(given, jnp.result_type(float) if kind == "real" else bool)
    return Road(**made)
