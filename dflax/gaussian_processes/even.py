"""Spectral mixtures of evenly spaced inputs in one dimension, by the structure of Toeplitz matrices."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from dflax.gaussian_processes.grid import Grid
from dflax.gaussian_processes.kernel import MultipleKernel, components_of, described

TOLERANCE = 1e-4


class Lags(NamedTuple):
    """What is kept of an agent's inputs.

    Attributes:
      table: `[n, A]` the components at lags of 0 to n - 1 steps.
      mask: `[n]` 1 for inputs, then 0 for padding.
    """

    table: Float[Array, "n A"]
    mask: Float[Array, " n"]


def even(grid: Grid) -> MultipleKernel:
    """All from the lags; see `gsmp`. Padding must come last."""

    def prepare(inputs: Array, mask: Array) -> Lags:
        number = jnp.arange(len(inputs), dtype=inputs.dtype)
        last = jnp.maximum(jnp.sum(mask) - 1, 1)
        step = jnp.sum(jnp.where(number[:, None] == last, inputs - inputs[0], 0)) / last
        lags = (number * step)[:, None]
        return Lags(components_of(grid, lags, jnp.zeros((1, 1), lags.dtype))[:, :, 0].T, mask)

    def covariance(cache: Lags, theta: Array) -> Array:
        column = jnp.matmul(cache.table, theta, precision="highest")
        number = jnp.arange(len(column))
        whole = column[jnp.abs(number[:, None] - number)]
        return whole * (cache.mask[:, None] * cache.mask)

    def traces(cache: Lags, factor: Array, solution: Array) -> tuple[Array, Array]:
        both = jnp.stack([diagonal_sums(factor, cache.mask), correlated(solution, solution)])
        # Each diagonal but the main one is there twice.
        both = both.at[:, 1:].multiply(2)
        g, q = jnp.matmul(both, cache.table, precision="highest")
        return g, q

    def cross(theta: Array, left: Array, right: Array) -> Array:
        def row(one: Array) -> Array:
            return jnp.matmul(
                theta, components_of(grid, one[None], right)[:, 0], precision="highest"
            )

        return jax.lax.map(row, left)

    return MultipleKernel(
        **described(grid),
        prepare=prepare,
        covariance=covariance,
        traces=traces,
        cross=cross,
        verify=verify,
    )


def verify(inputs: np.ndarray) -> None:
    """Refuses inputs that are not in order and evenly spaced."""
    steps = np.diff(inputs[:, 0])
    if len(steps) and not (steps.min() > 0 and np.ptp(steps) <= TOLERANCE * np.abs(steps).mean()):
        raise ValueError(
            'inputs must be in order and evenly spaced for mode "even", got steps from '
            f'{steps.min():g} to {steps.max():g}. Take mode "factored".'
        )


def diagonal_sums(factor: Float[Array, "n n"], mask: Float[Array, " n"]) -> Float[Array, " n"]:
    """sum_i (C^-1)_{i, i + d} over the inputs that are no padding, for d = 0 to n - 1.

    With x = C^-1 e_1 and C of n rows, C^-1 = (X X' - Y Y') / x_1 for lower triangular Toeplitz matrices
    of first columns x and (0, x_n, ..., x_2), whence the sums are weighted correlations.

    Args:
      factor: the lower Cholesky factor of C.
      mask: 1 for inputs, then 0 for padding, which C does not join to them.
    """
    n = len(mask)
    first = jax.scipy.linalg.cho_solve((factor, True), jnp.zeros(n, factor.dtype).at[0].set(1))
    count, number = jnp.sum(mask).astype(jnp.int32), jnp.arange(n)
    mirrored = jnp.where((number > 0) & (number < count), first[(count - number) % n], 0)
    left = (count - number) * mask
    sums = correlated(first, left * first) - correlated(mirrored, left * mirrored)
    return sums / first[0]


def correlated(left: Float[Array, " n"], right: Float[Array, " n"]) -> Float[Array, " n"]:
    """sum_m left_m right_{m + d} for d = 0 to n - 1."""
    n = len(left)
    spectra = jnp.conj(jnp.fft.rfft(left, 2 * n)) * jnp.fft.rfft(right, 2 * n)
    return jnp.fft.irfft(spectra, 2 * n)[:n]
