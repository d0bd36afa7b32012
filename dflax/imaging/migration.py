"""Images straight from the measurements: back-projection and Kirchhoff migration."""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Complex

from dflax import validation
from dflax.imaging.geometry import LIGHT, Geometry, distances


def back_projection(
    geometry: Geometry, measurements: Complex[Array, "B F T R"]
) -> Complex[Array, "B X Y Z"]:
    """The phase-only matched filter: sum over f, t, r of exp(i k_f (R_t + R_r)) y[f, t, r].

    Args:
      geometry: see `geometry`.
      measurements: y.

    Raises:
      TypeError, ValueError: naming the argument.
    """
    y = _checked(geometry, measurements)
    return _migrated(geometry, y, lambda k: jnp.ones((), y.dtype))


def kirchhoff(
    geometry: Geometry, measurements: Complex[Array, "B F T R"]
) -> Complex[Array, "B X Y Z"]:
    """Kirchhoff migration: back-projection with the weights of the far field's surface integrals.

        4 (dR_r/dz) (dR_t/dz) (R_r R_t (i k)^2 + (R_r + R_t) i k + 1) exp(i k (R_r + R_t)) y

    summed over f, t, r, with dR/dz = (z - z_antenna) / R.

    Args:
      geometry: as in `back_projection`.
      measurements: as in `back_projection`.

    Raises:
      TypeError, ValueError: naming the argument.
    """
    y = _checked(geometry, measurements)
    (to, up), (back, down) = (
        _with_slopes(antennas, geometry) for antennas in (geometry.transmitters, geometry.receivers)
    )
    slopes = 4 * up[:, None] * down[None]
    product, total = to[:, None] * back[None], to[:, None] + back[None]

    def weights(k: Array) -> Array:
        return slopes * jax.lax.complex(1 - product * k * k, total * k)

    return _migrated(geometry, y, weights)


def _migrated(geometry: Geometry, y: Array, weights: Callable[[Array], Array]) -> Array:
    to, back = (distances(own, geometry.axes) for own in geometry[:2])
    lengths = to[:, None] + back[None]

    def add(total: Array, row: tuple[Array, Array]) -> tuple[Array, None]:
        frequency, own = row
        k = 2 * math.pi / LIGHT * frequency
        filters = weights(k) * jax.lax.complex(jnp.cos(k * lengths), jnp.sin(k * lengths))
        return total + jnp.einsum("btr,trxyz->bxyz", own, filters, precision="highest"), None

    zero = jnp.zeros((y.shape[0], *geometry.voxels), y.dtype)
    return jax.lax.scan(add, zero, (geometry.frequencies, jnp.moveaxis(y, 1, 0)))[0]


def _with_slopes(antennas: Array, geometry: Geometry) -> tuple[Array, Array]:
    """R and dR/dz, `[n, X, Y, Z]`."""
    R = distances(antennas, geometry.axes)
    return R, (geometry.axes[2] - antennas[:, 2, None, None, None]) / R


def _checked(geometry: Geometry, measurements: Array) -> Array:
    validation.instance("geometry", geometry, Geometry, "For example crossed_diagonals().")
    shape = ("B", *geometry.measured)
    validation.array("measurements", measurements, kind="complex", shape=shape)
    y = jnp.asarray(measurements)
    return y.astype(jnp.promote_types(y.dtype, jnp.complex64))
