"""A scene of two hypotheses that want to opposite sides, and iterations of CPTO on it."""

from typing import Any

import jax
import numpy as np

import dflax as dx
from dflax import robots

CURVES = robots.bernstein()
SEEN = (10, 100, 300)


def crossing() -> robots.Scene:
    """A car drives ahead at 2 m/s; another one stands at the right in the first hypothesis alone."""
    centres, axes = np.zeros((2, 2, 2, CURVES.steps)), np.zeros((2, 2, 2, CURVES.steps))
    times = np.linspace(0, CURVES.duration, CURVES.steps)
    centres[:, 0, 0], centres[:, 0, 1] = 16 + 2 * times, 0.2
    centres[:, 1, 0], centres[:, 1, 1] = 20, -3
    axes[:, :, 0], axes[:, :, 1] = 4, 2.2
    axes[1, 1] = 0
    start = robots.Start(np.zeros(2), np.array([7.0, 0.0]), np.float64(0), np.float64(0))
    return robots.Scene(start, centres, axes, np.full(2, 7.0), np.array([3.0, -3.0]))


def planned(shared: int = 5, **options: Any) -> dict[str, np.ndarray]:
    """The two plans after 10, 100 and 300 iterations, and what is measured there.

    `places` `[3, 2, 2, Nt]`, x and y of both hypotheses; `spread`, the largest distance between their y
    at the first shared times (5 where none are); `clearance`, the least (dx/a)^2 + (dy/b)^2 in the
    first hypothesis; `kinematic`, the residual.
    """
    scene = crossing()
    algorithm = robots.cpto(CURVES, 2, 2, shared=shared, **options)
    source = dx.Population(2)
    key = jax.random.key(0)

    def step(state: Any, _: None) -> tuple[Any, Any]:
        state, metrics = algorithm.step(state, source.draw(key, 0))
        found = state.clients.memory.params
        return state, (found.x, found.y, metrics["kinematic"])

    @jax.jit
    def run() -> Any:
        state = algorithm.init(key, robots.straight_guess(CURVES, scene), scene)
        return jax.lax.scan(step, state, None, length=SEEN[-1])[1]

    x, y, kinematic = (np.asarray(leaf)[np.array(SEEN) - 1] for leaf in run())
    places = np.stack([x, y], 2) @ CURVES.values[0].T
    away = (places[:, 0, None] - scene.centres[0]) / scene.axes[0]
    first = places[:, :, 1, : shared or 5]
    return {
        "places": places,
        "spread": np.ptp(first, axis=1).max(1),
        "clearance": np.square(away).sum(2).min((1, 2)),
        "kinematic": kinematic * np.sqrt(2),
    }
