"""Points on a sphere that keep a distance from each other, with labels that mean nothing."""

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key

from dflax import validation
from dflax.data.dataset import Dataset, Split
from dflax.data.partition import Partition
from dflax.data.problems.synthetic import equal_clients, seeded

# Points tried in a row without finding room for one more.
TRIES = 10_000


class Separated(NamedTuple):
    """Unit vectors at least `separation` apart, dealt evenly to clients.

    Attributes:
      data: inputs `[n J, d]`, labels `[n J]` of -1.0 and 1.0; test is training.
      partition: the J examples of each client.
      separation: the least distance between two inputs, measured.
    """

    data: Split
    partition: Partition
    separation: float


def separated(
    key: Key[Array, ""], clients: int, samples: int, dimension: int, separation: float
) -> Separated:
    """The synthetic data of over-parameterised theory: whatever is far enough apart can be fitted.

    Inputs have |x| = 1 and last coordinate 1/2; the rest is uniform in direction, drawn one after
    another and kept if it is at least `separation` away from all that were kept before. Labels are -1
    or 1 with equal chance, independent of everything. Perturbations of radius rho can be told apart
    where separation > 2 rho.

    Args:
      key: typed key.
      clients: n >= 1.
      samples: J >= 1 of each client.
      dimension: d >= 3.
      separation: > 0 and at most sqrt(3), the diameter of the sphere that the points lie on.

    Returns:
      A `Separated`.

    Raises:
      ValueError, TypeError: an argument out of range, or no room found for n J points.

    References:
      Li, Song and Yang, Federated Adversarial Learning, arXiv 2208.03635.
    """
    generator = seeded(key)
    validation.integer("clients", clients, low=1)
    validation.integer("samples", samples, low=1)
    validation.integer("dimension", dimension, low=3)
    validation.real("separation", separation, low=0.0, low_open=True, high=3**0.5, scalar=True)
    count = clients * samples
    kept = np.empty((count, dimension), np.float32)
    for place in range(count):
        kept[place] = _with_room(generator, kept[:place].astype(np.float64), separation, count)
    labels = generator.choice(np.array([-1.0, 1.0], np.float32), count)
    data = Dataset(jnp.asarray(kept), jnp.asarray(labels), name="separated")
    return Separated(Split(data, data), equal_clients(clients, samples), _least_distance(kept))


def _with_room(
    generator: np.random.Generator, others: Float[np.ndarray, "k d"], separation: float, count: int
) -> Float[np.ndarray, " d"]:
    dimension = others.shape[1]
    for _ in range(TRIES):
        direction = generator.normal(size=dimension - 1)
        direction *= 0.75**0.5 / np.linalg.norm(direction)
        point = np.append(direction, 0.5).astype(np.float32)
        if not len(others) or np.linalg.norm(others - point, axis=1).min() >= separation:
            return point
    raise ValueError(
        f"separation must leave room for {count} points in {dimension} dimensions, got {separation}: "
        f"none found for point {len(others)} in {TRIES} tries. Ask for less of it, or for fewer points."
    )


def _least_distance(points: Float[np.ndarray, "N d"]) -> float:
    wide = np.asarray(points, np.float64)
    if len(wide) == 1:
        return float("inf")
    gaps = np.linalg.norm(wide[:, None] - wide[None], axis=-1)
    return float(gaps[~np.eye(len(wide), dtype=bool)].min())
