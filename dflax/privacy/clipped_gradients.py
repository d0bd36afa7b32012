"""The sum of examples' gradients, each cut to a length, without holding them all."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Key

from dflax import validation
from dflax.algorithm import Metrics, Params
from dflax.clients import against, platform
from dflax.data.dataset import Batch
from dflax.local.oracle import Loss, Oracle, gradient
from dflax.models.averaged import STATISTICS, holds_statistics
from dflax.privacy.convolved import Convolution
from dflax.privacy.products import Ghost, multiplied, products, squares, total

Groups = Callable[[str], str]
# Bytes of gradients and patches, example by example, that are held at the same time, where nobody says
# how many: on a CPU what its caches hold.
HELD = {"cpu": 1 << 21}
HELD_ELSEWHERE = 1 << 24


def layer(path: str) -> str:
    """The layer of a weight: its path without the last name."""
    validation.text("path", path)
    return path.rpartition("[")[0]


def clipped_per_example(
    loss: Loss | Oracle,
    norm: float | Float[Array, ""],
    *,
    expected: float | Float[Array, ""] | None = None,
    groups: Groups | None = None,
    at_once: int | None = None,
) -> Oracle:
    """The oracle of a minibatch in which no example counts for more than `norm / expected`.

        q = (1 / b) sum_j u_j g_j min(1, R / |g_j|)                            R = norm, b = expected

    g_j is the gradient on example j alone, |.| the Euclidean norm over all weights, and u_j is 1, or 0
    where `batch.mask` is 0. b is a number fixed beforehand. It is never the realised size of the
    batch, which is private itself. Adding or removing one example moves q by R / b at most. An example
    whose gradient holds a NaN or an infinity counts as 0.

    Weights that a plain loss multiplies by once, as dense layers do, cost no more than in a gradient
    of the minibatch: their gradients on single examples are never made. Nor are those of a convolution
    with many channels and few outputs. Those of all others are, for `at_once` examples at a time.

    Args:
      loss: a loss, or an `Oracle` without memory. It sees each example as a minibatch of its own, with
        a key of its own.
      norm: R > 0, traceable.
      expected: b > 0, traceable: the expected number of examples in a minibatch, p n_i of a client with
        n_i examples that are sampled with probability p. 1 gives the sum. None: the places of the
        minibatch, for batches without empty ones.
      groups: from a weight's path, as `jax.tree_util.keystr` shows it, to the name of its group, such
        as `layer`. Every one of G groups is then cut by itself, to R / sqrt(G), so that the whole is no
        longer than R. None: one group.
      at_once: examples whose gradients are held at the same time, >= 1; None: as many as fill 16 MiB,
        or 2 MiB on a CPU. Results differ by rounding alone.

    Returns:
      An `Oracle`. Metrics: the loss's own, means over the examples that are there (0 without any);
      "clipped", the share of them that was cut; "not_finite", how many counted as 0. They are exact,
      for whoever runs the simulation: nobody may publish them as they are.

    Raises:
      TypeError, ValueError: naming the argument; and, while it is traced, a model with running
        statistics, which mix the examples.

    Examples:
      >>> import jax, jax.numpy as jnp, dflax as dx
      >>> loss = dx.losses.squared_error(lambda params, inputs: inputs @ params)
      >>> batch = dx.data.Batch(jnp.eye(2), jnp.array([0.5, 100.0]))
      >>> oracle = dx.privacy.clipped_per_example(loss, norm=1.0)
      >>> seen, metrics = oracle(jnp.zeros(2), batch, jax.random.key(0))
      >>> seen.round(3).tolist(), float(metrics["clipped"])
      ([-0.25, -0.5], 0.5)

    References:
      Abadi et al., Deep Learning with Differential Privacy, arXiv 1607.00133; Li et al., Large Language
      Models Can Be Strong Differentially Private Learners, arXiv 2110.05679 (ghost norms).
    """
    oracle = gradient(loss)
    validation.real("norm", norm, low=0.0, low_open=True, scalar=True)
    if expected is not None:
        validation.real("expected", expected, low=0.0, low_open=True, scalar=True)
    if groups is not None:
        validation.function("groups", groups, "For example dflax.privacy.layer.", takes=1)
    validation.at_once(at_once)

    def evaluate(
        params: Params, batch: Batch, key: Key[Array, ""] | None
    ) -> tuple[Params, Metrics]:
        if holds_statistics(params):
            raise ValueError(
                f'params must hold no running statistics ("{STATISTICS}"), which mix the examples of a '
                "batch, where each is cut by itself. Take a model with GroupNorm."
            )
        size = batch.labels.shape[0]
        keys = None if key is None else jax.random.split(key, size)
        one = jax.tree.map(lambda leaf: leaf[:1], batch._replace(mask=None))
        ghosts = _ghosts(oracle, params, one, None if keys is None else keys[0])
        held = min(_fitting(params, ghosts) if at_once is None else at_once, size)
        # As many chunks, filled alike.
        held = -(-size // -(-size // held))
        mask = jnp.ones(size) if batch.mask is None else (batch.mask > 0).astype(jnp.float32)
        chunks = -(-size // held)
        fill = chunks * held - size
        # What fills the last chunk up is the first examples once more, which do not count.
        scanned: Any = jax.tree.map(
            lambda leaf: jnp.concatenate([leaf, leaf[:fill]]).reshape(
                chunks, held, *leaf.shape[1:]
            ),
            (batch._replace(mask=None), keys),
        )
        there = (jnp.arange(chunks * held) < size) & (jnp.concatenate([mask, mask[:fill]]) > 0)

        def chunk(some: Batch, own: Array | None, there: Bool[Array, " B"]) -> Any:
            seen = _seen(oracle, params, some, own, ghosts)
            return _cut(seen, there, norm, groups, size if expected is None else expected)

        def add(sums: Any, scanned: Any) -> tuple[Any, None]:
            return jax.tree.map(jnp.add, sums, chunk(*scanned)), None

        scanned = (*scanned, there.reshape(chunks, held))
        first = jax.tree.map(lambda leaf: leaf[0], scanned)
        if chunks == 1:
            summed, measured, bad = chunk(*first)
        else:
            zeros = jax.tree.map(
                lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), jax.eval_shape(chunk, *first)
            )
            (summed, measured, bad), _ = jax.lax.scan(add, zeros, scanned)
        mean = [q.astype(x.dtype) for q, x in zip(summed, jax.tree.leaves(params), strict=True)]
        count = jnp.maximum(mask.sum(), 1)
        metrics = jax.tree.map(lambda leaf: leaf / count.astype(leaf.dtype), measured)
        metrics["not_finite"] = bad
        return jax.tree.unflatten(jax.tree.structure(params), mean), metrics

    return Oracle(evaluate)


class _Seen(NamedTuple):
    """What is known of the gradients of some examples.

    Attributes:
      gradients: per leaf of the params `[B, ...]`, None of those below.
      ghosts: per leaf that takes part in one product: it, what it was one with, and its gradient.
      metrics: leaves `[B]`.
      params: the model, for names and shapes.
    """

    gradients: dict[int, Array]
    ghosts: dict[int, tuple[Ghost, Array, Array]]
    metrics: Metrics
    params: Params


def _ghosts(oracle: Oracle, params: Params, one: Batch, key: Any) -> dict[int, Ghost]:
    """The leaves whose gradients are products of rows."""
    if oracle.objective is None:
        return {}
    program = jax.make_jaxpr(oracle.objective)(params, one, key)
    return products(program, len(jax.tree.leaves(params)))


def _fitting(params: Params, ghosts: dict[int, Ghost]) -> int:
    def held(leaf: int, value: Array) -> int:
        ghost = ghosts.get(leaf)
        numbers = value.size if ghost is None else 0
        if isinstance(ghost, Convolution):
            numbers = ghost.numbers_held
        return numbers * value.dtype.itemsize

    bytes_each = sum(held(*given) for given in enumerate(jax.tree.leaves(params)))
    return max(HELD.get(platform(), HELD_ELSEWHERE) // max(bytes_each, 1), 1)


def _seen(
    oracle: Oracle, params: Params, batch: Batch, keys: Any, ghosts: dict[int, Ghost]
) -> _Seen:
    """The gradients of some examples, of each as a minibatch of its own."""
    leaves, structure = jax.tree.flatten(params)
    if not ghosts:

        def alone(example: Batch, key: Any) -> tuple[Params, Metrics]:
            single = jax.tree.map(lambda leaf: leaf[None], example)
            return oracle(params, single, key)

        gradients, metrics = jax.vmap(alone)(batch, keys)
        return _Seen(dict(enumerate(jax.tree.leaves(gradients))), {}, metrics, params)

    whole = [leaf for leaf in range(len(leaves)) if leaf not in ghosts]

    def objective(
        made: dict[int, Array], probes: dict[int, Array], example: Batch, key: Any
    ) -> tuple[Array, Any]:
        assert oracle.objective is not None, "only such have ghosts"
        filled = [made.get(leaf, value) for leaf, value in enumerate(leaves)]
        single = jax.tree.map(lambda leaf: leaf[None], example)
        of = jax.tree.unflatten(structure, filled), single, key
        program, shapes = jax.make_jaxpr(oracle.objective, return_shape=True)(*of)
        results, others = multiplied(program, filled, jax.tree.leaves(of[1:]), ghosts, probes)
        value, metrics = jax.tree.unflatten(jax.tree.structure(shapes), results)
        return value, (metrics, others)

    differentiate = jax.grad(objective, argnums=(0, 1), has_aux=True)
    made = {leaf: leaves[leaf] for leaf in whole}
    probes = {leaf: jnp.zeros(p.shape, p.dtype) for leaf, p in ghosts.items()}
    (gradients, seen), (metrics, others) = jax.vmap(differentiate, in_axes=(None, None, 0, 0))(
        made, probes, batch, keys
    )
    found = {}
    for leaf, ghost in ghosts.items():
        if isinstance(ghost, Convolution) and not ghost.by_rows:
            gradients[leaf] = ghost.each(others[leaf], seen[leaf])
        else:
            found[leaf] = (ghost, ghost.rows(others[leaf]), ghost.gradients(seen[leaf]))
    return _Seen(gradients, found, metrics, params)


def _cut(
    seen: _Seen,
    there: Bool[Array, " B"],
    norm: float | Array,
    groups: Groups | None,
    divisor: float | Array,
) -> tuple[list[Array], Metrics, Array]:
    """Sums over examples: of gradients cut to a length, of metrics, and of those that count as 0.

    Those of the gradients are over the divisor, which so needs no pass over the model of its own.
    """
    named = jax.tree_util.tree_leaves_with_path(seen.params)
    names = ["" if groups is None else groups(jax.tree_util.keystr(path)) for path, _ in named]
    among: dict[str, Any] = {}
    for leaf, name in enumerate(names):
        if leaf in seen.ghosts:
            _, rows, gradients = seen.ghosts[leaf]
            own = squares(rows, gradients)
        else:
            own = _row_squares(seen.gradients[leaf])
        among[name] = among[name] + own if name in among else own
    bound = norm / len(among) ** 0.5
    finite = jnp.isfinite(sum(among.values(), start=jnp.float32(0)))
    counts = there & finite
    factors, longer = {}, jnp.zeros(there.shape, bool)
    for name, square in among.items():
        length = jnp.sqrt(square)
        over = counts & (length > bound)
        cut = jnp.where(over, bound / jnp.where(over, length, 1), 1)
        factors[name] = jnp.where(counts, cut, 0) / jnp.asarray(divisor, length.dtype)
        longer = longer | over
    sums = []
    for leaf, name in enumerate(names):
        if leaf in seen.ghosts:
            sums.append(total(*seen.ghosts[leaf], factors[name], counts))
        else:
            sums.append(_weighted(seen.gradients[leaf], factors[name], counts))
    measured = jax.tree.map(lambda values: _weighted(values, there, there), dict(seen.metrics))
    measured["clipped"] = jnp.sum(longer).astype(jnp.float32)
    return sums, measured, jnp.sum(there & ~finite).astype(jnp.float32)


def _row_squares(rows: Float[Array, "B ..."]) -> Float[Array, " B"]:
    wide = rows.astype(jnp.promote_types(rows.dtype, jnp.float32))
    return jnp.sum(jnp.square(wide).reshape(rows.shape[0], -1), axis=1)


def _weighted(rows: Float[Array, "B ..."], weights: Array, there: Array) -> Float[Array, "..."]:
    """`sum_j w_j rows_j` over those who are there, in float32 or wider; the others may hold NaN."""
    wide = rows.astype(jnp.promote_types(rows.dtype, jnp.float32))
    kept = jnp.where(against(there, wide), wide, 0)
    return jnp.tensordot(weights.astype(wide.dtype), kept, axes=1)
