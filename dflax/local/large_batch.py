"""Large batches: a client's gradient over all of its examples, or over many, read piece by piece."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from dflax import counter, validation
from dflax.algorithm import Params
from dflax.data.class_laws import ClassLaws
from dflax.data.dataset import Dataset
from dflax.local.oracle import Oracle
from dflax.population import Round


class LargeBatch(NamedTuple):
    """Examples of one client in pieces of B; stacked over clients every leaf leads with m.

    Attributes:
      minibatches: `[J, B]` int32 indices into the data set.
      examples: `[]` int32, how many of them count, the first ones.
    """

    minibatches: Int[Array, "J B"]
    examples: Int[Array, ""]


def large_batches(
    round: Round,
    key: Key[Array, ""],
    *,
    examples: int | None = None,
    batch_size: int = 500,
) -> LargeBatch:
    """Every cohort member's large batch: all of its examples, or some, each at most once.

    Args:
      round: whose cohort is asked; `round._replace(cohort=None)` asks all n clients.
      key: of the draw.
      examples: how many, >= 1; of a client that owns fewer, all. None: all of everyone's, which asks
        for clients that own examples rather than a law over classes.
      batch_size: examples in a piece, >= 1.

    Returns:
      A `LargeBatch` with leaves `[m, ...]`.

    Raises:
      TypeError, ValueError: naming the argument.
    """
    validation.instance("round", round, Round, "It is what Federation.draw returns.")
    validation.typed_key("key", key)
    validation.integer("batch_size", batch_size, low=1)
    if examples is not None:
        validation.integer("examples", examples, low=1, fix="Or None for all of them.")
    elif isinstance(round.partition, ClassLaws):
        raise ValueError(
            "examples must be given, how many to draw, where clients own a law over classes, got None."
        )
    most = int(round.largest) if examples is None else examples
    width = min(batch_size, most)
    ids = round.members
    # In a stream without replacement the first n_i places are the client's examples, once each.
    minibatches = round.partition.minibatches(
        counter.seed_of(key), ids, jnp.int32(0), -(-most // width), width, False
    )
    counted = jnp.full(ids.shape, most, jnp.int32)
    if not isinstance(round.partition, ClassLaws):
        counted = jnp.minimum(counted, round.partition.sizes[ids])
    return LargeBatch(minibatches, counted)


def large_gradient(
    oracle: Oracle,
    params: Params,
    batch: LargeBatch,
    data: Dataset,
    key: Key[Array, ""] | None = None,
) -> Params:
    """The mean over one client's large batch of the gradients at a model.

    Pieces are read one after another, the last one filled up with masked examples, so clients of
    different sizes get their exact mean, each with as many pieces as it needs.

    Args:
      oracle: of a loss that respects `batch.mask`.
      params: the model.
      batch: one client's, `[J, B]`.
      data: what the indices point into.
      key: of whatever is random in the loss or the data's transform; None: nothing is, as in
        evaluation.
    """
    width = batch.minibatches.shape[1]

    def step(total: Params, scanned: tuple[Array, Array]) -> tuple[Params, None]:
        piece, minibatch = scanned
        counted = jnp.clip(batch.examples - piece * width, 0, width)
        own_key: Any = None if key is None else jax.random.fold_in(key, piece)
        examples = data.fetch(minibatch, own_key)
        mask: Float[Array, " B"] = (jnp.arange(width) < counted).astype(jnp.float32)

        def add(total: Params) -> Params:
            seen, _ = oracle(params, examples._replace(mask=mask), own_key)
            return jax.tree.map(lambda t, g: t + share(t.dtype) * g.astype(t.dtype), total, seen)

        def share(dtype: Any) -> Float[Array, ""]:
            return counted.astype(dtype) / batch.examples.astype(dtype)

        # Under vmap this is a select; for a client alone it saves the pieces it has not got.
        return jax.lax.cond(counted > 0, add, lambda t: t, total), None

    def zeros(leaf: Array) -> Array:
        return jnp.zeros(jnp.shape(leaf), jnp.promote_types(jnp.result_type(leaf), jnp.float32))

    scanned = (jnp.arange(batch.minibatches.shape[0], dtype=jnp.int32), batch.minibatches)
    total, _ = jax.lax.scan(step, jax.tree.map(zeros, params), scanned)
    return jax.tree.map(lambda t, x: t.astype(x.dtype), total, params)
