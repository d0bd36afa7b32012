"""The sum of examples' gradients, each cut to a length, without holding them all."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from dflax import validation
from dflax.algorithm import Metrics, Params
from dflax.clients import against
from dflax.data.dataset import Batch
from dflax.local.oracle import Loss, Oracle
from dflax.local.per_example import per_example

Groups = Callable[[str], str]


def layer(path: str) -> str:
    """The layer of a weight: its path without the last name."""
    return path.rpartition("[")[0]


def clipped_per_example(
    loss: Loss | Oracle,
    norm: float | Float[Array, ""],
    *,
    expected: float | Float[Array, ""] | None = None,
    groups: Groups | None = None,
    at_once: int | None = 8,
) -> Oracle:
    """The oracle of a minibatch in which no example counts for more than `norm / expected`.

        q = (1 / b) sum_j u_j g_j min(1, R / |g_j|)                            R = norm, b = expected

    g_j is the gradient on example j alone, |.| the Euclidean norm over all weights, and u_j is 1, or 0
    where `batch.mask` is 0. b is a number fixed beforehand. It is never the realised size of the
    batch, which is private itself. Adding or removing one example moves q by R / b at most. An example
    whose gradient holds a NaN or an infinity counts as 0.

    Args:
      loss: a loss, or an `Oracle` without memory.
      norm: R > 0, traceable.
      expected: b > 0, traceable: the expected number of examples in a minibatch, p n_i of a client with
        n_i examples that are sampled with probability p. 1 gives the sum. None: the places of the
        minibatch, for batches without empty ones.
      groups: from a weight's path, as `jax.tree_util.keystr` shows it, to the name of its group, such
        as `layer`. Every one of G groups is then cut by itself, to R / sqrt(G), so that the whole is no
        longer than R. None: one group.
      at_once: examples whose gradients are held at the same time, >= 1; None: all of them.

    Returns:
      An `Oracle`. Metrics: the loss's own, means over the examples that are there (0 without any);
      "clipped", the share of them that was cut; "not_finite", how many counted as 0. They are exact,
      for whoever runs the simulation: nobody may publish them as they are.

    Raises:
      TypeError, ValueError: naming the argument; and, while it is traced, a model with running
        statistics, which mix the examples.

    References:
      Abadi et al., Deep Learning with Differential Privacy, arXiv 1607.00133.
    """
    examples = per_example(loss)
    validation.real("norm", norm, low=0.0, low_open=True, scalar=True)
    if expected is not None:
        validation.real("expected", expected, low=0.0, low_open=True, scalar=True)
    if groups is not None:
        validation.function("groups", groups, "For example dflax.privacy.layer.", takes=1)
    validation.at_once(at_once)

    def evaluate(
        params: Params, batch: Batch, key: Key[Array, ""] | None
    ) -> tuple[Params, Metrics]:
        size = batch.labels.shape[0]
        held = size if at_once is None else min(at_once, size)
        mask = jnp.ones(size) if batch.mask is None else (batch.mask > 0).astype(jnp.float32)
        chunks = -(-size // held)

        def padded(leaf: Array) -> Array:
            repeated = jnp.concatenate([leaf, leaf[: chunks * held - size]])
            return repeated.reshape(chunks, held, *leaf.shape[1:])

        there = jnp.concatenate([mask, jnp.zeros(chunks * held - size)]).reshape(chunks, held)
        some = jax.tree.map(padded, batch._replace(mask=None))._replace(mask=there)

        def chunk(number: Any, some: Batch) -> tuple[Params, Metrics]:
            own = None if key is None else jax.random.fold_in(key, number)
            gradients, metrics = examples(params, some, own)  # type: ignore[arg-type]
            return _summed(gradients, metrics, some.mask, norm, groups)

        def add(total: Any, scanned: Any) -> tuple[Any, None]:
            return jax.tree.map(jnp.add, total, chunk(*scanned)), None

        numbers = jnp.arange(chunks, dtype=jnp.int32)
        if chunks == 1:
            found = chunk(numbers[0], jax.tree.map(lambda leaf: leaf[0], some))
        else:
            shapes = jax.eval_shape(chunk, numbers[0], jax.tree.map(lambda leaf: leaf[0], some))
            zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
            found, _ = jax.lax.scan(add, zeros, (numbers, some))
        total, sums = found
        divisor = size if expected is None else expected
        count = jnp.maximum(mask.sum(), 1)
        bad = sums.pop("not_finite")
        means = jax.tree.map(lambda leaf: leaf / count.astype(leaf.dtype), sums)
        mean = jax.tree.map(
            lambda q, x: (q / jnp.asarray(divisor, q.dtype)).astype(x.dtype), total, params
        )
        return mean, {**means, "not_finite": bad}

    return Oracle(evaluate)


def _summed(
    gradients: Params,
    metrics: Metrics,
    mask: Float[Array, " B"],
    norm: float | Array,
    groups: Groups | None,
) -> tuple[Params, Metrics]:
    """The sum of the rows that are there, cut, and the sums of their metrics."""
    paths, leaves = zip(*jax.tree_util.tree_leaves_with_path(gradients), strict=True)
    squares = [_row_squares(leaf) for leaf in leaves]
    names = ["" if groups is None else groups(jax.tree_util.keystr(path)) for path in paths]
    among: dict[str, Array] = {}
    for name, square in zip(names, squares, strict=True):
        among[name] = among.get(name, 0.0) + square
    bound = norm / jnp.sqrt(jnp.float32(len(among)))
    finite = jnp.isfinite(sum(among.values()))
    there = (mask > 0) & finite
    factors, cut = {}, jnp.zeros(mask.shape, bool)
    for name, square in among.items():
        length = jnp.sqrt(square)
        longer = there & (length > bound)
        factors[name] = jnp.where(there, bound / jnp.where(longer, length, bound), 0)
        cut = cut | longer
    total = [
        _weighted(leaf, factors[name], there) for name, leaf in zip(names, leaves, strict=True)
    ]
    counted = jax.tree.map(lambda leaf: _weighted(leaf, mask, mask > 0), metrics)
    measured = {
        "clipped": jnp.sum(cut).astype(jnp.float32),
        "not_finite": jnp.sum((mask > 0) & ~finite).astype(jnp.float32),
    }
    return jax.tree.unflatten(jax.tree.structure(gradients), total), {**counted, **measured}


def _row_squares(leaf: Array) -> Float[Array, " B"]:
    wide = leaf.astype(jnp.promote_types(leaf.dtype, jnp.float32))
    return jnp.sum(jnp.square(wide).reshape(leaf.shape[0], -1), axis=1)


def _weighted(leaf: Array, weights: Array, there: Array) -> Array:
    """`sum_j w_j leaf_j` over those who are there, in float32 or wider; others may hold NaN."""
    wide = leaf.astype(jnp.promote_types(leaf.dtype, jnp.float32))
    kept = jnp.where(against(there, wide), wide, 0)
    return jnp.tensordot(weights.astype(wide.dtype), kept, axes=1)
