"""The flag aggregator: what a subspace that lies near most directions has of their mean."""

from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from dflax import validation
from dflax.aggregation.aggregator import Aggregator, Combining, Message, counted_sum
from dflax.aggregation.combination import count_dropped
from dflax.aggregation.rows.row_norms import who_counts
from dflax.aggregation.rows.similarity import row_cosines
from dflax.algorithm import Metrics

Scale = Literal["directions", "directions/r", "messages"]
SCALES = ("directions", "directions/r", "messages")
Pairs = Literal["normalised", "plain"]
PAIRS = ("normalised", "plain")
EXACT = jax.lax.Precision.HIGHEST


class FlagSubspace(NamedTuple):
    """A subspace spanned by messages, by what it does to them.

    Attributes:
      projection: `[m, m]`, P with `Y Y' z = sum_i (P b)_i x_i` for any z with products b_i = <x_i, z>.
      explained: `[m]` in [0, 1], `v_i = |Y' x_i|^2`; 0 of those who do not count.
      loss: `[]`, what was minimised.
      dimension: `[]`, r of this round.
    """

    projection: Float[Array, "m m"]
    explained: Float[Array, " m"]
    loss: Float[Array, ""]
    dimension: Int[Array, ""]


def flag(
    dimension: int | None = None,
    *,
    regularisation: float = 0.0,
    steps: int = 5,
    scale: Scale = "directions",
    pairs: Pairs = "normalised",
    smoothing: float = 1e-7,
) -> Aggregator:
    """The flag aggregator (FA): the mean direction, projected on a subspace near most directions.

        x_i = g_i / |g_i|,    v_i = |Y' x_i|^2                         Y orthonormal, r columns
        Y minimises  sum_i sqrt(1 - v_i) + lambda / (m (m - 1)) sum_{i != j} sqrt(1 - u_ij)
        out = Y Y' sum_i x_i / m

    u_ij is the same of the direction of x_i - x_j; lambda = `regularisation`. The minimum is sought by
    iteratively reweighted least squares from equal weights: Y are the first r left singular vectors of
    the columns, weighted by (1 - v_i)^(-1/4). All of it is done on the m x m cosines: messages are
    read for their lengths, their products and the result, whatever `steps` is.

    One arbitrary message moves the result by 2 / m or so, since only directions count, as in
    `mean_of_normalised`; with r = m it is that mean. The subspace follows what is common to messages:
    those of colluding senders are explained as well as honest ones. There is no bound of robustness
    beside that of the directions, and none at all with `scale="messages"`.

    Messages of length 0 do not count, and neither do those with a NaN or an infinity, which the metric
    `messages_dropped` counts. Weights only tell who reported. `explained` is the mean v_i, `flag_loss`
    what was minimised.

    Args:
      dimension: r >= 1, static; where fewer messages count, r is their number. None: (m + 1) / 2 of the
        m that count, rounded up.
      regularisation: lambda >= 0, traceable. The authors use 0 but once.
      steps: J >= 1, static. The best iterate is kept. The authors' code does one; the limit of many
        passes through about r of the messages, and so selects rather than averages.
      scale: "directions": as above. "directions/r": r in the place of m, as in the authors' code, longer
        by m / r. "messages": `Y Y' sum_i g_i / m`, in which lengths count.
      pairs: "normalised": as above. "plain": the authors' code, which leaves x_i - x_j at its length and
        lambda / (m (m - 1)) in the square. Its loss may rise from step to step.
      smoothing: epsilon > 0, what is added to 1 - v_i in a weight; traceable.

    Returns:
      An `Aggregator` without state; 0 when nobody reports. With r = 1 it makes (2/3, 0) of the messages
      (1, 0), (2, 0), (0, 3).

    Raises:
      TypeError, ValueError: naming the argument.

    References:
      Almasi, Mishra, Vamanan and Ravi, Flag Aggregator: Scalable Distributed Training under Failures and
      Augmented Losses using Convex Optimization, ICLR 2024, arXiv 2302.05865.
    """
    if dimension is not None:
        validation.integer("dimension", dimension, low=1)
    validation.real("regularisation", regularisation, low=0.0, scalar=True)
    validation.integer("steps", steps, low=1)
    validation.choice("scale", scale, SCALES)
    validation.choice("pairs", pairs, PAIRS)
    validation.real("smoothing", smoothing, low=0.0, low_open=True, scalar=True)

    def apply(
        messages: Message, weights: Float[Array, " m"], state: tuple[()], combining: Combining
    ) -> tuple[Message, tuple[()], Metrics]:
        present, dropped = who_counts(messages, weights)
        cosines, norms = row_cosines(messages, present)
        present &= (norms > 0) & jnp.isfinite(norms)
        cosines = jnp.where(present[:, None] & present, cosines, 0)
        found = flag_subspace(
            cosines,
            present,
            dimension,
            regularisation=regularisation,
            steps=steps,
            pairs=pairs,
            smoothing=smoothing,
        )
        count = jnp.maximum(jnp.sum(present), 1)
        lengths = norms if scale == "messages" else jnp.ones_like(norms)
        to = jnp.matmul(cosines, jnp.where(present, lengths, 0), precision=EXACT)
        coefficients = jnp.matmul(found.projection, to, precision=EXACT)
        coefficients /= found.dimension if scale == "directions/r" else count
        given = jnp.where(present, coefficients / jnp.where(present, norms, 1), 0)
        metrics = {"explained": found.explained.sum() / count, "flag_loss": found.loss}
        return counted_sum(messages, given), state, count_dropped(metrics, dropped)

    return Aggregator(lambda message: (), apply)


def flag_subspace(
    cosines: Float[Array, "m m"],
    present: Bool[Array, " m"],
    dimension: int | None = None,
    *,
    regularisation: float = 0.0,
    steps: int = 5,
    pairs: Pairs = "normalised",
    smoothing: float = 1e-7,
) -> FlagSubspace:
    """The subspace of `flag`, found on the cosines K of messages alone.

    With A the columns of single messages and of pairs, D their weights and `A D^2 A' = L L'`, the r
    largest eigenpairs of `L' K L = U S U'` give `Y = X T`, `T = L U S^(-1/2)`.

    Args:
      cosines: K, `[m, m]`.
      present: who counts, `[m]`.
      dimension: see `flag`.
      regularisation: see `flag`.
      steps: see `flag`.
      pairs: see `flag`.
      smoothing: see `flag`.

    Returns:
      A `FlagSubspace`.
    """
    both = present[:, None] & present & ~jnp.eye(len(present), dtype=bool)
    cosines = jnp.where(both, cosines, jnp.diag(present.astype(cosines.dtype)))
    count = jnp.sum(present, dtype=jnp.int32)
    kept = count // 2 + 1 if dimension is None else jnp.minimum(dimension, count)
    rounding = (1e-12 if cosines.dtype == jnp.float64 else 1e-6) * jnp.maximum(count, 1)
    apart = 2 * (1 - cosines)
    share = jnp.asarray(regularisation / jnp.maximum(count * (count - 1), 1), cosines.dtype)
    if pairs == "normalised":
        # Two equal messages have no direction between them.
        factor = jnp.where(both & (apart > rounding), share, 0)
        length = jnp.where(both & (apart > rounding), apart, 1)
    else:
        factor, length = jnp.where(both, jnp.square(share), 0), jnp.ones_like(apart)

    def subspace(singles: Array, between: Array) -> tuple[Array, Array, Array, Array]:
        """The next one, from the squared weights of the columns: P, v, u and the loss."""
        square = jnp.diag(singles + 2 * between.sum(1)) - 2 * between
        left = jnp.linalg.cholesky(square)
        inner = jnp.matmul(jnp.matmul(left.T, cosines, precision=EXACT), left, precision=EXACT)
        values, vectors = jnp.linalg.eigh((inner + inner.T) / 2)
        # Directions that no message has are rounding.
        place = jnp.arange(len(values))[::-1]
        wanted = (place < kept) & (values > rounding * values[-1])
        turned = jnp.matmul(left, vectors, precision=EXACT)
        turned *= jnp.where(wanted, 1 / jnp.sqrt(jnp.where(wanted, values, 1)), 0)
        on = jnp.matmul(cosines, turned, precision=EXACT)
        explained = jnp.square(on).sum(1)
        products = jnp.matmul(on, on.T, precision=EXACT)
        spread = explained[:, None] + explained - 2 * products
        losses = jnp.where(present, jnp.sqrt(jnp.abs(1 - explained)), 0).sum()
        spread = jnp.maximum(spread, 0) / length
        losses += jnp.where(factor > 0, share * jnp.sqrt(jnp.abs(1 - spread)), 0).sum()
        return jnp.matmul(turned, turned.T, precision=EXACT), explained, spread, losses

    def step(number: Array, carry: tuple[FlagSubspace, Array, Array]) -> tuple[Any, ...]:
        best, explained, spread = carry
        singles = jax.lax.rsqrt(jnp.abs(1 - explained) + smoothing)
        between = factor / length * jax.lax.rsqrt(jnp.abs(1 - spread) + smoothing)
        projection, explained, spread, loss = subspace(singles, between)
        better = loss < best.loss
        found = FlagSubspace(projection, explained, loss, best.dimension)
        best = jax.tree.map(lambda new, old: jnp.where(better, new, old), found, best)
        return best, explained, spread

    nothing = jnp.zeros_like(cosines)
    far = jnp.asarray(jnp.inf, cosines.dtype)
    start = FlagSubspace(nothing, nothing[0], far, kept)
    best, _, _ = jax.lax.fori_loop(0, steps, step, (start, nothing[0], nothing))
    explained = jnp.where(present, jnp.clip(best.explained, 0, 1), 0)
    return best._replace(explained=explained)
