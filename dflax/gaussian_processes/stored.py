"""Multiple kernels whose components are stored, or computed anew some at a time."""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from dflax.gaussian_processes.grid import Grid
from dflax.gaussian_processes.kernel import MultipleKernel, components_of, described
from dflax.gaussian_processes.triangular import inverse_of


def stored(grid: Grid) -> MultipleKernel:
    """All components of an agent's inputs, `[A, n, n]`; see `gsmp`."""

    def prepare(inputs: Array, mask: Array) -> Array:
        return components_of(grid, inputs, inputs) * (mask[:, None] * mask)

    def covariance(cache: Array, theta: Array) -> Array:
        return jnp.tensordot(theta, cache, 1, precision="highest")

    def traces(cache: Array, factor: Array, solution: Array) -> tuple[Array, Array]:
        return _contracted(cache, inverse_of(factor), solution)

    def cross(theta: Array, left: Array, right: Array) -> Array:
        return _summed(grid, theta, left, right, 1)

    return MultipleKernel(
        **described(grid), prepare=prepare, covariance=covariance, traces=traces, cross=cross
    )


def recomputed(grid: Grid, chunk: int) -> MultipleKernel:
    """All components of an agent's inputs are computed anew, `chunk` of them at a time; see `gsmp`."""

    def prepare(inputs: Array, mask: Array) -> tuple[Array, Array]:
        return inputs, mask

    def covariance(cache: Any, theta: Array) -> Array:
        inputs, mask = cache
        return _summed(grid, theta, inputs, inputs, chunk) * (mask[:, None] * mask)

    def traces(cache: Any, factor: Array, solution: Array) -> tuple[Array, Array]:
        inputs, mask = cache
        inverse = inverse_of(factor)

        def some(part: Grid) -> tuple[Array, Array]:
            stack = components_of(part, inputs, inputs) * (mask[:, None] * mask)
            return _contracted(stack, inverse, solution)

        found = jax.lax.map(some, _chunks(grid, chunk))
        g, q = (one.reshape(-1)[: grid.means.shape[0]] for one in found)
        return g, q

    def cross(theta: Array, left: Array, right: Array) -> Array:
        return _summed(grid, theta, left, right, chunk)

    return MultipleKernel(
        **described(grid), prepare=prepare, covariance=covariance, traces=traces, cross=cross
    )


def _contracted(stack: Array, inverse: Array, solution: Array) -> tuple[Array, Array]:
    """The traces g and q of stored components, in one pass over them."""
    both = jnp.stack([inverse, solution[:, None] * solution])
    g, q = jnp.einsum("aij,cij->ca", stack, both, precision="highest")
    return g, q


def _summed(grid: Grid, theta: Array, left: Array, right: Array, chunk: int) -> Array:
    """The sum of theta_a k_a with some components at a time."""
    padding = -theta.shape[0] % chunk
    parts = jnp.pad(theta, (0, padding)).reshape(-1, chunk)

    def add(total: Array, part: tuple[Grid, Array]) -> tuple[Array, None]:
        own, weights = part
        more = jnp.tensordot(weights, components_of(own, left, right), 1, precision="highest")
        return total + more, None

    kind = jnp.result_type(theta, left, right, grid.means)
    nothing = jnp.zeros((left.shape[0], right.shape[0]), kind)
    return jax.lax.scan(add, nothing, (_chunks(grid, chunk), parts))[0]


def _chunks(grid: Grid, chunk: int) -> Grid:
    """Components in chunks, leaves `[ceil(A / chunk), chunk, P]`; the last is filled up with zeros."""

    def cut(leaf: Array) -> Array:
        padded = jnp.pad(leaf, ((0, -leaf.shape[0] % chunk), (0, 0)))
        return padded.reshape(-1, chunk, leaf.shape[1])

    return jax.tree.map(cut, grid)
