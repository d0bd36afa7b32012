"""The likelihood of a Gaussian process with a linear multiple kernel, and its two gradients."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from dflax.gaussian_processes.kernel import MultipleKernel


class Observations(NamedTuple):
    """What one agent has observed; stacked over agents every leaf leads with N.

    Attributes:
      cache: what the kernel keeps of the inputs, see `MultipleKernel.prepare`.
      targets: `[n]` y; 0 in padding.
      mask: `[n]` 1 for observations, then 0 for padding.
      noise: `[]` the noise's variance s2 > 0.
    """

    cache: Any
    targets: Float[Array, " n"]
    mask: Float[Array, " n"]
    noise: Float[Array, ""]


class Evidence(NamedTuple):
    """An agent's objective at some weights, and what its gradient is made of.

    Attributes:
      value: `[]` l(theta) = y' C^-1 y + log det C.
      g: `[A]` tr(C^-1 K_a), the gradient of log det C.
      q: `[A]` y' C^-1 K_a C^-1 y, minus the gradient of y' C^-1 y.
    """

    value: Float[Array, ""]
    g: Float[Array, " A"]
    q: Float[Array, " A"]


def evidence(
    kernel: MultipleKernel, observed: Observations, theta: Float[Array, " A"]
) -> Evidence:
    """Twice the negative log likelihood, without its constant n log 2 pi; its gradient is g - q.

        l(theta) = y' C^-1 y + log det C,   C = sum_a theta_a K_a + s2 I

    Padding adds s2 to the diagonal, which moves log det C by a constant that is taken off again and
    changes nothing else. NaN where C is not positive definite, as with negative weights it may be.
    """
    factor, solution = _factored(kernel, observed, theta)
    g, q = kernel.traces(observed.cache, factor, solution)
    return Evidence(_value(observed, factor, solution), g, q)


def objective(
    kernel: MultipleKernel, observed: Observations, theta: Float[Array, " A"]
) -> Float[Array, ""]:
    """l(theta) of `evidence` alone."""
    return _value(observed, *_factored(kernel, observed, theta))


def _factored(
    kernel: MultipleKernel, observed: Observations, theta: Array
) -> tuple[Array, Array]:
    """The lower Cholesky factor of C, and C^-1 y."""
    eye = jnp.eye(len(observed.targets), dtype=observed.targets.dtype)
    factor = jnp.linalg.cholesky(kernel.covariance(observed.cache, theta) + observed.noise * eye)
    return factor, jax.scipy.linalg.cho_solve((factor, True), observed.targets)


def _value(observed: Observations, factor: Array, solution: Array) -> Array:
    padding = jnp.sum(1 - observed.mask) * jnp.log(observed.noise)
    return observed.targets @ solution + 2 * jnp.sum(jnp.log(jnp.diagonal(factor))) - padding
