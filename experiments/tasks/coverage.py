"""Areas to be covered as a density asks, and missions over them."""

import functools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

import dflax as dx
from dflax import robots
from dflax.algorithm import Algorithm
from dflax.data.dataset import AnyArray

MEANS = np.array([(0.25, 0.25), (0.75, 0.6), (0.3, 0.8)])
DEVIATIONS = np.array([0.06, 0.1, 0.05])
SHARES = np.array([0.3, 0.5, 0.2])
INTERVAL, BOUND, SPEED, HORIZON = 0.1, 0.5, 0.3, 10


class Area(NamedTuple):
    """A density and where agents start.

    Attributes:
      samples: `[N, 2]`, points of three Gaussians in the unit square.
      places: `[n, 2]`, uniform.
    """

    samples: Float[np.ndarray, "N 2"]
    places: Float[np.ndarray, "n 2"]


def area(seed: int, agents: int = 4, samples: int = 400) -> Area:
    """The area of a seed."""
    rng = np.random.default_rng(seed)
    which = rng.choice(3, samples, p=SHARES)
    points = MEANS[which] + DEVIATIONS[which][:, None] * rng.normal(size=(samples, 2))
    return Area(points.astype(np.float32), rng.random((agents, 2)).astype(np.float32))


def areas(seeds: Sequence[int], agents: int = 4, samples: int = 400) -> Area:
    """Those of several seeds, leaves `[seeds, ...]`."""
    return Area(*(np.stack(rows) for rows in zip(*(area(s, agents, samples) for s in seeds))))  # noqa: B905


def density_driven(
    agents: int,
    steps: int,
    *,
    law: str = "optimal",
    radio: float | Array = jnp.inf,
    sequential: bool = True,
) -> Algorithm:
    """D2OC of double integrators; "straight" is the law D2C."""
    model = robots.double_integrator(INTERVAL, bound=BOUND, speed=SPEED)
    cost = 0.01 / (agents * steps)
    controller = (
        robots.linear_quadratic(model, HORIZON, input_cost=cost)
        if law == "optimal"
        else robots.straight(model, SPEED)
    )
    return robots.d2oc(model, controller, agents, steps, radio=radio, sequential=sequential)


def missions(
    algorithm: Algorithm, steps: int
) -> Callable[[Area], tuple[Float[Array, "seeds n steps 2"], dict[str, Array]]]:
    """The compiled function from areas, one a seed, to the places visited and metrics `[seeds, T]`."""

    def one(samples: Array, places: Array) -> tuple[Array, dict[str, Array]]:
        key = jax.random.key(0)
        state = algorithm.init(key, places, samples)
        source = dx.Population(places.shape[0])
        state, metrics = dx.rollout(algorithm, state, source, key, steps)
        return state.clients.visited, metrics

    return jax.jit(lambda area: jax.lax.map(lambda each: one(*each), area))


@functools.cache
def flown(name: str, agents: int, steps: int) -> Callable[[Area], tuple[Array, dict[str, Array]]]:
    """The missions of a method of the study."""
    made = {
        "D2OC": lambda: density_driven(agents, steps),
        "D2OC, reach 0.3": lambda: density_driven(agents, steps, radio=0.3),
        "D2OC, all at once": lambda: density_driven(agents, steps, sequential=False),
        "D2OC, no sharing": lambda: density_driven(agents, steps, radio=1e-6),
        "D2C": lambda: density_driven(agents, steps, law="straight"),
        "SMC": lambda: robots.spectral_coverage(agents, steps, SPEED, interval=INTERVAL),
    }
    return missions(made[name](), steps)


def distances(visited: AnyArray, samples: np.ndarray) -> Float[np.ndarray, " seeds"]:
    """The 2-Wasserstein distance of each seed's mission."""
    return np.array(
        [robots.wasserstein(v, z) for v, z in zip(np.asarray(visited), samples, strict=True)]
    )
