"""Gossip between networks that were trained apart, in the order of units of one of them."""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from dflax import validation
from dflax.algorithm import Metrics, Params
from dflax.clients import gather, map_clients, mean_metrics, select
from dflax.data.dataset import Dataset
from dflax.gossip.mixer import Mixer, MixerState, Mixing, Models, mix, require_mixer
from dflax.gossip.products.linear import as_mask, require_models
from dflax.gossip.rules.calibration import draw_calibration
from dflax.gossip.whole_models.aligned import (
    UNITS_MATCHED,
    check_matching,
    examples_to_match,
    require_matchable,
)
from dflax.matching.matching import Matching, fixed_units
from dflax.matching.symmetries import Permutations, permute


def anchored(
    mixer: Mixer,
    matching: Matching,
    *,
    broadcast: bool = True,
    batches: int = 1,
    batch_size: int = 256,
    calibration: Dataset | None = None,
    at_once: int | None = None,
) -> Mixer:
    """Mixes in the order of units of one client, the anchor, and gives everyone its own order back.

        P_i = the permutation of the anchor's units that matches them to i's
        x_i <- P_i mixer(P_1^-1 x_1, ..., P_n^-1 x_n)_i

    `aligned` matches every pair by itself, and on a graph with cycles its permutations need not agree:
    P_ij P_jk is not P_ik, and what is averaged does not coincide. With matching by weights that
    lasts, models shrink, and many merges on the complete graph cost accuracy. Here P_ij = P_i P_j^-1
    for all pairs, with n assignments instead of one per edge. The anchor, the first client that takes
    part, must be heard by everyone.

    Args:
      mixer: what mixes the ordered models, for example `complete(n)` or `ring(n)`.
      matching: how units are matched, see `dflax.matching.by_activations` and `by_weights`.
      broadcast: whether the anchor's model travels to the others beside the mixing, and is counted;
        False where all hear it anyway, as on the complete graph.
      batches: T >= 1, minibatches that a client's units are compared on, drawn anew in every round.
      batch_size: B >= 1, examples in each. A client that owns fewer than T B sees some twice.
      calibration: a shared set of examples instead of the clients' own, part of the mixer's state.
      at_once: see `dflax.map_clients`.

    Returns:
      A `Mixer`, with the metrics of `mixer`; `models_sent` with what is broadcast. Further metrics:
      `similarity` to the anchor and `fixed_units`, the fraction of units that the anchor has in the same
      place, both over the clients but the anchor. Inactive clients keep their models.

    Raises:
      TypeError, ValueError: naming the argument. Its `init` refuses what that of `aligned` refuses.

    References:
      Saadati et al., DIMAT: Decentralized Iterative Merging-And-Training for Deep Learning Models,
      arXiv 2404.08079, whose code merges once into the first agent on the complete graph.
    """
    require_mixer(mixer)
    check_matching(matching)
    validation.flag("broadcast", broadcast)
    validation.at_once(at_once)
    examples = examples_to_match(matching, batches, batch_size, calibration)
    clients, symmetries = mixer.clients, matching.symmetries

    def init(models: Any) -> MixerState:
        require_models(models, clients)
        require_matchable(jax.tree.map(lambda leaf: leaf[0], models), matching)
        return mixer.init(models), None if examples is None else examples.shared

    def apply(
        models: Models, state: MixerState, mixing: Mixing
    ) -> tuple[Models, MixerState, Metrics]:
        require_models(models, clients)
        inner, shared = state
        mask = as_mask(mixing.active, clients)
        taking_part = jnp.ones(clients, bool) if mask is None else mask
        first = jnp.argmax(taking_part)
        seen = draw_calibration(examples, shared, mixing, clients)

        def order(
            own: Params, rows: Array | None, anchor: Params, data: Dataset | None
        ) -> tuple[Params, Permutations, Metrics]:
            found, similarity = matching.match(own, anchor, data, rows)
            own_order = jax.tree.map(lambda p: p[0], found)
            inverse = jax.tree.map(lambda p: jnp.argsort(p).astype(p.dtype), own_order)
            metrics = {"similarity": similarity[0], "fixed_units": fixed_units(found)[0]}
            return permute(own, symmetries, inverse), own_order, metrics

        ordered, orders, metrics = map_clients(
            order,
            models,
            seen.rows,
            shared=(gather(models, first[None]), seen.data),
            at_once=at_once,
        )
        mixed, inner, measured = mix(mixer, ordered, inner, mixing)
        mixed = map_clients(
            lambda own, order: permute(own, symmetries, order), mixed, orders, at_once=at_once
        )
        mixed = mixed if mask is None else select(mask, mixed, models)
        others = taking_part & (jnp.arange(clients) != first)
        if broadcast:
            sent = measured["models_sent"] + jnp.sum(others, dtype=jnp.float32)
            measured = measured | {"models_sent": sent}
        return mixed, (inner, shared), measured | mean_metrics(metrics, others.astype(jnp.float32))

    return Mixer(clients, init, apply, UNITS_MATCHED._replace(graph=mixer.known.graph))
