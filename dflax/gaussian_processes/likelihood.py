"""The likelihood of a Gaussian process with a linear multiple kernel, and its two gradients."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from dflax import validation
from dflax.gaussian_processes.kernel import MultipleKernel
from dflax.gaussian_processes.triangular import inverse_of


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


def evidence(kernel: MultipleKernel, observed: Observations, theta: Float[Array, " A"]) -> Evidence:
    """Twice the negative log likelihood, without its constant n log 2 pi; its gradient is g - q.

        l(theta) = y' C^-1 y + log det C,   C = sum_a theta_a K_a + s2 I

    Padding adds s2 to the diagonal, which moves log det C by a constant that is taken off again and
    changes nothing else. NaN where C is not positive definite, as with negative weights it may be.

    Args:
      kernel: see `gsmp`.
      observed: of one agent.
      theta: `[A]`.

    Raises:
      TypeError, ValueError: naming the argument.
    """
    _check(kernel, observed, theta)
    factor, solution = _factored(_covariance(kernel, observed, theta), observed.targets)
    value = _value(factor, solution, observed.targets) - _padding(observed)
    g, q = kernel.traces(observed.cache, factor, solution)
    return Evidence(value, g, q)


@jax.custom_vjp
def minus_log_density(
    covariance: Float[Array, "n n"], targets: Float[Array, " n"]
) -> Float[Array, ""]:
    """The sum y' C^-1 y + log det C, whose gradient in C is C^-1 - C^-1 y y' C^-1."""
    return _value(*_factored(covariance, targets), targets)


def _forward(covariance: Array, targets: Array) -> tuple[Array, tuple[Array, Array]]:
    factor, solution = _factored(covariance, targets)
    return _value(factor, solution, targets), (factor, solution)


def _backward(kept: tuple[Array, Array], weight: Array) -> tuple[Array, Array]:
    factor, solution = kept
    return weight * (inverse_of(factor) - solution[:, None] * solution), 2 * weight * solution


minus_log_density.defvjp(_forward, _backward)


def objective(
    kernel: MultipleKernel, observed: Observations, theta: Float[Array, " A"]
) -> Float[Array, ""]:
    """The value l(theta) of `evidence` alone."""
    _check(kernel, observed, theta)
    covariance = _covariance(kernel, observed, theta)
    return minus_log_density(covariance, observed.targets) - _padding(observed)


def _check(kernel: MultipleKernel, observed: Observations, theta: Array) -> None:
    """Refuses what is no kernel, no agent's observations, or weights of another number."""
    validation.instance("kernel", kernel, MultipleKernel, "Make one with gsmp().")
    validation.instance("observed", observed, Observations, "Make them with observe().")
    validation.array("observed.targets", observed.targets, kind="real", shape=("n",))
    validation.array("theta", theta, kind="real", shape=(kernel.components,))


def _covariance(kernel: MultipleKernel, observed: Observations, theta: Array) -> Array:
    """The covariance C of the targets."""
    eye = jnp.eye(len(observed.targets), dtype=observed.targets.dtype)
    return kernel.covariance(observed.cache, theta) + observed.noise * eye


def _padding(observed: Observations) -> Array:
    """What the padded part of the diagonal adds to log det C."""
    return jnp.sum(1 - observed.mask) * jnp.log(observed.noise)


def _factored(covariance: Array, targets: Array) -> tuple[Array, Array]:
    """The lower Cholesky factor of C, and C^-1 y."""
    factor = jnp.linalg.cholesky(covariance, symmetrize_input=False)
    return factor, jax.scipy.linalg.cho_solve((factor, True), targets)


def _value(factor: Array, solution: Array, targets: Array) -> Array:
    return targets @ solution + 2 * jnp.sum(jnp.log(jnp.diagonal(factor)))
