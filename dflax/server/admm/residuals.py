"""How far a consensus is from its end, and what follows for the penalty and for the run."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, PyTree

from dflax import validation
from dflax.local.clipping import squared_norm


class Residuals(NamedTuple):
    """The residuals of one round of consensus ADMM over all n clients, and what they are large against.

    Attributes:
      primal: `[]` sqrt(sum_i |E x_i - z|^2).
      dual: `[]` sqrt(n) rho |z - z before|.
      variables: `[]` sqrt(sum_i |E x_i|^2).
      shared: `[]` sqrt(n) |z|.
      duals: `[]` sqrt(sum_i |lambda_i|^2).
      numbers: n times the length of z, static.
    """

    primal: Float[Array, ""]
    dual: Float[Array, ""]
    variables: Float[Array, ""]
    shared: Float[Array, ""]
    duals: Float[Array, ""]
    numbers: int


Stop = Callable[[Residuals], Bool[Array, ""]]


def residuals_of(
    views: PyTree[Array],
    duals: PyTree[Array],
    shared: PyTree[Array],
    before: PyTree[Array],
    penalty: float | Array,
) -> Residuals:
    """The `Residuals` of views E x_i and duals with leaves `[n, ...]`, z and z before."""
    n = jax.tree.leaves(views)[0].shape[0]
    apart = jax.tree.map(lambda x, z: x - z[None], views, shared)
    moved = jax.tree.map(jnp.subtract, shared, before)
    return Residuals(
        jnp.sqrt(squared_norm(apart)),
        jnp.sqrt(n * squared_norm(moved)) * penalty,
        jnp.sqrt(squared_norm(views)),
        jnp.sqrt(n * squared_norm(shared)),
        jnp.sqrt(squared_norm(duals)),
        n * sum(leaf.size for leaf in jax.tree.leaves(shared)),
    )


def residual_balancing(
    ratio: float = 10.0, factor: float = 2.0, *, low: float = 1e-6, high: float = 1e6
) -> Callable[[Array, Residuals], Array]:
    """Residual balancing: the penalty grows where the clients disagree, and falls where z moves.

        rho <- factor rho   where primal > ratio dual,   rho / factor   where dual > ratio primal

    Args:
      ratio: >= 1; traceable.
      factor: > 1; traceable.
      low: least penalty, > 0; traceable.
      high: greatest penalty, > 0; traceable.

    Returns:
      `(rho, residuals) -> rho`, the `adapt` of `dflax.server.consensus`.

    Raises:
      TypeError, ValueError: naming the argument.

    References:
      He, Yang and Wang, Alternating Direction Method with Self-Adaptive Penalty Parameters, 2000.
    """
    validation.real("ratio", ratio, low=1.0, scalar=True)
    validation.real("factor", factor, low=1.0, low_open=True, scalar=True)
    validation.real("low", low, low=0.0, low_open=True, scalar=True)
    validation.real("high", high, low=0.0, low_open=True, scalar=True)

    def adapt(rho: Array, residuals: Residuals) -> Array:
        grown = residuals.primal > ratio * residuals.dual
        fallen = residuals.dual > ratio * residuals.primal
        moved = jnp.where(grown, rho * factor, jnp.where(fallen, rho / factor, rho))
        return jnp.clip(moved, low, high)

    return adapt


def residuals_within(absolute: float, relative: float) -> Stop:
    """Whether both residuals are small: the usual rule to stop.

        primal <= sqrt(p) absolute + relative max(|E x|, |z|)
        dual   <= sqrt(p) absolute + relative |lambda|

    where p counts the numbers of all clients' views and norms are over all of them.

    Args:
      absolute: >= 0; traceable.
      relative: >= 0; traceable.

    Returns:
      `residuals -> []`, the `stop` of `dflax.server.consensus`.

    Raises:
      TypeError, ValueError: naming the argument.

    References:
      Boyd et al., Distributed Optimization and Statistical Learning via ADMM, section 3.3, 2011.
    """
    validation.real("absolute", absolute, low=0.0, scalar=True)
    validation.real("relative", relative, low=0.0, scalar=True)

    def stop(residuals: Residuals) -> Bool[Array, ""]:
        floor = jnp.sqrt(float(residuals.numbers)) * absolute
        largest = jnp.maximum(residuals.variables, residuals.shared)
        return (residuals.primal <= floor + relative * largest) & (
            residuals.dual <= floor + relative * residuals.duals
        )

    return stop
