"""CPTO: a trajectory for every hypothesis of what is hidden, all with the same beginning."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from dflax import validation
from dflax.algorithm import Algorithm, FederatedState
from dflax.data.dataset import Dataset
from dflax.local.consensus import Minimised, Nearby, Splitting
from dflax.population import Assignment
from dflax.robots.planning.barrier import Barrier, discrete_barrier, elliptic, outside
from dflax.robots.planning.bernstein import Curves
from dflax.robots.planning.scene import (
    Costs,
    Limits,
    Scene,
    placed,
    require_costs,
    require_limits,
)
from dflax.robots.planning.subproblems import Boxes, Given, Parts, boxes_of, given_by, parts
from dflax.robots.planning.trajectory import Trajectory, guessed
from dflax.server.admm.consensus import consensus
from dflax.server.admm.residuals import Stop


class Segment(NamedTuple):
    """What is shared: the first Nc times of x and y with two derivatives, and of the heading."""

    x: Float[Array, "3 Nc"]
    y: Float[Array, "3 Nc"]
    heading: Float[Array, " Nc"]


class Box(NamedTuple):
    """Slacks of the boxes of x or of y, and their duals, `[4, Nt]` each."""

    above: Float[Array, "4 Nt"]
    below: Float[Array, "4 Nt"]
    of_above: Float[Array, "4 Nt"]
    of_below: Float[Array, "4 Nt"]


class Held(NamedTuple):
    """What one hypothesis remembers between iterations, and what it plans for.

    Attributes:
      course: `[Nt]`, the direction of the velocity.
      feet: `[M, 2, Nt]`, where the polar variables put the car, from each obstacle's centre.
      of_feet: `[M, 2, Nt]`, duals of these.
      of_heading: `[Nt]`, dual of the heading's being the course.
      of_motion: `[2, Nt]`, duals of the kinematics.
      box_x: slacks and duals.
      box_y: the same.
      given: fixed coefficients.
      first_speed: `[]`.
      centres: `[M, 2, Nt]`.
      axes: `[M, 2, Nt]`.
      wanted: `[2]`, speed and y.
    """

    course: Float[Array, " Nt"]
    feet: Float[Array, "M 2 Nt"]
    of_feet: Float[Array, "M 2 Nt"]
    of_heading: Float[Array, " Nt"]
    of_motion: Float[Array, "2 Nt"]
    box_x: Box
    box_y: Box
    given: Given
    first_speed: Float[Array, ""]
    centres: Float[Array, "M 2 Nt"]
    axes: Float[Array, "M 2 Nt"]
    wanted: Float[Array, " 2"]


def cpto(
    curves: Curves,
    hypotheses: int,
    obstacles: int,
    *,
    shared: int = 5,
    penalty: float = 5.0,
    relaxation: float | Float[Array, ""] = 1.0,
    barrier_rate: float | Float[Array, ""] = 0.2,
    costs: Costs = Costs(),  # noqa: B008
    limits: Limits = Limits(),  # noqa: B008
    exact_boxes: bool = False,
    stop: Stop | None = None,
) -> Algorithm:
    """Consistent parallel trajectory optimisation (CPTO), an iteration of ADMM a round.

    For every hypothesis s of what is on the road a plan of x, y and heading psi as curves on [0, T]:

        min  w_s/2 |x''|^2 + w_s/2 |y''|^2 + w_psi/2 |psi''|^2 + w_v/2 |x' - v_s|^2 + w_y/2 |y - y_s|^2
        s.t. start and end;  boxes on x, y and three derivatives;  x' = v cos psi,  y' = v sin psi;
             psi = atan2(y', x');  the barrier around every obstacle (`discrete_barrier`);
             x, x', x'', y, y', y'', psi the same in all hypotheses at the first Nc times

    so that the car may drive the shared segment before it knows which hypothesis is true. It is
    `dflax.server.consensus` whose clients are the hypotheses and whose view is that segment: what they
    send is 7 Nc numbers. The local minimisation is not exact: one sweep over the parts in which the
    problem is convex, each in closed form, with slacks and duals of the local constraints in the
    hypothesis's memory,

        psi       a quadratic around atan2(y', x') and the shared heading
        x, y      quadratics around v (cos psi, sin psi), boxes, ellipses and the shared segment
        v         = |(x', y')|, cut to [0, limits.speed]
        d, alpha  polar coordinates around every obstacle, raised to the barrier
        slacks    over-relaxed: max(0, -r (G c - g) + (1 - r) slack)
        duals     += rho times the residual

    The penalty stays as it is, since the quadratics are inverted once for it. The problem is not
    convex, and what it ends in depends on the guess. Check the segment that is driven, not the whole
    horizon.

    Args:
      curves: of `bernstein`.
      hypotheses: S >= 1.
      obstacles: M >= 1, of the hypothesis that has most.
      shared: Nc in [0, Nt - 3]; 0 plans each hypothesis alone.
      penalty: rho > 0, of all constraints; traceable.
      relaxation: r in [1, 2); traceable.
      barrier_rate: gamma in (0, 1]; traceable.
      costs: weights.
      limits: boxes.
      exact_boxes: whether slacks are chosen with their duals, max(0, dual / rho - r (G c - g) + ...),
        as in the textbook. Without, as in the authors' code, duals of limits grow while these are
        violated and never fall: what it ends in keeps the limits, but is not the optimum where some
        were violated on the way.
      stop: of the shared segment's residuals, see `dflax.server.consensus`; the state stands still then.

    Returns:
      An `Algorithm` with `init(key, guess, scene)`: a `Trajectory`, for example of `straight_guess`, and
      a `Scene`. Rounds come from a `dflax.Population(S)`. Trajectories are
      `state.clients.memory.params`, the segment is `state.server.params`. Metrics, means over
      hypotheses: `kinematic`, `obstacle`, `heading`, `box`, the root of the sum of squares of what is
      violated; `clearance`, the least of (dx/a)^2 + (dy/b)^2; `cost`; and those of
      `dflax.server.consensus`.

    Raises:
      TypeError, ValueError: naming the argument.

    References:
      Zheng et al., Safe and Real-Time Consistent Planning for Autonomous Vehicles in Partially Observed
      Environments via Parallel Consensus Optimization, arXiv 2409.10310; steps as in its sibling,
      Occlusion-Aware Contingency Safety-Critical Planning, arXiv 2502.06359.
    """
    validation.instance("curves", curves, Curves, "For example dflax.robots.bernstein().")
    validation.integer("hypotheses", hypotheses, low=1)
    validation.integer("obstacles", obstacles, low=1)
    validation.integer("shared", shared, low=0, high=curves.steps - 3)
    validation.real("penalty", penalty, low=0.0, low_open=True, scalar=True)
    validation.real("relaxation", relaxation, low=1.0, high=2.0, high_open=True, scalar=True)
    validation.probability("barrier_rate", barrier_rate, low_open=True)
    validation.flag("exact_boxes", exact_boxes)
    require_costs(costs)
    require_limits(limits)
    sweep = Sweep(
        curves,
        shared,
        penalty,
        relaxation,
        discrete_barrier(barrier_rate, curves.steps),
        parts(curves, obstacles, shared, penalty, costs),
        boxes_of(limits),
        limits.speed,
        costs,
        exact_boxes,
    )

    def start(z: Segment, guess: Trajectory, scene: Scene) -> tuple[Trajectory, Held]:
        held = jax.vmap(sweep.begin, in_axes=(0, Scene(None, 0, 0, 0, 0)))(guess, scene)  # type: ignore[arg-type]
        return guess, held

    def minimise(
        assignment: Assignment, own: Splitting, nearby: Nearby, data: Dataset, index: Array
    ) -> Minimised:
        return sweep.once(own, nearby)

    rounds = consensus(minimise, penalty, start=start, view=sweep.segment, stop=stop)

    def init(key: Key[Array, ""], params: Trajectory, scene: Scene) -> FederatedState:
        made = placed(scene, hypotheses, curves.steps, limits)
        if made.centres.shape[1] != obstacles:
            raise ValueError(
                f"scene.centres must be of {obstacles} obstacles, got {made.centres.shape[1]}. Pad "
                "with obstacles whose axes are 0."
            )
        guess = guessed(params, curves, hypotheses)
        zeros = jax.tree.map(lambda leaf: jnp.zeros_like(leaf[0]), jax.vmap(sweep.segment)(guess))
        return rounds.init(key, zeros, guess, made)

    return Algorithm(init, rounds.step)


class Sweep(NamedTuple):
    """One hypothesis's part in an iteration."""

    curves: Curves
    shared: int
    rho: Any
    relaxation: Any
    barrier: Barrier
    solve: Parts
    boxes: tuple[Boxes, Boxes]
    fastest: Any
    costs: Costs
    exact_boxes: bool

    def segment(self, own: Trajectory) -> Segment:
        """The view: what is shared of a hypothesis's trajectory."""
        early = self.curves.values[:3, : self.shared].reshape(-1, self.curves.degree + 1)
        first = self.curves.values[0, : self.shared]
        dtype = own.x.dtype
        x, y = ((c @ jnp.asarray(early.T, dtype)).reshape(3, self.shared) for c in (own.x, own.y))
        return Segment(x, y, own.heading @ jnp.asarray(first.T, dtype))

    def begin(self, guess: Trajectory, scene: Scene) -> Held:
        """What is remembered before the first iteration: nothing violated, no duals."""
        x, y = self.curves.at(guess.x), self.curves.at(guess.y)
        away = jnp.stack([x[0], y[0]]) - scene.centres
        feet = outside(away, scene.axes, discrete_barrier(1.0, self.curves.steps))
        zeros = jnp.zeros_like(x)
        box = Box(zeros, zeros, zeros, zeros)
        return Held(
            jnp.arctan2(y[1], x[1]),
            feet,
            jnp.zeros_like(feet),
            zeros[0],
            zeros[:2],
            box,
            box,
            given_by(self.curves, scene.start, scene.lateral),
            jnp.linalg.norm(scene.start.velocity),
            scene.centres,
            scene.axes,
            jnp.stack([scene.speed, scene.lateral]),
        )

    def once(self, own: Splitting, nearby: Nearby) -> Minimised:
        """The sweep: heading, x and y, speed, polar variables, slacks, duals."""
        held: Held = own.memory
        rho, curves, center = self.rho, self.curves, nearby.center
        solve, (limits_x, limits_y) = self.solve, self.boxes

        weights = jnp.zeros_like(held.box_x.above)
        turned = weights.at[0].set(rho * held.course + held.of_heading)
        turned = turned.at[0, : self.shared].add(rho * center.heading)
        heading = solve.heading.minimum(curves.against(turned), held.given.heading)
        psi = curves.at(heading)[0]
        along = jnp.stack([jnp.cos(psi), jnp.sin(psi)])
        motion = rho * own.params.speed * along + held.of_motion
        around = jnp.sum(rho * (held.centres + held.feet) + held.of_feet, axis=0)

        x = self._drawn(held.box_x, limits_x, around[0], motion[0], center.x)
        x = x.at[1].add(self.costs.speed * held.wanted[0])
        y = self._drawn(held.box_y, limits_y, around[1], motion[1], center.y)
        y = y.at[0, self.shared + 2 :].add(self.costs.lateral * held.wanted[1])
        c_x = solve.x.minimum(curves.against(x), held.given.x)
        c_y = solve.y.minimum(curves.against(y), held.given.y)

        x, y = curves.at(c_x), curves.at(c_y)
        speed = jnp.clip(jnp.hypot(x[1], y[1]), 0, self.fastest).at[0].set(held.first_speed)
        away = jnp.stack([x[0], y[0]]) - held.centres
        feet = outside(away, held.axes, self.barrier)
        course = jnp.arctan2(y[1], x[1])
        # The turn of the course nearest to the heading.
        course = course - 2 * jnp.pi * jnp.round((course - psi) / (2 * jnp.pi))
        wrong = jnp.stack([x[1], y[1]]) - speed * along
        box_x, box_y = self._boxed(held.box_x, limits_x, x), self._boxed(held.box_y, limits_y, y)
        after = held._replace(
            course=course,
            feet=feet,
            of_feet=held.of_feet - rho * (away - feet),
            of_heading=held.of_heading - rho * (psi - course),
            of_motion=held.of_motion - rho * wrong,
            box_x=box_x,
            box_y=box_y,
        )
        found = Trajectory(c_x, c_y, heading, speed)
        metrics = self._measured(held, found, nearby, x, y, psi, away, feet, course, wrong)
        return Minimised(found, after, metrics)

    def _drawn(
        self, box: Box, limits: Boxes, around: Array, motion: Array, center: Array
    ) -> Float[Array, "4 Nt"]:
        """What pulls at values and derivatives of x or y: boxes, obstacles, motion, shared segment."""
        pull = self.rho * (limits.high + limits.low + box.below - box.above)
        pull = pull + box.of_above - box.of_below
        pull = pull.at[0].add(around).at[1].add(motion)
        return pull.at[:3, : self.shared].add(self.rho * center)

    def _boxed(self, box: Box, limits: Boxes, values: Array) -> Box:
        """Slacks, over-relaxed, and the duals of the boxes."""
        r, rho = self.relaxation, self.rho

        def one(over: Array, slack: Array, dual: Array) -> tuple[Array, Array]:
            free = (1 - r) * slack - r * over
            new = jnp.maximum(0, free + dual / rho if self.exact_boxes else free)
            return new, dual - rho * (new - free)

        above, of_above = one(values - limits.high, box.above, box.of_above)
        below, of_below = one(limits.low - values, box.below, box.of_below)
        return Box(above, below, of_above, of_below)

    def _measured(
        self,
        held: Held,
        found: Trajectory,
        nearby: Nearby,
        x: Array,
        y: Array,
        psi: Array,
        away: Array,
        feet: Array,
        course: Array,
        wrong: Array,
    ) -> dict[str, Array]:
        """Residuals, clearance and cost of one hypothesis."""
        costs = self.costs

        def size(*parts: Array) -> Array:
            return jnp.sqrt(sum(jnp.sum(jnp.square(part)) for part in parts))

        out = [
            jnp.maximum(0, values - box.high) + jnp.maximum(0, box.low - values)
            for values, box in zip((x, y), self.boxes, strict=True)
        ]
        late = y[0, self.shared + 2 :] - held.wanted[1]
        turn = self.curves.at(found.heading)[2]
        cost = (
            costs.acceleration * (jnp.sum(x[2] ** 2) + jnp.sum(y[2] ** 2))
            + costs.turning * jnp.sum(turn**2)
            + costs.speed * jnp.sum((x[1] - held.wanted[0]) ** 2)
            + costs.lateral * jnp.sum(late**2)
        ) / 2
        return {
            "kinematic": size(wrong),
            "obstacle": size(away - feet),
            "heading": size(psi - course),
            "box": size(*out),
            "clearance": jnp.min(jnp.square(elliptic(away, held.axes))),
            "cost": cost,
        }
