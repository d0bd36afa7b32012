"""What a change is worth that was made from an old model."""

from collections.abc import Callable

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from dflax import validation

Discount = Callable[[Int[Array, " m"]], Float[Array, " m"]]


def constant() -> Discount:
    """All changes count in full: `s(u) = 1`."""
    return lambda staleness: jnp.ones(staleness.shape)


def polynomial(exponent: float | Array = 0.5) -> Discount:
    """`s(u) = (1 + u)^(-a)`, with u how many steps the server took meanwhile.

    Args:
      exponent: a >= 0, traceable.

    Raises:
      TypeError, ValueError: naming the argument.

    Examples:
      >>> import jax.numpy as jnp, dflax as dx
      >>> discount = dx.asynchronous.polynomial(0.5)
      >>> discount(jnp.array([0, 3])).round(3).tolist()
      [1.0, 0.5]

    References:
      Xie et al., Asynchronous Federated Optimization, arXiv 1903.03934.
    """
    validation.real("exponent", exponent, low=0.0, scalar=True)
    return lambda staleness: (1.0 + staleness) ** (-jnp.asarray(exponent))


def hinge(slope: float | Array = 10.0, tolerance: float | Array = 4.0) -> Discount:
    """`s(u) = 1` for `u <= b`, else `1 / (a (u - b) + 1)`.

    Args:
      slope: a >= 0, traceable.
      tolerance: b >= 0, traceable.

    Raises:
      TypeError, ValueError: naming the argument.

    References:
      Xie et al., Asynchronous Federated Optimization, arXiv 1903.03934.
    """
    validation.real("slope", slope, low=0.0, scalar=True)
    validation.real("tolerance", tolerance, low=0.0, scalar=True)
    return lambda staleness: 1.0 / (1.0 + slope * jnp.maximum(staleness - tolerance, 0.0))
