"""Krum and Multi-Krum: the messages that have the nearest company."""

from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from dflax import validation
from dflax.aggregation.aggregator import Aggregator
from dflax.aggregation.combination import combination, distances_between
from dflax.aggregation.tolerance import require_faulty, require_messages, tolerated
from dflax.algorithm import Metrics

Others = Literal["m-f-2", "m-f-1"]
OTHERS = ("m-f-2", "m-f-1")
KEPT = ("m-f", "m-f-2")


def krum(faulty: int | Int[Array, ""], *, others: Others = "m-f-2") -> Aggregator:
    """Krum: the message with the least sum of squared distances to those nearest to it.

        s_i = sum of |x_i - x_j|^2 over the m - f - 2 others j nearest to x_i
        out = x_i with the least s_i                         of equals the first, f = faulty

    m messages arrived, of which up to f may be arbitrary: m >= 2 f + 3. Where only fewer arrive in a
    round, f is `(m - 1) // 2` there, and at least one other is looked at; the metric `tolerated` tells
    the f of the round. It is (f, kappa)-robust with kappa = 6 (1 + f / (m - 2 f)): its squared error is
    at most kappa times the mean squared distance of the honest messages from their mean.

    Args:
      faulty: f >= 0, traceable.
      others: "m-f-2", as published; or "m-f-1", as in ByzFL, for m >= 2 f + 1.

    Returns:
      A `combination`. With f = 1 it makes 2 of the messages 1, 2, 3, 4, 100.

    Raises:
      TypeError, ValueError: naming the argument; and, when the messages of a round are seen, too few.

    Examples:
      >>> import jax, jax.numpy as jnp, dflax as dx
      >>> messages, weights = jnp.array([[1.0], [2.0], [3.0], [4.0], [100.0]]), jnp.ones(5)
      >>> rule = dx.aggregation.krum(faulty=1)
      >>> combining = dx.aggregation.Combining(jax.random.key(0))
      >>> combined, *_ = rule.apply(messages, weights, rule.init(messages[0]), combining)
      >>> float(combined[0])
      2.0

    References:
      Blanchard et al., Machine Learning with Adversaries, NeurIPS 2017, arXiv 1703.02757; kappa: Allouah
      et al., Fixing by Mixing, arXiv 2302.01772.
    """
    require_faulty(faulty)
    validation.choice("others", others, OTHERS)

    def shares(
        products: Float[Array, "m m"], present: Bool[Array, " m"], key: Key[Array, ""]
    ) -> tuple[Float[Array, " m"], Metrics]:
        scores, bears = _scored(products, present, faulty, others)
        chosen = jnp.arange(len(present)) == jnp.argmin(scores)
        return (chosen & present).astype(products.dtype), {"tolerated": bears.astype(jnp.float32)}

    return combination(shares)


def multi_krum(
    faulty: int | Int[Array, ""],
    *,
    others: Others = "m-f-2",
    kept: Literal["m-f", "m-f-2"] = "m-f",
) -> Aggregator:
    """Multi-Krum: the mean of the messages with the least scores of `krum`.

        out = mean of the m - f messages with the least s_i              of equals the first, f = faulty

    Conditions and metrics are those of `krum`.

    Args:
      faulty: f >= 0, traceable.
      others: how many others a score counts, see `krum`.
      kept: how many messages are averaged, "m-f" or, as published, "m-f-2"; at least one.

    Returns:
      A `combination`. With f = 1 it makes 2.5 of the messages 1, 2, 3, 4, 100.

    Raises:
      TypeError, ValueError: as `krum`.

    Examples:
      >>> import jax, jax.numpy as jnp, dflax as dx
      >>> messages, weights = jnp.array([[1.0], [2.0], [3.0], [4.0], [100.0]]), jnp.ones(5)
      >>> rule = dx.aggregation.multi_krum(faulty=1)
      >>> combining = dx.aggregation.Combining(jax.random.key(0))
      >>> combined, *_ = rule.apply(messages, weights, rule.init(messages[0]), combining)
      >>> float(combined[0])
      2.5

    References:
      As `krum`.
    """
    require_faulty(faulty)
    validation.choice("others", others, OTHERS)
    validation.choice("kept", kept, KEPT)
    fewer = 0 if kept == "m-f" else 2

    def shares(
        products: Float[Array, "m m"], present: Bool[Array, " m"], key: Key[Array, ""]
    ) -> tuple[Float[Array, " m"], Metrics]:
        scores, bears = _scored(products, present, faulty, others)
        rank = jnp.argsort(jnp.argsort(scores))
        chosen = rank < jnp.maximum(jnp.sum(present) - bears - fewer, 1)
        return (chosen & present).astype(products.dtype), {"tolerated": bears.astype(jnp.float32)}

    return combination(shares)


def krum_scores(
    distances: Float[Array, "m m"], present: Bool[Array, " m"], others: Int[Array, ""]
) -> Float[Array, " m"]:
    """The sum of each one's least distances to others, so many of them; infinite for the absent.

    Args:
      distances: `[m, m]`, 0 on the diagonal, infinite to the absent.
      present: `[m]`.
      others: how many; at least 1 where anybody else is present, at most all others.
    """
    count = jnp.sum(present, dtype=jnp.int32)
    counted = jnp.clip(others, jnp.minimum(count - 1, 1), count - 1)
    rank = jnp.arange(len(present))
    ordered = jax.lax.sort(distances, dimension=1)
    # The first of a row is its own distance, 0.
    near = jnp.where((rank >= 1) & (rank <= counted), ordered, 0).sum(1)
    return jnp.where(present, near, jnp.inf)


def _scored(
    products: Float[Array, "m m"],
    present: Bool[Array, " m"],
    faulty: int | Int[Array, ""],
    others: Others,
) -> tuple[Float[Array, " m"], Int[Array, ""]]:
    fewer = 2 if others == "m-f-2" else 1
    rule = f"Krum by {others} others"
    require_messages(rule, faulty, len(present), more=3 if fewer == 2 else 1)
    count = jnp.sum(present, dtype=jnp.int32)
    bears = tolerated(faulty, count)
    near = distances_between(products, present)
    return krum_scores(near, present, count - bears - fewer), bears
