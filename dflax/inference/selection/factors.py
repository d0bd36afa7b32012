"""A low-rank factorisation of the table of relative log-times, with gaps."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from dflax import validation
from dflax.inference.selection.judging import checked_weights
from dflax.inference.selection.performance import Performance, centred, check_table
from dflax.inference.selection.selector import NEVER, mean_relative


class Factors(NamedTuple):
    """z is about U V^T.

    Attributes:
      tasks: U `[n, r]`.
      methods: V `[K, r]`, orthonormal columns.
    """

    tasks: Float[Array, "n r"]
    methods: Float[Array, "K r"]


def factorised(table: Performance, rank: int, weights: Any = None, *, sweeps: int = 50) -> Factors:
    """The singular vectors of the row-centred log-times: V the r largest right ones, U = Z V.

    Gaps are filled with U V^T and the vectors taken anew, `sweeps` times, beginning with the methods'
    means; of a full table the first is the last. Full rows sum to 0, so r = K - 1 is exact for them.

    Args:
      table: of n tasks and K methods.
      rank: r, in [1, K].
      weights: `[n]` >= 0: how much each task counts in V; None: 1.
      sweeps: >= 1.

    Raises:
      TypeError, ValueError: naming the argument.
    """
    check_table(table)
    n, methods = table.seconds.shape
    validation.integer("rank", rank, low=1, high=methods)
    validation.integer("sweeps", sweeps, low=1)
    counted = checked_weights(weights, n)
    relative = centred(table).relative
    means = mean_relative(table, counted)
    filled = jnp.where(table.observed, relative, jnp.where(means == NEVER, 0.0, means))

    def sweep(filled: Array, _: None) -> tuple[Array, Array]:
        gram = jnp.matmul(filled.T, counted[:, None] * filled, precision="highest")
        vectors = jnp.linalg.eigh(gram)[1][:, ::-1][:, :rank]
        told = filled @ vectors @ vectors.T
        return jnp.where(table.observed, relative, told), vectors

    # The gaps that the last vectors fill are those of the sweep before.
    before, _ = jax.lax.scan(sweep, filled, None, length=sweeps - 1)
    _, vectors = sweep(before, None)
    return Factors(before @ vectors, vectors)
