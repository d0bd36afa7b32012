"""Gossip between networks that were trained apart: neighbours are permuted before they are averaged."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from dflax import validation
from dflax.algorithm import Metrics, Params
from dflax.clients import map_clients, mean_metrics, select
from dflax.data.dataset import Dataset
from dflax.gossip.choose import as_matrix
from dflax.gossip.heard import hearing, weighted_sum
from dflax.gossip.linear import as_mask, require_models, require_topology_sums
from dflax.gossip.mixer import Mixer, MixerState, Mixing, Models
from dflax.gossip.products import count_sent
from dflax.gossip.whole_models.calibration import Calibration, check_calibration, draw_calibration
from dflax.matching.matching import Matching, fixed_units
from dflax.matching.symmetries import permute, widths_of
from dflax.topology import Graph, MixingMatrix


def aligned(
    topology: Graph | MixingMatrix | Float[np.ndarray, "n n"],
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
      topology: a graph, a mixing matrix, or an array `[n, n]`; it may be disconnected.
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
    matrix = as_matrix(topology, weights)
    require_topology_sums(matrix.row_stochastic, matrix.graph.name)
    check_matching(matching)
    check_calibration(batches, batch_size, calibration, at_once)
    clients = matrix.nodes
    tables, hear = hearing(matrix)

    def init(models: Any) -> MixerState:
        require_matchable(models, clients, matching)
        return tables, calibration if matching.reads_data else None

    def apply(
        models: Models, state: MixerState, mixing: Mixing
    ) -> tuple[Models, MixerState, Metrics]:
        require_models(models, clients)
        known, shared = state
        mask = as_mask(mixing.active, clients)
        heard, given, own_weights = hear(models, known, mask)
        examples = examples_to_match(matching, shared, mixing, clients, batches, batch_size)

        def one(
            own: Params,
            others: Params,
            weights: Array,
            own_weight: Array,
            rows: Array | None,
            data: Dataset | None,
        ) -> tuple[Params, Metrics]:
            permutations, similarity = matching.match(own, others, data, rows)
            moved = jax.vmap(lambda other, p: permute(other, matching.symmetries, p))(
                others, permutations
            )
            merged = weighted_sum(own, own_weight, moved, weights)
            counted = weights > 0
            found = {"similarity": similarity, "fixed_units": fixed_units(permutations)}
            # Selected: of an absent client's model anything may come.
            sums = {name: jnp.sum(jnp.where(counted, v, 0)) for name, v in found.items()}
            return merged, sums | {"pairs": jnp.sum(counted, dtype=jnp.float32)}

        if not given.shape[1]:
            return models, state, _measured(jnp.zeros(()), None)
        mixed, sums = map_clients(
            one,
            models,
            heard,
            given,
            own_weights,
            examples.rows,
            shared=(examples.data,),
            at_once=at_once,
        )
        mixed = mixed if mask is None else select(mask, mixed, models)
        return mixed, state, _measured(count_sent(given), sums)

    # The permutations depend on the models: no matrix of clients describes what is done.
    return Mixer(
        clients,
        init,
        apply,
        symmetric=False,
        doubly_stochastic=False,
        whole_models=True,
        averages_statistics=False,
        graph=matrix.graph,
    )


def check_matching(matching: Matching) -> None:
    """Refuse what is no `Matching`."""
    fix = "Make one with dflax.matching.by_activations or by_weights."
    validation.instance("matching", matching, Matching, fix)


def require_matchable(models: Any, clients: int, matching: Matching) -> None:
    """Refuse models whose units cannot be permuted and averaged.

    Raises:
      ValueError: not n models, models with "batch_stats", or layers that are no permutation of each
        other.
    """
    require_models(models, clients)
    if isinstance(models, dict) and "batch_stats" in models:
        raise ValueError(
            'models must have no "batch_stats" here: the average of running statistics fits no '
            "model. Put dflax.gossip.recalibrated(mixer, model) around the mixer, which estimates "
            "them afresh."
        )
    widths_of(matching.symmetries, jax.tree.map(lambda leaf: leaf[0], models))


def examples_to_match(
    matching: Matching,
    shared: Dataset | None,
    mixing: Mixing,
    clients: int,
    batches: int,
    batch_size: int,
) -> Calibration:
    """What units are compared on, see `draw_calibration`; nothing where no data is read."""
    if not matching.reads_data:
        return Calibration(None, None)
    return draw_calibration(shared, mixing, clients, batches, batch_size)


def _measured(sent: Array, sums: Metrics | None) -> Metrics:
    """Means over all pairs of a client and a neighbour; NaN where there are none."""
    if sums is None:
        nothing = jnp.full((), jnp.nan)
        return {"models_sent": sent, "similarity": nothing, "fixed_units": nothing}
    pairs = sums.pop("pairs")
    per_pair = {name: values / jnp.maximum(pairs, 1.0) for name, values in sums.items()}
    return {"models_sent": sent} | mean_metrics(per_pair, pairs)
