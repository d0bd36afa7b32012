"""Linear multiple kernels: what a method asks of one."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from dflax.gaussian_processes.grid import Grid


class MultipleKernel(NamedTuple):
    """k(x, x') = sum_a theta_a k_a(x, x') with fixed k_a: what can be asked of it.

    Attributes:
      components: A, static.
      dimensions: P, static.
      highest: the largest frequency that it holds.
      prepare: `(inputs [n, P], mask [n]) -> cache`, once for each agent. Rows of mask 0 are padding:
        their covariances are 0.
      covariance: `(cache, theta [A]) -> [n, n]`, sum_a theta_a K_a.
      traces: `(cache, factor, solution) -> (g, q)` from the lower Cholesky factor of C and
        v = C^-1 y: g_a = tr(C^-1 K_a) and q_a = v' K_a v, `[A]` each.
      cross: `(theta, left [m, P], right [n, P]) -> [m, n]`.
      verify: refuses inputs `[n, P]`, on the host, that it cannot serve.
    """

    components: int
    dimensions: int
    highest: float
    prepare: Callable[[Float[Array, "n P"], Float[Array, " n"]], Any]
    covariance: Callable[[Any, Float[Array, " A"]], Float[Array, "n n"]]
    traces: Callable[
        [Any, Float[Array, "n n"], Float[Array, " n"]],
        tuple[Float[Array, " A"], Float[Array, " A"]],
    ]
    cross: Callable[
        [Float[Array, " A"], Float[Array, "m P"], Float[Array, "n P"]], Float[Array, "m n"]
    ]
    verify: Callable[[np.ndarray], None] = lambda inputs: None


def components_of(
    grid: Grid, left: Float[Array, "m P"], right: Float[Array, "n P"]
) -> Float[Array, "A m n"]:
    """All k_a between two sets of inputs."""
    apart = left[:, None] - right[None]
    decay = jnp.einsum("mnp,ap->amn", jnp.square(apart), jnp.square(grid.deviations))
    waves = jnp.cos(2 * jnp.pi * apart[None] * grid.means[:, None, None])
    return jnp.exp(-2 * jnp.pi**2 * decay) * jnp.prod(waves, axis=-1)


def described(grid: Grid) -> dict[str, Any]:
    """What a kernel says of its grid."""
    count, dimensions = grid.means.shape
    return {"components": count, "dimensions": dimensions, "highest": grid.highest}
