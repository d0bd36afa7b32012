"""How far apart the answers of two nodes are: what consensus is about."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Key

from dflax import validation


class Measure(NamedTuple):
    """What nodes reveal, and how it is compared and put together. Pure functions.

    Attributes:
      reveal: `reveal(key, outputs [B, C]) -> answer`, what a node sends; `key` is its own.
      distances: `distances(key, answers [k, ...]) -> [k, k]`; `key` is the query's, the same for all.
      combine: `combine(answers, members [k] bool) -> result [B, C]` of a consensus set.
      wrong: `wrong(result [B, C], outputs [B, C], tolerance) -> bool`, whether a result is not what the
        right model's outputs stand for.
    """

    reveal: Callable[[Key[Array, ""], Array], Any]
    distances: Callable[[Key[Array, ""], Any], Float[Array, "k k"]]
    combine: Callable[[Any, Bool[Array, " k"]], Array]
    wrong: Callable[[Array, Array, Array], Bool[Array, ""]]


def relative_difference() -> Measure:
    """The largest difference of two outputs, by the largest of their entries: of deterministic models.

        dist(y, z) = max |y - z| / max(max |y|, max |z|)

    The result is the coordinate-wise median of the consensus set. It is wrong if it is farther than the
    tolerance from the right model's outputs.
    """

    def distances(key: Array, answers: Array) -> Array:
        return _pairwise(_relative, answers)

    def wrong(result: Array, outputs: Array, tolerance: Array) -> Array:
        return ~(_relative(result, outputs) <= tolerance)

    return Measure(_as_it_is, distances, median_of, wrong)


def jensen_shannon() -> Measure:
    """The Jensen-Shannon divergence of output distributions softmax(y), in nats, in [0, ln 2].

        JS(p, q) = (KL(p | m) + KL(q | m)) / 2,   m = (p + q) / 2

    Of a query's examples the largest counts. The result is the median of the scores y.
    """

    def distances(key: Array, answers: Array) -> Array:
        return _pairwise(_divergence, answers)

    def wrong(result: Array, outputs: Array, tolerance: Array) -> Array:
        return ~(_divergence(result, outputs) <= tolerance)

    return Measure(_as_it_is, distances, median_of, wrong)


def labels() -> Measure:
    """0 where two nodes have the same labels for all of a query's examples, else 1.

    A label is the argmax over the last axis.
    With it consensus is the vote of the majority: the quorum is what the most frequent answer needs. Any
    tolerance below 1 will do. A result is wrong if a label is.
    """

    def distances(key: Array, answers: Array) -> Array:
        found = jnp.argmax(answers, axis=-1)
        differ = jnp.any((found[:, None] != found).reshape(*(found.shape[0],) * 2, -1), axis=-1)
        broken = jnp.any(jnp.isnan(answers).reshape(answers.shape[0], -1), axis=-1)
        return jnp.where(broken[:, None] | broken, jnp.nan, differ.astype(jnp.float32))

    return Measure(_as_it_is, distances, median_of, _labels_differ)


def two_sample_test(
    statistic: str = "energy", *, samples: int = 32, permutations: int = 199
) -> Measure:
    """A test whether two nodes sample from one distribution: for models whose outputs are drawn.

    A node reveals so many labels for each example, drawn from softmax(y) by its own key. Of two
    nodes the statistic of their one-hot samples is compared with that after exchanging samples
    between them:

        energy   2 E|X - Y| - E|X - X'| - E|Y - Y'|
        mmd      E k(X, X') + E k(Y, Y') - 2 E k(X, Y),   k(x, y) = exp(-|x - y|^2 / B)
        p        (1 + number of permutations with at least the statistic) / (1 + permutations)

    The distance is 1 - p, so that a tolerance of 0.99 is the level 0.01: honest nodes then disagree in
    one pair of a hundred. The result is the share of each label among the samples of the consensus
    set. It is wrong if its label of any example is not the right one.

    Args:
      statistic: "energy" or "mmd".
      samples: of a node for each example, >= 2.
      permutations: >= 19; 1 / (1 + permutations) is the least p, which must be below the level.

    Raises:
      TypeError, ValueError: naming the argument.

    References:
      Szekely and Rizzo, Energy statistics, JSPI 2013. Gretton et al., A kernel two-sample test,
      JMLR 2012.
    """
    validation.choice("statistic", statistic, ("energy", "mmd"))
    validation.integer("samples", samples, low=2)
    validation.integer("permutations", permutations, low=19)

    def reveal(key: Array, outputs: Array) -> Array:
        drawn = jax.random.categorical(key, outputs, shape=(samples, *outputs.shape[:-1]))
        broken = jnp.where(jnp.any(jnp.isnan(outputs)), jnp.nan, 0.0)
        return jax.nn.one_hot(drawn, outputs.shape[-1]) + broken

    def distances(key: Array, answers: Array) -> Array:
        nodes = answers.shape[0]
        flat = answers.reshape(nodes * samples, -1)
        # One-hot vectors: |x - y|^2 is twice the number of labels that differ.
        examples = answers.size // (nodes * samples * answers.shape[-1])
        squared = jnp.maximum(2.0 * (examples - flat @ flat.T), 0.0)
        kernel = -jnp.sqrt(squared) if statistic == "energy" else jnp.exp(-squared / examples)
        blocks = kernel.reshape(nodes, samples, nodes, samples).transpose(0, 2, 1, 3)
        signs = _exchanges(key, samples, permutations)

        def tested(i: Array, j: Array) -> Array:
            both = jnp.block([[blocks[i, i], blocks[i, j]], [blocks[j, i], blocks[j, j]]])
            values = jnp.sum((signs @ both) * signs, axis=1)
            at_least = jnp.sum(values[1:] >= values[0] - 1e-6)
            p = (1.0 + at_least) / (1.0 + permutations)
            return jnp.where(jnp.isnan(values[0]), jnp.nan, 1.0 - p)

        numbers = jnp.arange(nodes)
        found = jax.vmap(lambda i: jax.vmap(lambda j: tested(i, j))(numbers))(numbers)
        # Exchanges are of the second with the first: a pair has one test, not two.
        upper = jnp.triu(found, 1)
        same = jnp.where(jnp.isnan(jnp.diagonal(found)), jnp.nan, 0.0)
        return upper + upper.T + jnp.diag(same)

    def combine(answers: Array, members: Array) -> Array:
        weights = members.astype(jnp.float32) / jnp.maximum(jnp.sum(members), 1)
        held = jnp.where(members.reshape(-1, *(1,) * (answers.ndim - 1)), answers, 0.0)
        return jnp.tensordot(weights, held.mean(1), axes=1)

    return Measure(reveal, distances, combine, _labels_differ)


def on_subset(measure: Measure, size: int) -> Measure:
    """A measure on so many outputs alone, drawn anew for each query: cheaper, and easier to cheat.

    Args:
      measure: of what nodes reveal, with classes on the last axis.
      size: r >= 1, of the last axis; at most its length.

    Raises:
      TypeError, ValueError: naming the argument.
    """
    validation.instance("measure", measure, Measure, "For example relative_difference().")
    validation.integer("size", size, low=1)

    def distances(key: Array, answers: Array) -> Array:
        own, key = jax.random.split(key)
        length = answers.shape[-1]
        if size > length:
            raise ValueError(f"size must be at most the {length} outputs, got {size}.")
        chosen = jax.random.permutation(own, length)[:size]
        return measure.distances(key, jnp.asarray(answers)[..., chosen])

    return measure._replace(distances=distances)


def median_of(answers: Float[Array, "k ..."], members: Bool[Array, " k"]) -> Float[Array, "..."]:
    """The coordinate-wise median over members; NaN without any."""
    count = jnp.sum(members)
    rows = members.reshape(-1, *(1,) * (answers.ndim - 1))
    ordered = jnp.sort(jnp.where(rows, answers, jnp.inf), axis=0)
    low = ordered[jnp.maximum((count - 1) // 2, 0)]
    # An odd count takes its middle as it is: a mean of two equal numbers may round.
    middle = jnp.where(count % 2 == 1, low, 0.5 * (low + ordered[count // 2]))
    return jnp.where(count > 0, middle, jnp.nan)


def _as_it_is(key: Array, outputs: Array) -> Array:
    return outputs


def _labels_differ(result: Array, outputs: Array, tolerance: Array) -> Array:
    found, right = jnp.argmax(result, -1), jnp.argmax(outputs, -1)
    return jnp.any(found != right) | jnp.any(jnp.isnan(result))


def _pairwise(distance: Callable[[Array, Array], Array], answers: Array) -> Array:
    return jax.vmap(lambda y: jax.vmap(lambda z: distance(y, z))(answers))(answers)


def _relative(y: Array, z: Array) -> Array:
    size = jnp.maximum(jnp.max(jnp.abs(y)), jnp.max(jnp.abs(z)))
    gap = jnp.max(jnp.abs(y - z))
    return jnp.where(gap == 0, 0.0, gap / size)


def _divergence(y: Array, z: Array) -> Array:
    p, q = jax.nn.log_softmax(y), jax.nn.log_softmax(z)
    middle = jnp.logaddexp(p, q) - jnp.log(2.0)
    both = jnp.exp(p) * (p - middle) + jnp.exp(q) * (q - middle)
    return jnp.max(jnp.maximum(0.5 * jnp.sum(both, axis=-1), 0.0))


def _exchanges(key: Array, samples: int, permutations: int) -> Float[Array, "P s"]:
    """Signs over pooled samples, 1 / s and -1 / s: first the samples as they are, then exchanged."""
    own = jnp.where(jnp.arange(2 * samples) < samples, 1.0, -1.0) / samples
    keys = jax.random.split(key, permutations)
    mixed = jax.vmap(lambda one: jax.random.permutation(one, own))(keys)
    return jnp.concatenate([own[None], mixed])
