"""Rules that look at all subsets of the messages: MDA, MVA and SMEA."""

import itertools
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Key

from dflax import validation
from dflax.aggregation.aggregator import Aggregator
from dflax.aggregation.combination import combination, distances_between
from dflax.aggregation.tolerance import require_messages, tolerated
from dflax.algorithm import Metrics

# Subsets that are looked at one by one, and numbers of matrices that are worked on at a time.
MOST, ELEMENTS = 20_000, 1 << 20
Badness = Callable[[Float[Array, "m m"], Bool[Array, "b m"], Bool[Array, " m"]], Float[Array, " b"]]


def mda(faulty: int) -> Aggregator:
    """Minimum diameter averaging: the mean of the m - f messages that are closest together.

        S = the (m - f)-subset with the least max_{i, j in S} |x_i - x_j|          of equals the first
        out = mean of x_i over S                                                            f = faulty

    m messages arrived, of which up to f may be arbitrary: m > 2 f. Where only m <= 2 f arrive in a
    round, f is `(m - 1) // 2` there; the metric `tolerated` tells. All C(n, f) subsets are tried.

    Args:
      faulty: f >= 0, static.

    Returns:
      A `combination`. With f = 1 it makes 2.5 of the messages 1, 2, 3, 4, 100.

    Raises:
      TypeError, ValueError: naming the argument; and, when the messages of a round are seen, n <= 2 f of
        them, or more than 20,000 subsets.

    References:
      El Mhamdi et al., Genuinely Distributed Byzantine Machine Learning, arXiv 1905.03853.
    """

    def diameters(
        products: Float[Array, "m m"], subsets: Bool[Array, "b m"], present: Bool[Array, " m"]
    ) -> Float[Array, " b"]:
        pairs = subsets[:, :, None] & subsets[:, None]
        return jnp.max(jnp.where(pairs, distances_between(products, present), 0), axis=(1, 2))

    return _of_least("MDA", faulty, diameters)


def mva(faulty: int) -> Aggregator:
    """Minimum variance averaging: the mean of the m - f messages that are least spread.

        S = the (m - f)-subset with the least sum_{i in S} |x_i - mean of S|^2       of equals the first
        out = mean of x_i over S                                                              f = faulty

    Conditions, metrics and price are those of `mda`.

    Args:
      faulty: f >= 0, static.

    Returns:
      A `combination`. With f = 1 it makes 2.5 of the messages 1, 2, 3, 4, 100.

    Raises:
      TypeError, ValueError: as `mda`.
    """

    def variances(
        products: Float[Array, "m m"], subsets: Bool[Array, "b m"], present: Bool[Array, " m"]
    ) -> Float[Array, " b"]:
        # All subsets are of one size k, and 2 k times the sum is that of all pairs' distances.
        between = jnp.where(present[:, None] & present, distances_between(products, present), 0)
        within = subsets.astype(products.dtype)
        to = jnp.matmul(within, between, precision=jax.lax.Precision.HIGHEST)
        return jnp.sum(to * within, axis=1)

    return _of_least("MVA", faulty, variances)


def smea(faulty: int) -> Aggregator:
    """Smallest maximum eigenvalue averaging: the m - f messages least spread in any direction.

        S = the (m - f)-subset whose covariance has the least top eigenvalue         of equals the first
        out = mean of x_i over S                                                              f = faulty

    Conditions, metrics and price are those of `mda`, with the eigenvalues of an m x m matrix for every
    subset. In the spectral norm it is robust with kappa = 4 f / (m - f) (1 + f / (m - 2 f))^2.

    Args:
      faulty: f >= 0, static.

    Returns:
      A `combination`. With f = 1 it makes 2.5 of the messages 1, 2, 3, 4, 100.

    Raises:
      TypeError, ValueError: as `mda`.

    References:
      Allouah et al., On the Privacy-Robustness-Utility Trilemma in Distributed Learning,
      arXiv 2302.04787.
    """

    def eigenvalues(
        products: Float[Array, "m m"], subsets: Bool[Array, "b m"], present: Bool[Array, " m"]
    ) -> Float[Array, " b"]:
        return jnp.linalg.eigvalsh(_covariances(products, subsets))[:, -1]

    return _of_least("SMEA", faulty, eigenvalues)


def _of_least(rule: str, faulty: int, badness: Badness) -> Aggregator:
    """The mean of the subset of least badness."""
    validation.integer("faulty", faulty, low=0)

    def shares(
        products: Float[Array, "m m"], present: Bool[Array, " m"], key: Key[Array, ""]
    ) -> tuple[Float[Array, " m"], Metrics]:
        count = len(present)
        require_messages(rule, faulty, count)
        excluded = _excluded(rule, count, faulty)
        bears = tolerated(faulty, jnp.sum(present, dtype=jnp.int32))

        def of(excluded: Int[Array, " f"]) -> Bool[Array, " m"]:
            return present & ~jnp.any(jnp.arange(count) == excluded[:, None], axis=0)

        def judge(excluded: Int[Array, "b f"]) -> Float[Array, " b"]:
            subsets = jax.vmap(of)(excluded)
            # Of those who are there just so many are left out.
            fits = subsets.sum(1) == present.sum() - bears
            return jnp.where(fits, badness(products, subsets, present), jnp.inf)

        width = min(len(excluded), max(1, ELEMENTS // count**2))
        filled = np.resize(excluded, (-(-len(excluded) // width), width, faulty))
        found = jax.lax.map(judge, jnp.asarray(filled)).reshape(-1)
        chosen = of(jnp.asarray(excluded)[jnp.argmin(found[: len(excluded)])])
        return chosen.astype(products.dtype), {"tolerated": bears.astype(jnp.float32)}

    return combination(shares)


def _covariances(
    products: Float[Array, "m m"], subsets: Bool[Array, "b m"]
) -> Float[Array, "b m m"]:
    """The products of a subset's messages about its mean, over its size; 0 for the others."""
    within = subsets.astype(products.dtype)
    size = jnp.maximum(within.sum(1), 1)[:, None]
    shares = within / size
    rows = jnp.matmul(shares, products, precision=jax.lax.Precision.HIGHEST)
    mean = jnp.sum(rows * shares, axis=1)[:, None, None]
    about = products - rows[:, :, None] - rows[:, None] + mean
    return jnp.where(subsets[:, :, None] & subsets[:, None], about, 0) / size[:, :, None]


def _excluded(rule: str, count: int, faulty: int) -> Int[np.ndarray, "M f"]:
    """Who is left out of each subset of n - f, in the order of the subsets."""
    subsets = math.comb(count, faulty)
    if subsets > MOST:
        raise ValueError(
            f"faulty must leave at most {MOST:,} subsets, got {faulty} of {count} messages, which makes "
            f"{subsets:,}. {rule} tries them all: take caf, or nnm with a median, for so many."
        )
    kept = itertools.combinations(range(count), count - faulty)
    everyone = set(range(count))
    rows = [sorted(everyone.difference(one)) for one in kept]
    return np.asarray(rows, np.int32).reshape(subsets, faulty)
