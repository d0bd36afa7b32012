"""DIMAT: networks trained apart merge with their neighbours, unit matched to unit, and train on."""

from collections.abc import Callable
from typing import Any

import numpy as np
from jaxtyping import Float

from dflax import validation
from dflax.algorithm import Algorithm
from dflax.channel.channel import Channel
from dflax.data.dataset import Dataset
from dflax.decentralized.gossip_averaging import Order, gossip_averaging
from dflax.gossip.choose import as_matrix, mixer
from dflax.gossip.mixer import Mixer, MixerState
from dflax.gossip.whole_models.aligned import aligned
from dflax.gossip.whole_models.anchored import anchored as gossip_anchored
from dflax.gossip.whole_models.recalibrated import recalibrated
from dflax.local.oracle import Loss, Oracle
from dflax.local.solver import Optimizer
from dflax.matching.matching import Matching
from dflax.models.apply import Model
from dflax.topology import Graph, MixingMatrix

Topology = Graph | MixingMatrix | Float[np.ndarray, "n n"]


def dimat(
    loss: Loss | Oracle,
    optimizer: Optimizer,
    topology: Topology,
    matching: Matching | None,
    *,
    weights: Callable[[Graph], MixingMatrix] | None = None,
    anchored: bool = False,
    model: Model | None = None,
    batches: int = 1,
    batch_size: int = 256,
    calibration: Dataset | None = None,
    channel: Channel | None = None,
    at_once: int | None = None,
) -> Algorithm:
    """Decentralized iterative merging and training, and its baseline WA without matching.

    A round, all clients merging from the same models:

        P_ij = the permutation of hidden units that matches j's model to i's
        m_i  = sum_j w_ij P_ij x_j                             running statistics estimated afresh
        x_i  = K steps of a fresh `optimizer` on f_i from m_i

    Meant for clients that start from weights of their own and have trained alone before they first
    merge (`init` takes a function `key -> model`; train with a mixer of no edges, hand the models over).
    One model travels over every edge per K steps.

    Args:
      loss: `(params, batch, key) -> (loss, metrics)`, or an `Oracle`.
      optimizer: every client's optax optimiser, fresh in every round; or a function of the round's
        number.
      topology: a graph, a mixing matrix, or an array `[n, n]`; it may be disconnected: the identity
        trains alone.
      matching: `dflax.matching.by_activations` or `by_weights`; None averages without permuting (WA).
      weights: from graph to mixing matrix, for example `topology.max_degree`; default Metropolis,
        which is 1/3 on a ring and 1/n on a complete graph.
      anchored: match everyone to one client instead of all pairs, see `gossip.anchored`: with matching
        by weights on dense graphs the better choice over many merges.
      model: the model; needed where models have "batch_stats", with `optimizer` from
        `dflax.models.with_statistics`.
      batches: T >= 1, minibatches that units are compared and statistics estimated on.
      batch_size: B >= 1, examples in each.
      calibration: a shared set to take them from, instead of each client's own examples.
      channel: as in `dfedavg`.
      at_once: see `dflax.map_clients`.

    Returns:
      An `Algorithm`, as `dfedavg`, with the metrics of `gossip.aligned` beside the loss's own. Models
      are as they are after training; `decentralized.mixed` gives them before. The round's mixer is
      `dimat_mixer` of the same arguments.

    Raises:
      TypeError, ValueError: naming the argument; from `init`, models with "batch_stats" without a
        model, and layers that are no permutation of each other.

    References:
      Saadati et al., DIMAT: Decentralized Iterative Merging-And-Training for Deep Learning Models,
      arXiv 2404.08079.
    """
    merging = dimat_mixer(
        topology,
        matching,
        weights=weights,
        anchored=anchored,
        model=model,
        batches=batches,
        batch_size=batch_size,
        calibration=calibration,
        at_once=at_once,
    )
    return gossip_averaging(
        loss,
        optimizer,
        merging,
        order=Order.COMBINE_THEN_ADAPT,
        keep_optimizer=False,
        channel=channel,
        at_once=at_once,
    )


def dimat_mixer(
    topology: Topology,
    matching: Matching | None,
    *,
    weights: Callable[[Graph], MixingMatrix] | None = None,
    anchored: bool = False,
    model: Model | None = None,
    batches: int = 1,
    batch_size: int = 256,
    calibration: Dataset | None = None,
    at_once: int | None = None,
) -> Mixer:
    """The merging of `dimat` alone, for any algorithm that takes a mixer; arguments as there."""
    validation.flag("anchored", anchored)
    matched: dict[str, Any] = {
        "batches": batches,
        "batch_size": batch_size,
        "calibration": calibration,
        "at_once": at_once,
    }
    if matching is None:
        merging = mixer(topology, weights=weights, disconnected=True)
        merging = merging if model is not None else _without_statistics(merging)
    elif anchored:
        matrix = as_matrix(topology, weights)
        apart = matrix.shared_weight is None
        plain = mixer(matrix, disconnected=True)
        merging = gossip_anchored(plain, matching, broadcast=apart, **matched)
    else:
        merging = aligned(topology, matching, weights=weights, **matched)
    return merging if model is None else recalibrated(merging, model, **matched)


def _without_statistics(merging: Mixer) -> Mixer:
    """The mixer, refusing running statistics."""

    def init(models: Any) -> MixerState:
        if isinstance(models, dict) and "batch_stats" in models:
            raise ValueError(
                'model must be given for models with "batch_stats": averaged running statistics fit no '
                "model. Pass the model, and they are estimated afresh after every merge."
            )
        return merging.init(models)

    return merging._replace(init=init)
