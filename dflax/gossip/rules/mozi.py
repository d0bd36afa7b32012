"""MOZI: a client keeps the near half of what it hears, and of that what does no worse on its data."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from dflax import validation
from dflax.aggregation.rows.distances import finite_rows
from dflax.algorithm import Metrics, Params
from dflax.clients import against
from dflax.data.dataset import Batch
from dflax.gossip.mixer import Known
from dflax.gossip.rules.bristle.class_tests import ClassTests
from dflax.gossip.rules.bristle.draws import distances_to
from dflax.gossip.rules.calibration import examples_of
from dflax.gossip.rules.neighbour_rule import Neighbourhood, NeighbourRule, nothing_to_remember
from dflax.local.oracle import Loss


def mozi(
    loss: Loss,
    *,
    share: float = 0.5,
    own_weight: float = 0.5,
    batch_size: int = 100,
    tests: ClassTests | None = None,
) -> NeighbourRule:
    """MOZI, later called UBAR: neighbours pass a test of distance, then one of the loss.

        near = the ceil(share k) of the k models heard that are nearest to x
        kept = those of near whose loss on examples of the client is at most that of x
        x <- own_weight x + (1 - own_weight) mean of kept                 x where none is kept

    The published rule takes the near model of least loss where none is kept; the code of Bristle's
    authors, which this follows, stays where it is. A model that holds a NaN or an infinity counts as
    absent. What is heard counts, not the mixing weights.

    Args:
      loss: `(params, batch, key) -> (loss, metrics)`; the key is None.
      share: in [0, 1], traceable; the share of neighbours that is hoped to be honest.
      own_weight: in [0, 1], traceable.
      batch_size: examples that the client trains on, drawn anew each time; >= 1. Who owns fewer sees
        some twice.
      tests: in their place each client's own test set, whole, as the authors of Bristle do. A client
        that fits its own few examples well finds no other model as good on them.

    Returns:
      A `NeighbourRule`; the metric `kept` is the share of those heard.

    Raises:
      TypeError, ValueError: naming the argument.

    References:
      Guo et al., Towards Byzantine-resilient Learning in Decentralized Systems, arXiv 2002.08569.
    """
    validation.function("loss", loss, "Make one with dflax.losses.classification.")
    validation.probability("share", share)
    validation.probability("own_weight", own_weight)
    examples = examples_of(1, batch_size, None)
    if tests is not None:
        validation.instance("tests", tests, ClassTests, "Make one with dflax.gossip.class_tests.")

    def apply(
        own: Params, others: Params, weights: Array, memory: tuple[()], here: Neighbourhood
    ) -> tuple[Params, tuple[()], Metrics]:
        batch = _own_examples(here)

        def value(params: Params) -> Float[Array, ""]:
            return loss(params, batch, None)[0]

        present = (weights > 0) & finite_rows(others)
        rank = jnp.argsort(jnp.lexsort((distances_to(own, others), ~present)))
        near = rank < jnp.ceil(share * jnp.sum(present) - 1e-5)
        # Of a model that is worse than any number the loss is NaN, which is not at most the own.
        kept = present & near & (jax.vmap(value)(others) <= value(own))
        count = jnp.sum(kept)

        def mean(mine: Array, theirs: Array) -> Array:
            wide = jnp.promote_types(mine.dtype, jnp.float32)
            there = jnp.where(against(kept, theirs), theirs, 0).astype(wide)
            other = jnp.sum(there, 0) / jnp.maximum(count, 1).astype(wide)
            held = mine.astype(wide)
            part = jnp.asarray(own_weight, wide)
            return jnp.where(count > 0, part * held + (1 - part) * other, held).astype(mine.dtype)

        return jax.tree.map(mean, own, others), memory, {"kept": kept.astype(jnp.float32)}

    known = Known(False, False, linear=False, whole_models=True)
    if tests is None:
        return NeighbourRule(nothing_to_remember, apply, known, examples=examples)
    return NeighbourRule(nothing_to_remember, apply, known, private=tests)


def _own_examples(here: Neighbourhood) -> Batch:
    """The client's test set where it has one, else the minibatch that was drawn for it."""
    if isinstance(here.private, ClassTests):
        return Batch(here.private.inputs, here.private.labels, here.private.mask)
    rows, data = here.examples
    assert rows is not None, "asked for by the rule's examples"
    assert data is not None, "comes with the rows"
    return data.fetch(rows[0])
