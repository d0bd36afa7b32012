"""Gossip of models with batch normalisation: weights are mixed, running statistics estimated afresh."""

from typing import Any

from jaxtyping import Array

from dflax import validation
from dflax.algorithm import Metrics, Params
from dflax.clients import map_clients, select
from dflax.data.dataset import Dataset
from dflax.gossip.mixer import (
    PLAIN_AND_AFRESH,
    Mixer,
    MixerState,
    Mixing,
    Models,
    in_models,
    mix,
    require_mixer,
)
from dflax.gossip.products.linear import as_mask, require_models
from dflax.gossip.rules.calibration import draw_calibration, examples_of
from dflax.models.apply import Model, as_module
from dflax.models.averaged import holds_statistics
from dflax.models.statistics import recalibrate_on


def recalibrated(
    mixer: Mixer,
    model: Model,
    *,
    batches: int = 4,
    batch_size: int = 128,
    calibration: Dataset | None = None,
    at_once: int | None = None,
) -> Mixer:
    """Mixes everything but "batch_stats", and estimates these for each mixed model.

        weights_i    <- mixer(weights)_i
        statistics_i <- (1 / T) sum_{t=1..T} (mean, variance) of minibatch t of client i

    The running statistics of a model describe the activations of that model alone; their average
    describes those of none. They are not sent either. Among mixers it is the outermost,
    `recalibrated(variance_corrected(mixer), model)`; a method that mixes more than models, trackers or
    masks, cannot use it.

    Args:
      mixer: of the weights, for example `ring(n)` or `aligned(graph, matching)`.
      model: with batch normalisation, see `dflax.models.recalibrate`.
      batches: T >= 1, minibatches of the client's own examples, drawn anew in every round.
      batch_size: B >= 1, examples in each.
      calibration: a shared set of examples instead, part of the mixer's state.
      at_once: see `dflax.map_clients`.

    Returns:
      A `Mixer` of whole variables dicts, with the metrics of `mixer`.

    Raises:
      TypeError, ValueError: naming the argument; from `init`, models without "batch_stats", or mixed
        together with something else.

    References:
      Saadati et al., DIMAT, arXiv 2404.08079.
      Jordan et al., REPAIR: Renormalizing Permuted Activations for Interpolation Repair,
      arXiv 2211.08403.
    """
    require_mixer(mixer)
    as_module("model", model)  # Refuses here what is no model.
    validation.at_once(at_once)
    examples = examples_of(batches, batch_size, calibration)
    clients = mixer.clients

    def init(models: Any) -> MixerState:
        require_models(models, clients)
        if not isinstance(models, dict) or "batch_stats" not in models or "params" not in models:
            if holds_statistics(models):
                raise ValueError(
                    "models must be mixed alone, as the variables dicts they are, by a mixer that "
                    "estimates running statistics, got them within a "
                    f"{type(models).__name__}{_names(models)}. Among mixers put recalibrated outermost, "
                    "recalibrated(variance_corrected(mixer), model); in a method that mixes trackers "
                    f"or masks beside models it cannot be used. {PLAIN_AND_AFRESH}"
                )
            raise ValueError(
                'models must be variables dicts with "params" and "batch_stats", got '
                f"{sorted(models) if isinstance(models, dict) else type(models).__name__}. Models "
                "without running statistics need no recalibration: use the mixer itself."
            )
        return mixer.init(_weights(models)), calibration

    def apply(
        models: Models, state: MixerState, mixing: Mixing
    ) -> tuple[Models, MixerState, Metrics]:
        inner, shared = state
        seen = draw_calibration(examples, shared, mixing, clients)
        weights, inner, metrics = mix(mixer, _weights(models), inner, mixing)

        def one(variables: Params, rows: Array, data: Dataset) -> Params:
            return recalibrate_on(model, variables, data, rows)

        mixed = map_clients(
            one, {**models, **weights}, seen.rows, shared=(seen.data,), at_once=at_once
        )
        mask = as_mask(mixing.active, clients)
        mixed = mixed if mask is None else select(mask, mixed, models)
        return mixed, (inner, shared), in_models(metrics, _weights(models), models)

    known = mixer.known._replace(symmetric=False, whole_models=True, averages_statistics=False)
    return Mixer(clients, init, apply, known)


def _names(models: Any) -> str:
    return f" of {sorted(models)}" if isinstance(models, dict) else ""


def _weights(models: Any) -> Any:
    return {name: tree for name, tree in models.items() if name != "batch_stats"}
