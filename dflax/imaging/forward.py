"""Forward models: from complex reflectivities of voxels to what antennas measure, and back."""

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Complex, Float, PyTree

from dflax import validation
from dflax.imaging.geometry import LIGHT, Geometry, distances

Reflectivity = Complex[Array, "X Y Z"]
Measurements = Complex[Array, "F T R"]
HIGHEST = jax.lax.Precision.HIGHEST


class Operator(NamedTuple):
    """A linear forward model A; its arrays are arguments of its functions, never closed over.

    Attributes:
      forward: `(arrays, x [X, Y, Z]) -> A x [F, T, R]`.
      adjoint: `(arrays, y [F, T, R]) -> A^H y [X, Y, Z]`.
      gram: `arrays -> A A^H`, `[M, M]` with M = F T R.
      of_receivers: `arrays -> ` the arrays of every receiver's own model of (F, T, 1) measurements,
        leaves `[R, ...]`.
      arrays: what the model is made of.
      measured: (F, T, R), static.
      voxels: (X, Y, Z), static.
    """

    forward: Callable[[PyTree[Array], Reflectivity], Measurements]
    adjoint: Callable[[PyTree[Array], Measurements], Reflectivity]
    gram: Callable[[PyTree[Array]], Complex[Array, "M M"]]
    of_receivers: Callable[[PyTree[Array]], PyTree[Array]]
    arrays: PyTree[Array]
    measured: tuple[int, int, int]
    voxels: tuple[int, int, int]


def dense(geometry: Geometry) -> Operator:
    """The Born approximation in free space as a matrix, 8 F T R X Y Z bytes.

        A[f, t, r, v] = exp(-i k_f (R_t(v) + R_r(v))) / (4 pi R_t(v) R_r(v)),    k_f = 2 pi f / c

    with R_t, R_r the distances from voxel v to transmitter and receiver.

    Args:
      geometry: see `geometry` and `crossed_diagonals`.

    Raises:
      TypeError: naming the argument.
    """
    _check(geometry)
    matrix = jax.lax.map(functools.partial(_at_frequency, *_paths(geometry)), geometry.frequencies)

    def of_receivers(matrix: Array) -> Array:
        return jnp.moveaxis(matrix[:, :, :, None], 2, 0)

    return Operator(
        dense_forward,
        dense_adjoint,
        dense_gram,
        of_receivers,
        matrix,
        geometry.measured,
        geometry.voxels,
    )


def dense_forward(matrix: Complex[Array, "F T R X Y Z"], x: Reflectivity) -> Measurements:
    """A x."""
    flat = matrix.reshape(-1, x.size)
    return jnp.matmul(flat, x.reshape(-1), precision=HIGHEST).reshape(matrix.shape[:3])


def dense_adjoint(matrix: Complex[Array, "F T R X Y Z"], y: Measurements) -> Reflectivity:
    """A^H y, as the conjugate of A^T times the conjugate, so that no conjugated matrix is made."""
    flat = matrix.reshape(y.size, -1)
    back = jnp.matmul(y.conj().reshape(-1), flat, precision=HIGHEST)
    return back.conj().reshape(matrix.shape[3:])


def dense_gram(matrix: Complex[Array, "F T R X Y Z"]) -> Complex[Array, "M M"]:
    """A A^H."""
    flat = matrix.reshape(math.prod(matrix.shape[:3]), -1)
    return jnp.matmul(flat, flat.conj().T, precision=HIGHEST)


def low_memory(geometry: Geometry, *, at_once: int = 1) -> Operator:
    """The same model as `dense`, whose matrix is made anew for some frequencies at a time.

    It holds the paths' lengths and amplitudes, 8 T R X Y Z bytes, and `at_once` times as much again.

    Args:
      geometry: as in `dense`.
      at_once: frequencies at the same time, >= 1.

    Raises:
      TypeError, ValueError: naming the argument.
    """
    _check(geometry)
    validation.integer("at_once", at_once, low=1)

    def forward(model: Geometry, x: Reflectivity) -> Measurements:
        paths = _paths(model)

        def one(frequency: Array) -> Array:
            return dense_forward(_at_frequency(*paths, frequency)[None], x)[0]

        return jax.lax.map(one, model.frequencies, batch_size=at_once)

    def adjoint(model: Geometry, y: Measurements) -> Reflectivity:
        paths = _paths(model)

        def add(total: Array, row: tuple[Array, Array]) -> tuple[Array, None]:
            frequency, own = row
            return total + dense_adjoint(_at_frequency(*paths, frequency)[None], own[None]), None

        zero = jnp.zeros([len(side) for side in model.axes], y.dtype)
        return jax.lax.scan(add, zero, (model.frequencies, y))[0]

    def of_receivers(model: Geometry) -> Geometry:
        count = len(model.receivers)
        every = jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, (count, *leaf.shape)), model)
        return every._replace(receivers=model.receivers[:, None])

    return Operator(
        forward,
        adjoint,
        low_memory_gram,
        of_receivers,
        geometry,
        geometry.measured,
        geometry.voxels,
    )


def low_memory_gram(model: Geometry) -> Complex[Array, "M M"]:
    """A A^H, summed over planes of voxels along z."""

    def add(total: Array, depth: Array) -> tuple[Array, None]:
        paths = _paths(model._replace(axes=(*model.axes[:2], depth[None])))
        plane = jax.vmap(lambda f: _at_frequency(*paths, f))(model.frequencies)
        flat = plane.reshape(total.shape[0], -1)
        return total + jnp.matmul(flat, flat.conj().T, precision=HIGHEST), None

    count = math.prod(model.measured)
    kind = jnp.result_type(model.frequencies.dtype, jnp.complex64)
    return jax.lax.scan(add, jnp.zeros((count, count), kind), model.axes[2])[0]


def noisy(
    key: Any, clean: Complex[Array, "*S"], decibels: float | Float[Array, ""]
) -> tuple[Complex[Array, "*S"], Float[Array, ""]]:
    """Measurements of a scene with circular Gaussian noise, and the radius sqrt(M) sigma of its ball.

        sigma^2 = mean |A x|^2 / 10^(SNR / 10), half of it in each of real and imaginary part

    Args:
      key: a typed key.
      clean: A x, of any shape.
      decibels: the signal-to-noise ratio; traceable.

    Raises:
      TypeError, ValueError: naming the argument.
    """
    validation.typed_key("key", key)
    fix = "Without measurements there is no noise."
    clean = jnp.asarray(validation.array("clean", clean, kind="complex", fix=fix))
    if not clean.ndim or not clean.size:
        raise ValueError(f"clean must be measurements of some shape, got {clean.shape}. {fix}")
    validation.real("decibels", decibels, scalar=True)
    sigma = jnp.sqrt(jnp.mean(jnp.square(jnp.abs(clean))) * 10 ** (-decibels / 10))
    real, imaginary = jax.random.normal(key, (2, *clean.shape), sigma.dtype) * sigma / math.sqrt(2)
    return clean + jax.lax.complex(real, imaginary), sigma * math.sqrt(clean.size)


def _paths(model: Geometry) -> tuple[Array, Array]:
    """Lengths R_t + R_r and amplitudes 1 / (4 pi R_t R_r), `[T, R, X, Y, Z]`."""
    to = distances(model.transmitters, model.axes)[:, None]
    back = distances(model.receivers, model.axes)[None]
    return to + back, 1 / (4 * math.pi * to * back)


def _at_frequency(lengths: Array, amplitudes: Array, frequency: Array) -> Array:
    """A of one frequency, `[T, R, X, Y, Z]`."""
    phase = (2 * math.pi / LIGHT) * frequency * lengths
    return jax.lax.complex(amplitudes * jnp.cos(phase), -amplitudes * jnp.sin(phase))


def _check(geometry: Geometry) -> None:
    validation.instance("geometry", geometry, Geometry, "For example crossed_diagonals().")
