"""Selectors by likeness: clusters of tasks (ISAC) and nearest tasks."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Key

from dflax import validation
from dflax.inference.selection.performance import Performance, centred
from dflax.inference.selection.selector import (
    NEVER,
    Selector,
    Standard,
    lesson,
    mean_relative,
    standard_of,
    standardised,
)

# Lloyd's iterations; a few thousand tasks settle in fewer.
ITERATIONS = 60


class Clustered(NamedTuple):
    """Clusters of training tasks.

    Attributes:
      centres: `[C, d]` of standardised descriptors.
      relative: `[C, K]` mean z of each cluster's tasks; where nobody tried a method, that of all tasks.
      standard: of the descriptors.
    """

    centres: Float[Array, "C d"]
    relative: Float[Array, "C K"]
    standard: Standard


class Remembered(NamedTuple):
    """The training tasks themselves.

    Attributes:
      x: `[n, d]` standardised descriptors.
      relative: `[n, K]` their z.
      observed: `[n, K]`.
      weights: `[n]`.
      standard: of the descriptors.
    """

    x: Float[Array, "n d"]
    relative: Float[Array, "n K"]
    observed: Bool[Array, "n K"]
    weights: Float[Array, " n"]
    standard: Standard


def isac(clusters: int = 12, *, restarts: int = 4) -> Selector:
    """ISAC: k-means on the descriptors, and in each cluster the method that is best there on average.

    k-means begins with k-means++ and takes the best of several restarts by the sum of squares. One
    cluster is `global_best`; as many clusters as tasks are `nearest()`.

    Args:
      clusters: C >= 1; by `fit`, at most as many as there are tasks.
      restarts: >= 1, side by side.

    Raises:
      TypeError, ValueError: naming the argument.

    References:
      Kadioglu et al., ISAC: Instance-Specific Algorithm Configuration, ECAI 2010.
    """
    validation.integer("clusters", clusters, low=1)
    validation.integer("restarts", restarts, low=1)

    def fit(key: Key[Array, ""], x: Any, table: Performance, weights: Any = None) -> Clustered:
        validation.typed_key("key", key)
        x, table, weights = lesson(x, table, weights)
        if clusters > len(x):
            raise ValueError(f"clusters must be at most the {len(x)} tasks, got {clusters}.")
        standard = standard_of(x, weights)
        inputs = standardised(x, standard)
        centres = k_means(key, inputs, weights, clusters, restarts)
        own = jnp.eye(clusters)[_closest(inputs, centres)] * weights[:, None]
        tried = own.T @ table.observed.astype(jnp.float32)
        sums = own.T @ jnp.where(table.observed, centred(table).relative, 0.0)
        mean = sums / jnp.where(tried > 0, tried, 1.0)
        return Clustered(
            centres, jnp.where(tried > 0, mean, mean_relative(table, weights)), standard
        )

    def score(fitted: Clustered, x: Array) -> Array:
        inputs = standardised(jnp.asarray(x), fitted.standard)
        return fitted.relative[_closest(inputs, fitted.centres)]

    return Selector(fit, score)


def nearest(neighbours: int = 1) -> Selector:
    """The method that was best, on average, for the nearest training tasks by their descriptors.

    Args:
      neighbours: >= 1; by `fit`, at most as many as there are tasks. 1: what was best for one task.

    Raises:
      TypeError, ValueError: naming the argument.
    """
    validation.integer("neighbours", neighbours, low=1)

    def fit(key: Key[Array, ""], x: Any, table: Performance, weights: Any = None) -> Remembered:
        x, table, weights = lesson(x, table, weights)
        if neighbours > len(x):
            raise ValueError(f"neighbours must be at most the {len(x)} tasks, got {neighbours}.")
        standard = standard_of(x, weights)
        inputs = standardised(x, standard)
        return Remembered(inputs, centred(table).relative, table.observed, weights, standard)

    def score(fitted: Remembered, x: Array) -> Array:
        inputs = standardised(jnp.asarray(x), fitted.standard)
        apart = jnp.where(fitted.weights > 0, _squares(inputs, fitted.x), jnp.inf)
        _, rows = jax.lax.top_k(-apart, neighbours)
        tried = fitted.observed[rows] & (fitted.weights[rows] > 0)[..., None]
        total = jnp.where(tried, fitted.relative[rows], 0.0).sum(1)
        count = tried.sum(1)
        return jnp.where(count > 0, total / jnp.maximum(count, 1), NEVER)

    return Selector(fit, score)


def k_means(
    key: Key[Array, ""],
    x: Float[Array, "n d"],
    weights: Float[Array, " n"],
    clusters: int,
    restarts: int,
) -> Float[Array, "C d"]:
    """The centres of the restart with the least weighted sum of squares."""

    def seed(carry: tuple[Array, Array], key: Key[Array, ""]) -> tuple[tuple[Array, Array], Array]:
        apart, first = carry
        chance = weights * jnp.where(first, 1.0, apart)
        centre = x[jax.random.categorical(key, jnp.log(chance))]
        apart = jnp.minimum(apart, ((x - centre) ** 2).sum(-1))
        return (apart, jnp.array(False)), centre

    def move(centres: Array, _: None) -> tuple[Array, None]:
        own = jnp.eye(clusters)[_closest(x, centres)] * weights[:, None]
        count = own.sum(0)[:, None]
        moved = own.T @ x / jnp.where(count > 0, count, 1.0)
        return jnp.where(count > 0, moved, centres), None

    def once(key: Key[Array, ""]) -> tuple[Array, Array]:
        far = (jnp.full(len(x), jnp.inf), jnp.array(True))
        _, begin = jax.lax.scan(seed, far, jax.random.split(key, clusters))
        centres, _ = jax.lax.scan(move, begin, None, length=ITERATIONS)
        return centres, weights @ _squares(x, centres).min(-1)

    found, sums = jax.vmap(once)(jax.random.split(key, restarts))
    return found[jnp.argmin(sums)]


def _closest(x: Float[Array, "n d"], centres: Float[Array, "C d"]) -> Array:
    return jnp.argmin(_squares(x, centres), -1)


def _squares(x: Float[Array, "n d"], y: Float[Array, "m d"]) -> Float[Array, "n m"]:
    """Squared distances by one product, without the `[n, m, d]` of their differences."""
    products = jnp.matmul(x, y.T, precision=jax.lax.Precision.HIGHEST)
    return (x**2).sum(-1)[:, None] - 2.0 * products + (y**2).sum(-1)
