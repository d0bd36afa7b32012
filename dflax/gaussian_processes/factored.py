"""Spectral mixtures of components with the same deviations, by products of cosine features."""

from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from dflax.gaussian_processes.grid import Grid
from dflax.gaussian_processes.kernel import MultipleKernel, described
from dflax.gaussian_processes.triangular import inverse_of, triangular_inverse


class Factors(NamedTuple):
    """What is kept of an agent's inputs.

    Attributes:
      features: `[n, A 2^P]`, those of a component side by side; rows of padding are 0.
      decay: `[n, n]`, the Gaussian factor E that all components share; () where it is 1.
    """

    features: Float[Array, "n F"]
    decay: Any


def factored(grid: Grid) -> MultipleKernel:
    """C = E * (F theta F') + noise, entrywise product with E; see `gsmp`.

    cos(a - b) = cos a cos b + sin a sin b, and a product over P dimensions has 2^P such terms, so that
    prod_p cos(2 pi t_p m_ap) = f_a(x)' f_a(x') with f_a(x) in 2^P dimensions. With deviations of 0,
    E = 1 and tr(C^-1 K_a) = |L^-1 F_a|^2.
    """
    count, dimensions = grid.means.shape
    each = 2**dimensions
    pure = not np.any(np.asarray(grid.deviations))
    spread = grid.deviations[0]

    def features(inputs: Array) -> Array:
        turns = 2 * jnp.pi * inputs[:, None] * grid.means
        waves = jnp.stack([jnp.cos(turns), jnp.sin(turns)], axis=-1)
        found = waves[:, :, 0]
        for p in range(1, dimensions):
            found = jnp.einsum("naf,nag->nafg", found, waves[:, :, p])
            found = found.reshape(len(inputs), count, -1)
        return found.reshape(len(inputs), -1)

    def decay(left: Array, right: Array) -> Array:
        apart = left[:, None] - right[None]
        return jnp.exp(-2 * jnp.pi**2 * jnp.square(apart) @ jnp.square(spread))

    def weighted(theta: Array, left: Array, right: Array) -> Array:
        return jnp.matmul(left * jnp.repeat(theta, each), right.T, precision="highest")

    def prepare(inputs: Array, mask: Array) -> Factors:
        shared = () if pure else decay(inputs, inputs)
        return Factors(features(inputs) * mask[:, None], shared)

    def covariance(cache: Factors, theta: Array) -> Array:
        product = weighted(theta, cache.features, cache.features)
        return product if pure else product * cache.decay

    def traces(cache: Factors, factor: Array, solution: Array) -> tuple[Array, Array]:
        if pure:
            half = triangular_inverse(factor)
            halves = jnp.matmul(half, cache.features, precision="highest")
            g = jnp.einsum("nf,nf->f", halves, halves)
            q = jnp.square(jnp.matmul(solution, cache.features, precision="highest"))
        else:
            both = jnp.stack([inverse_of(factor), solution[:, None] * solution]) * cache.decay
            products = jnp.matmul(both, cache.features, precision="highest")
            g, q = jnp.einsum("cnf,nf->cf", products, cache.features)
        return g.reshape(count, each).sum(1), q.reshape(count, each).sum(1)

    def cross(theta: Array, left: Array, right: Array) -> Array:
        product = weighted(theta, features(left), features(right))
        return product if pure else product * decay(left, right)

    return MultipleKernel(
        **described(grid), prepare=prepare, covariance=covariance, traces=traces, cross=cross
    )
