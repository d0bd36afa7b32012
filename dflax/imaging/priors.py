"""Priors of reflectivities: sparse, of small variation, learned; what they say of phases."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Complex, Float, PyTree

from dflax import validation
from dflax.imaging.denoiser import WEIGHTS, check_weights, noise_removed, unflattened
from dflax.local.convex.proximal import on_magnitude

Magnitude = Float[Array, "X Y Z"]
Denoise = Callable[[PyTree[Array], Magnitude, Float[Array, ""]], Magnitude]


class Prior(NamedTuple):
    """A regulariser R of scenes by its prox; weights are arguments, never closed over.

    Attributes:
      prox: `(weights, z [X, Y, Z], alpha) -> argmin_v R(v) + |v - z|^2 / (2 alpha)`, or a denoiser for
        noise of variance alpha in its place.
      weights: what the prox has learned; () for nothing.
    """

    prox: Callable[
        [PyTree[Array], Complex[Array, "X Y Z"], Float[Array, ""]], Complex[Array, "X Y Z"]
    ]
    weights: PyTree[Array] = ()


def of_magnitude(
    prox: Denoise, weights: PyTree[Array] = (), *, scale_invariant: bool = False
) -> Prior:
    """A prior of the magnitudes alone; phases are free. See `dflax.local.on_magnitude`.

    Args:
      prox: `(weights, m [X, Y, Z], alpha) -> p`, of magnitudes m >= 0.
      weights: any tree of arrays.
      scale_invariant: whether m is divided by its greatest value c before, and the result multiplied by
        c, so that a network works on scenes of any brightness.

    Raises:
      TypeError, ValueError: naming the argument.
    """
    validation.function("prox", prox, takes=3)
    validation.arrays("weights", weights)
    validation.flag("scale_invariant", scale_invariant)

    def apply(weights: PyTree[Array], z: Array, alpha: Array) -> Array:
        def denoise(m: Array) -> Array:
            c = jnp.maximum(m.max(), jnp.finfo(m.dtype).tiny) if scale_invariant else 1
            return c * prox(weights, m / c, alpha)

        return on_magnitude(denoise, z)

    return Prior(apply, weights)


def zero_phase(prox: Denoise, weights: PyTree[Array] = ()) -> Prior:
    """The same prox on scenes that are real and >= 0: an assumption that rough surfaces break.

    Args:
      prox: as in `of_magnitude`.
      weights: as in `of_magnitude`.

    Raises:
      TypeError, ValueError: naming the argument.
    """
    validation.function("prox", prox, takes=3)
    validation.arrays("weights", weights)

    def apply(weights: PyTree[Array], z: Array, alpha: Array) -> Array:
        p = jnp.maximum(prox(weights, jnp.maximum(z.real, 0), alpha), 0)
        return p.astype(z.dtype)

    return Prior(apply, weights)


def sparse() -> Prior:
    """R(x) = |x|_1, the sum of magnitudes."""
    return of_magnitude(shrunk)


def small_variation(sparsity: float | Float[Array, ""] = 1.0, *, steps: int = 15) -> Prior:
    """R(x) = TV(|x|) + sparsity |x|_1, isotropic total variation of the magnitudes in three dimensions.

    TV alone is degenerate: with free phases a constant magnitude mostly explains the data, and has no
    variation. So add sparsity, whose prox follows that of TV exactly. That one is found by fast
    projected gradient steps on its dual.

    Args:
      sparsity: >= 0; traceable; 0 is TV alone.
      steps: of the dual, >= 1.

    Raises:
      TypeError, ValueError: naming the argument.

    References:
      Beck and Teboulle, Fast Gradient-Based Algorithms for Constrained Total Variation Image Denoising
      and Deblurring Problems, 2009.
    """
    validation.real("sparsity", sparsity, low=0.0, scalar=True)
    validation.integer("steps", steps, low=1)

    def prox(weights: Array, m: Array, alpha: Array) -> Array:
        return shrunk((), variation_prox(m, alpha, steps), alpha * weights)

    return of_magnitude(prox, jnp.asarray(sparsity, jnp.result_type(float)))


def learned(weights: PyTree[Array] | None = None, *, scale_invariant: bool = False) -> Prior:
    """A U-Net that was trained on noisy magnitudes in the place of a prox: plug and play.

    Args:
      weights: of `dflax.imaging.NETWORK`; by default those that dflax ships, which
        `experiments/tasks/magnitude_denoiser.py` trained on boxes and plates in 13 x 13 x 17 voxels
        under circular noise of deviation 0.005 to 0.2.
      scale_invariant: see `of_magnitude`; for scenes whose greatest magnitude is not about 1.

    Raises:
      TypeError, ValueError: naming the argument.
    """
    if weights is None:
        with np.load(WEIGHTS, allow_pickle=False) as file:
            weights = unflattened(file)
    check_weights(weights)

    def denoise(weights: PyTree[Array], m: Array, alpha: Array) -> Array:
        return noise_removed(weights, m, jnp.sqrt(alpha))

    return of_magnitude(denoise, weights, scale_invariant=scale_invariant)


def shrunk(weights: PyTree[Array], m: Magnitude, alpha: Float[Array, ""]) -> Magnitude:
    """The prox of alpha |m|_1 for m >= 0."""
    return jnp.maximum(m - alpha, 0)


def variation_prox(m: Magnitude, alpha: Float[Array, ""], steps: int) -> Magnitude:
    """The prox of alpha TV, `m - alpha D^T p` with the dual p after so many fast projected steps."""

    def at(p: Array) -> Array:
        return m - alpha * _differences_transposed(p)

    def step(carry: tuple[Array, Array, Array], _: None) -> tuple[tuple[Array, Array, Array], None]:
        p, q, t = carry
        # The norm of D D^T is at most 12.
        moved = q + _differences(at(q)) / (12 * alpha)
        size = jnp.sqrt(jnp.sum(jnp.square(moved), 0))
        after = moved / jnp.maximum(size, 1)
        later = (1 + jnp.sqrt(1 + 4 * t * t)) / 2
        return (after, after + (t - 1) / later * (after - p), later), None

    zero = jnp.zeros((3, *m.shape), m.dtype)
    (p, _, _), _ = jax.lax.scan(step, (zero, zero, jnp.ones((), m.dtype)), None, steps)
    return at(p)


def _differences(m: Array) -> Array:
    """`[3, X, Y, Z]`, to the next voxel along each axis; 0 at the ends."""
    return jnp.stack(
        [
            jnp.diff(m, axis=axis, append=jax.lax.slice_in_dim(m, -1, None, axis=axis))
            for axis in range(3)
        ]
    )


def _differences_transposed(p: Array) -> Array:
    total = jnp.zeros(p.shape[1:], p.dtype)
    for axis in range(3):
        # The last difference is 0, whatever its dual.
        own = jax.lax.slice_in_dim(p[axis], 0, p.shape[axis + 1] - 1, axis=axis)
        ends = [(0, 0)] * 3
        before, after = list(ends), list(ends)
        before[axis], after[axis] = (1, 0), (0, 1)
        total += jnp.pad(own, before) - jnp.pad(own, after)
    return total
