"""Spectral mixtures of inputs in one dimension at any distances, by a table over the lags."""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from dflax.gaussian_processes.factored import factored
from dflax.gaussian_processes.grid import Grid
from dflax.gaussian_processes.kernel import MultipleKernel, components_of, described
from dflax.gaussian_processes.triangular import inverse_of

# The coarse table samples 5/4 times as often as it must; lags of the fine one to each of its own.
OFTEN = 1.25
FINE = 48
# Beyond so many deviations a component has no frequencies.
TAIL = 6.0
# With more columns the Gaussian factor is no longer split.
MOST_COLUMNS = 64


class Interpolation(NamedTuple):
    """How a function of bounded frequencies is read off its values at equally spaced lags.

    Attributes:
      taps: of the filter that fills in `FINE` lags for each of the coarse ones; even.
      order: values of the fine table to one entry; even.
    """

    taps: int
    order: int


SINGLE, DOUBLE = Interpolation(48, 4), Interpolation(88, 8)


class Pairs(NamedTuple):
    """What is kept of an agent's inputs: pairs i >= j, H = n (n + 1) / 2 of them.

    Attributes:
      table: `[L, A]` the components at the coarse lags.
      lag: `[H]` the first lag of the fine table that an entry reads.
      weights: `[order, H]` of the lags that it reads; 0 for padding.
      features: `[n, 2 A]` cosines and sines; rows of padding are 0.
      decay: `[n, K]` G with G G' = E, the Gaussian factor of all components; () where K would be large.
    """

    table: Float[Array, "L A"]
    lag: Int[Array, " H"]
    weights: Float[Array, "order H"]
    features: Float[Array, "n F"]
    decay: Any


def lagged(grid: Grid, reach: float) -> MultipleKernel:
    """C_ij = k(|x_i - x_j|), read off a table of k at equally spaced lags up to `reach`; see `gsmp`.

    k has no frequencies above B = highest + 6 deviations. It is summed over the components at lags
    1 / (2.5 B) apart, filled in by a sinc in Kaiser's window, and interpolated by a polynomial. The
    traces tr(C^-1 K_a) are the transpose of that sum. With E = G G' of K columns

        v' K_a v = sum_k |F_a' (v * G_k)|^2

    Entries of inputs farther apart than `reach` are NaN.
    """
    spread = float(np.max(np.asarray(grid.deviations)))
    step = 1 / (2 * OFTEN * max(grid.highest + TAIL * spread, 0.05 / reach))
    count = math.ceil(reach / step) + 2

    def prepare(inputs: Array, mask: Array) -> Pairs:
        kind = inputs.dtype
        way = SINGLE if jnp.finfo(kind).bits <= 32 else DOUBLE
        lags = step * (jnp.arange(count + way.taps, dtype=kind) - way.taps // 2)
        table = components_of(grid, lags[:, None], jnp.zeros((1, 1), kind))[:, :, 0].T
        first, second = np.tril_indices(len(inputs))
        there = mask[first] * mask[second]
        apart = jnp.abs(inputs[first, 0] - inputs[second, 0]) * there
        # The table does not know them; untraced inputs are refused before.
        apart = jnp.where(apart > reach * (1 + 1e-6), jnp.nan, apart)
        place = apart * (FINE / step)
        whole = jnp.floor(place)
        # The fine table begins one coarse lag before 0.
        lag = whole.astype(jnp.int32) + FINE - (way.order // 2 - 1)
        weights = _polynomials(place - whole, way.order) * there
        columns = _columns((math.pi * spread * reach) ** 2, float(jnp.finfo(kind).eps))
        turns = 2 * jnp.pi * inputs * grid.means[:, 0]
        waves = jnp.concatenate([jnp.cos(turns), jnp.sin(turns)], 1) * mask[:, None]
        if columns > MOST_COLUMNS:
            return Pairs(table, lag, weights, waves, ())
        low = jnp.min(jnp.where(mask > 0, inputs[:, 0], jnp.inf))
        high = jnp.max(jnp.where(mask > 0, inputs[:, 0], -jnp.inf))
        center = (low + high) / 2
        turned = 2 * jnp.pi * spread * (inputs[:, 0] - center) * mask
        return Pairs(table, lag, weights, waves, _separated(turned, columns))

    def entries(cache: Pairs, theta: Array) -> Array:
        """Of the lower triangle, row by row."""
        fine = _filled_in(
            jnp.matmul(cache.table, theta, precision="highest"), len(cache.table) - count
        )
        values = (
            weight * fine.at[cache.lag + place].get(mode="promise_in_bounds")
            for place, weight in enumerate(cache.weights)
        )
        return sum(values, start=jnp.zeros((), fine.dtype))

    def covariance(cache: Pairs, theta: Array) -> Array:
        number = np.arange(len(cache.features))
        high, low = np.maximum(number[:, None], number), np.minimum(number[:, None], number)
        place = jnp.asarray(high * (high + 1) // 2 + low, jnp.int32)
        return entries(cache, theta).at[place].get(mode="promise_in_bounds")

    def summed(cache: Pairs, matrix: Array) -> Array:
        """sum_ij matrix_ij K_a,ij of a symmetric matrix, for all a."""
        first, second = np.tril_indices(len(matrix))
        twice = jnp.asarray(np.where(first == second, 1, 2), matrix.dtype)
        start = jnp.zeros(grid.means.shape[0], matrix.dtype)
        transposed = jax.linear_transpose(lambda theta: entries(cache, theta), start)
        return transposed(matrix[first, second] * twice)[0]

    def traces(cache: Pairs, factor: Array, solution: Array) -> tuple[Array, Array]:
        g = summed(cache, inverse_of(factor))
        if isinstance(cache.decay, tuple):
            return g, summed(cache, solution[:, None] * solution)
        weighted = (solution[:, None] * cache.decay).T
        along = jnp.matmul(weighted, cache.features, precision="highest")
        return g, jnp.sum(jnp.square(along), 0).reshape(2, -1).sum(0)

    def verify(inputs: np.ndarray) -> None:
        longest = float(np.ptp(inputs[:, 0])) if len(inputs) else 0.0
        if longest > reach:
            raise ValueError(
                f"inputs of an agent must be at most reach = {reach:g} apart, got {longest:g}. Make "
                "the kernel with a longer reach."
            )

    return MultipleKernel(
        **described(grid),
        prepare=prepare,
        covariance=covariance,
        traces=traces,
        cross=factored(grid).cross,
        verify=verify,
    )


def _polynomials(place: Float[Array, " H"], order: int) -> Float[Array, "order H"]:
    """Lagrange's polynomials through -(order / 2 - 1) .. order / 2, at places in [0, 1)."""
    nodes = np.arange(order) - (order // 2 - 1)
    found = []
    for own in nodes:
        others = nodes[nodes != own]
        scale = float(np.prod(own - others))
        found.append(jnp.prod(place - others[:, None], axis=0) / scale)
    return jnp.stack(found)


def _filled_in(coarse: Float[Array, " L"], taps: int) -> Float[Array, " M"]:
    """`FINE` values for each coarse one, from one coarse lag before the middle of the first window.

    The sinc ends by Kaiser's window, in the gap that sampling oftener than needed leaves.
    """
    windows = len(coarse) - taps + 1
    place = np.arange(FINE) / FINE
    away = place - (np.arange(taps) - (taps // 2 - 1))[:, None]
    # Kaiser's rule: a gap of w a sample stops 2.285 (taps - 1) w + 8 dB.
    gap = 2 * np.pi * (1 - 1 / OFTEN)
    beta = 0.1102 * (2.285 * (taps - 1) * gap - 0.7)
    inside = np.sqrt(np.maximum(1 - np.square(away / (taps / 2)), 0))
    filters = np.sinc(away) * np.i0(beta * inside) / np.i0(beta)
    index = np.arange(windows)[:, None] + np.arange(taps)
    return jnp.matmul(
        coarse[index], jnp.asarray(filters, coarse.dtype), precision="highest"
    ).reshape(-1)


def _columns(most: float, precision: float) -> int:
    """How many terms of exp(-a) sum_k a^k / k! leave less than the precision, for a <= `most`."""
    term, found, count = math.exp(-most), 0.0, 0
    if not term:
        return MOST_COLUMNS + 1
    while 1 - found > precision and count <= MOST_COLUMNS:
        found, count = found + term, count + 1
        term *= most / count
    return count


def _separated(place: Float[Array, " n"], columns: int) -> Float[Array, "n K"]:
    """G with G G' = exp(-(p_i - p_j)^2 / 2): columns exp(-p^2 / 2) p^k / sqrt(k!)."""
    found = [jnp.exp(-jnp.square(place) / 2)]
    for k in range(1, columns):
        found.append(found[-1] * place / math.sqrt(k))
    return jnp.stack(found, 1)
