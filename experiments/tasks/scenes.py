"""Scenes for near-field imaging: a few boxes and plates of random phase in an empty box of voxels."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Complex, Float, Key

from dflax.imaging import Operator, noisy

MOST = 3


class Imaged(NamedTuple):
    """Scenes and what was measured of them.

    Attributes:
      reflectivity: `[B, X, Y, Z]`, of greatest magnitude 1.
      measurements: `[B, F, T, R]`.
      radius: `[B]`, of the noise's ball.
    """

    reflectivity: Complex[Array, "B X Y Z"]
    measurements: Complex[Array, "B F T R"]
    radius: Float[Array, " B"]


@functools.partial(jax.jit, static_argnums=(1, 2))
def magnitudes(
    key: Key[Array, ""], count: int, voxels: tuple[int, int, int]
) -> Float[Array, "B X Y Z"]:
    """One to three boxes or plates with soft faces, where they meet the brighter; greatest value 1.

    A box has sides of 1 to 4 voxels, a plate of 1 voxel along one axis and 2 to 7 along the others,
    both scaled with the grid (13 voxels across). Centers are uniform, brightness is in [0.4, 1].
    """
    return jax.vmap(functools.partial(_magnitude, voxels=voxels))(jax.random.split(key, count))


def _magnitude(key: Key[Array, ""], voxels: tuple[int, int, int]) -> Float[Array, "X Y Z"]:
    keys = jax.random.split(key, 8)
    sides = jnp.array(voxels, jnp.float32)
    fine = max(voxels[0] / 13, 1.0)
    number = jax.random.randint(keys[0], (), 1, MOST + 1)
    plate = jax.random.bernoulli(keys[1], 0.5, (MOST, 1))
    thin = jax.nn.one_hot(jax.random.randint(keys[2], (MOST,), 0, 3), 3) > 0
    boxes = jax.random.uniform(keys[3], (MOST, 3), minval=0.5, maxval=2.0)
    plates = jnp.where(thin, 0.5, jax.random.uniform(keys[4], (MOST, 3), minval=1.0, maxval=3.5))
    half = fine * jnp.where(plate, plates, boxes)
    center = jax.random.uniform(keys[5], (MOST, 3)) * (sides - 1)
    bright = jax.random.uniform(keys[6], (MOST,), minval=0.4, maxval=1.0)
    soft = fine * jax.random.uniform(keys[7], (MOST,), minval=0.1, maxval=0.4)
    places = jnp.stack(jnp.meshgrid(*map(jnp.arange, voxels), indexing="ij"), -1)
    away = jnp.abs(places[None] - center[:, None, None, None])
    within = jax.nn.sigmoid(
        (half[:, None, None, None] - away) / soft[:, None, None, None, None]
    ).prod(-1)
    shown = jnp.where(jnp.arange(MOST) < number, bright, 0)[:, None, None, None] * within
    m = shown.max(0)
    m = m / m.max()
    return jnp.where(m < 0.05, 0, m)


def scenes(
    key: Key[Array, ""], count: int, voxels: tuple[int, int, int]
) -> Complex[Array, "B X Y Z"]:
    """Scenes with a phase of its own, uniform, in every voxel."""
    shapes, phases = jax.random.split(key)
    m = magnitudes(shapes, count, voxels)
    return m * jnp.exp(1j * jax.random.uniform(phases, m.shape, maxval=2 * jnp.pi))


def imaged(key: Key[Array, ""], operator: Operator, count: int, decibels: float) -> Imaged:
    """Scenes, measured with noise."""
    drawn, noises = jax.random.split(key)
    x = scenes(drawn, count, operator.voxels)
    keys = jax.random.split(noises, count)
    return Imaged(x, *_measured(operator.forward, operator.arrays, x, keys, decibels))


@functools.partial(jax.jit, static_argnums=0)
def _measured(
    forward: Callable[..., Array], arrays: Any, x: Array, keys: Array, decibels: float
) -> tuple[Array, Array]:
    clean = jax.vmap(forward, (None, 0))(arrays, x)
    return jax.vmap(noisy, (0, 0, None))(keys, clean, decibels)
