"""A plan as one program: iterations of CPTO, which trajectory to follow, and the next guess."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from dflax import validation
from dflax.algorithm import Algorithm
from dflax.population import Population
from dflax.robots.planning.barrier import elliptic
from dflax.robots.planning.bernstein import Curves
from dflax.robots.planning.cpto import cpto
from dflax.robots.planning.scene import Scene
from dflax.robots.planning.trajectory import Trajectory

# Costs that are apart by a smaller share are the same.
ROUNDING = 1e-5


class Plan(NamedTuple):
    """What planning gives.

    Attributes:
      trajectories: of all hypotheses.
      chosen: `[]` the hypothesis whose trajectory is followed.
      metrics: of the last iteration, see `cpto`.
    """

    trajectories: Trajectory
    chosen: Int[Array, ""]
    metrics: dict[str, Array]


class Planner(NamedTuple):
    """A planner.

    Attributes:
      curves: what trajectories are made of.
      hypotheses: S.
      obstacles: M.
      algorithm: an iteration a round.
      plan: `(guess, scene) -> Plan`.
    """

    curves: Curves
    hypotheses: int
    obstacles: int
    algorithm: Algorithm
    plan: Callable[[Trajectory, Scene], Plan]


class Preferences(NamedTuple):
    """Weights of the choice among trajectories, each cost scaled to [0, 1] over them; >= 0; traceable.

    Attributes:
      speed: of the mean distance from the wanted speed.
      jerk: of its mean size.
      lateral: of the mean distance from y = 0, the first six times and then less and less.
      obstacles: of how far the trajectory is inside of what it should be out of.
    """

    speed: float | Array = 200.0
    jerk: float | Array = 20.0
    lateral: float | Array = 20.0
    obstacles: float | Array = 40.0


def planner(
    curves: Curves,
    hypotheses: int,
    obstacles: int,
    iterations: int = 100,
    *,
    preferences: Preferences = Preferences(),  # noqa: B008
    **options: Any,
) -> Planner:
    """CPTO from a guess in a fixed number of iterations, for one scene or, under `jax.vmap`, for many.

    Args:
      curves: of `bernstein`.
      hypotheses: S >= 1.
      obstacles: M >= 1.
      iterations: of ADMM, >= 1; multipliers start at 0.
      preferences: by which one of the S trajectories is chosen. In the shared segment all are the same.
      **options: of `cpto`.

    Returns:
      A `Planner`.

    Raises:
      TypeError, ValueError: naming the argument.
    """
    validation.integer("iterations", iterations, low=1)
    fix = "For example dflax.robots.Preferences()."
    validation.instance("preferences", preferences, Preferences, fix)
    for name, value in preferences._asdict().items():
        validation.real(f"preferences.{name}", value, low=0.0, scalar=True)
    algorithm = cpto(curves, hypotheses, obstacles, **options)
    source = Population(hypotheses)

    def plan(guess: Trajectory, scene: Scene) -> Plan:
        key = jax.random.key(0)  # Nothing is drawn: there is no chance in it.
        state = algorithm.init(key, guess, scene)
        round = source.draw(key, jnp.int32(0))
        state = jax.lax.fori_loop(
            0, iterations - 1, lambda _, state: algorithm.step(state, round)[0], state
        )
        state, metrics = algorithm.step(state, round)
        found = state.clients.memory
        wrong = _inside(curves, found.params, scene)
        return Plan(found.params, chosen(curves, preferences, found.params, scene, wrong), metrics)

    return Planner(curves, hypotheses, obstacles, algorithm, plan)


def chosen(
    curves: Curves,
    preferences: Preferences,
    found: Trajectory,
    scene: Scene,
    wrong: Float[Array, " S"],
) -> Int[Array, ""]:
    """The trajectory of the least weighted cost; of equals the first."""
    x, y = curves.at(found.x), curves.at(found.y)
    weights = jnp.exp(-np.maximum(np.arange(curves.steps) - 5, 0) / 4)
    parts = jnp.stack(
        [
            jnp.abs(jnp.hypot(x[:, 1], y[:, 1]) - scene.speed[:, None]).mean(1),
            jnp.hypot(x[:, 3], y[:, 3]).mean(1),
            (weights * jnp.abs(y[:, 0])).mean(1),
            wrong,
        ]
    )
    least, most = parts.min(1, keepdims=True), parts.max(1, keepdims=True)
    # Differences of rounding are none.
    differ = most - least > ROUNDING * (1 + most)
    scaled = jnp.where(differ, (parts - least) / jnp.where(differ, most - least, 1), 0)
    weighed = jnp.stack([jnp.asarray(w, scaled.dtype) for w in preferences]) @ scaled
    return jnp.argmin(weighed).astype(jnp.int32)


def _inside(curves: Curves, found: Trajectory, scene: Scene) -> Float[Array, " S"]:
    """How deep trajectories are inside of ellipses: the root of the squares over obstacles and times."""
    places = jnp.stack([curves.at(found.x)[:, 0], curves.at(found.y)[:, 0]], 1)
    away = places[:, None] - scene.centres
    distance = elliptic(away, scene.axes)
    return jnp.sqrt(jnp.sum(jnp.square(jnp.maximum(0, 1 - distance)), axis=(1, 2)))


def shifted(curves: Curves, plans: Trajectory) -> Trajectory:
    """The plans as they look one interval later, refitted: a guess for the next time.

    Values at t_1 .. t_{Nt-1}, and one more along the last difference.
    """
    steps = curves.steps
    later = np.eye(steps, k=1)
    later[-1, -2:] = [-1, 2]
    refit = curves.fit @ later @ curves.values[0]

    def moved(coefficients: Array) -> Array:
        return coefficients @ jnp.asarray(refit.T, coefficients.dtype)

    speed = jnp.concatenate([plans.speed[:, 1:], plans.speed[:, -1:]], axis=1)
    return Trajectory(moved(plans.x), moved(plans.y), moved(plans.heading), speed)
