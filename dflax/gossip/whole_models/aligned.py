"""Gossip between networks that were trained apart: neighbours are permuted before they are averaged."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PyTree

from dflax import validation
from dflax.algorithm import Metrics, Params
from dflax.clients import against
from dflax.data.dataset import Dataset
from dflax.gossip.mixer import Known, Mixer
from dflax.gossip.rules.by_rule import Topology, by_rule
from dflax.gossip.rules.calibration import Examples, examples_of
from dflax.gossip.rules.neighbour_rule import Neighbourhood, NeighbourRule
from dflax.matching.matching import Matching, fixed_units
from dflax.matching.symmetries import permute, widths_of
from dflax.topology import Graph, MixingMatrix

# The permutations depend on the models: no matrix of clients describes what is done.
UNITS_MATCHED = Known(False, False, linear=False, whole_models=True, averages_statistics=False)


def aligned(
    topology: Topology,
    matching: Matching,
    *,
    weights: Callable[[Graph], MixingMatrix] | None = None,
    batches: int = 1,
    batch_size: int = 256,
    calibration: Dataset | None = None,
    at_once: int | None = None,
) -> Mixer:
    """Averages with one's neighbours after permuting their hidden units into one's own order.

        P_ij = the permutation of j's units that matches them to i's
        x_i <- w_ii x_i + sum_j w_ij P_ij x_j

    Networks that start from different weights learn their features in different order: their plain
    average is no network at all, that of matched ones is. All clients match against the same models,
    those before the mixing, every pair by itself; `anchored` makes all permutations agree. With
    matching by activations a client runs its neighbours' models on its own examples, or on a shared
    set. The mean of the models is not kept.

    Args:
      topology: as in `by_rule`.
      matching: how units are matched, see `dflax.matching.by_activations` and `by_weights`.
      weights: from graph to mixing matrix, as in `mixer`.
      batches: T >= 1, minibatches that a client's units are compared on, drawn anew in every round.
      batch_size: B >= 1, examples in each. A client that owns fewer than T B sees some twice.
      calibration: a shared set of examples instead of the clients' own, part of the mixer's state.
      at_once: see `dflax.map_clients`.

    Returns:
      A `Mixer`. Metrics: `models_sent`; `similarity`, the mean correlation of matched units (with
      `by_weights` the cosine of matched weights), and `fixed_units`, the fraction of units that
      stay in their place, both over clients and their neighbours. Inactive clients keep their models,
      and their weight at a neighbour goes to the neighbour's own.

    Raises:
      TypeError, ValueError: naming the argument. Its `init` refuses models in which the symmetries'
        layers are no permutation of each other, and models with running statistics, which no average
        fits: put `recalibrated` around it.

    References:
      Saadati et al., DIMAT: Decentralized Iterative Merging-And-Training for Deep Learning Models,
      arXiv 2404.08079.
    """
    check_matching(matching)

    def init(own: Params, neighbours: Int[Array, " k"]) -> tuple[()]:
        require_matchable(own, matching)
        return ()

    def apply(
        own: Params, others: Params, weights: Array, memory: tuple[()], here: Neighbourhood
    ) -> tuple[Params, tuple[()], Metrics]:
        seen = here.examples
        permutations, similarity = matching.match(own, others, seen.data, seen.rows)
        moved = jax.vmap(lambda other, p: permute(other, matching.symmetries, p))(
            others, permutations
        )
        merged = weighted_sum(own, here.own_weight, moved, weights)
        return merged, memory, {"similarity": similarity, "fixed_units": fixed_units(permutations)}

    examples = examples_to_match(matching, batches, batch_size, calibration)
    rule = NeighbourRule(init, apply, UNITS_MATCHED, examples=examples)
    return by_rule(topology, rule, weights=weights, at_once=at_once)


def weighted_sum(
    own: PyTree[Array], own_weight: Array, others: PyTree[Array], weights: Float[Array, " k"]
) -> PyTree[Array]:
    """`w own + sum_k w_k others_k` of one client, in float32 or wider, in the models' own dtype."""

    def mix(mine: Array, theirs: Array) -> Array:
        wide = jnp.promote_types(mine.dtype, jnp.float32)
        terms = against(weights.astype(wide), theirs) * theirs.astype(wide)
        return (own_weight.astype(wide) * mine.astype(wide) + terms.sum(0)).astype(mine.dtype)

    return jax.tree.map(mix, own, others)


def check_matching(matching: Matching) -> None:
    """Refuse what is no `Matching`."""
    fix = "Make one with dflax.matching.by_activations or by_weights."
    validation.instance("matching", matching, Matching, fix)


def require_matchable(own: Any, matching: Matching) -> None:
    """Refuse a model whose units cannot be permuted and averaged.

    Raises:
      ValueError: a model with "batch_stats", or layers that are no permutation of each other.
    """
    if isinstance(own, dict) and "batch_stats" in own:
        raise ValueError(
            'models must have no "batch_stats" here: the average of running statistics fits no '
            "model. Put dflax.gossip.recalibrated(mixer, model) around the mixer, which estimates "
            "them afresh."
        )
    widths_of(matching.symmetries, own)


def examples_to_match(
    matching: Matching, batches: int, batch_size: int, calibration: Dataset | None
) -> Examples | None:
    """What units are compared on; None where no data is read."""
    examples = examples_of(batches, batch_size, calibration)
    return examples if matching.reads_data else None
