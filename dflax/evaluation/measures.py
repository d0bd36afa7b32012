"""Measures of models on a test set, at the server, over all clients."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.tree_util import Partial
from jaxtyping import Array, Float, Int

from dflax import validation
from dflax.algorithm import FederatedState, Metrics, Params
from dflax.clients import map_clients, weighted_mean
from dflax.data.dataset import Batch, Dataset
from dflax.evaluation.measure import Bound, OfModel, Recalibrated, metrics_of
from dflax.local.oracle import Loss
from dflax.models.averaged import warn_of_averaging

Measure = Callable[[Params], Metrics]
"""`params -> metrics`: what is measured of one model."""
Models = Callable[[FederatedState], Params]


def on(loss: Loss, data: Dataset, *, batch_size: int = 500, examples: int | None = None) -> Measure:
    """The metrics of one model on a data set: `params -> metrics`.

    The set is read in batches, the last one filled up with masked examples, so the result is the
    exact mean over all of them, of metrics that are means over examples. (Of means over tokens, as
    `losses.language_modelling` gives where sequences are padded, it is the mean over batches; with
    `batch_size=1` each sequence then counts the same.)

    Args:
      loss: `(params, batch, key) -> (loss, metrics)` whose metrics are means over the batch that
        respect `batch.mask`: numbers, or arrays of any one shape. It is called with key None:
        evaluation, no dropout. Of a loss without metrics the loss itself is measured, as "loss".
        Integers and booleans are averaged as float32.
      data: what to measure on.
      batch_size: examples at a time, >= 1.
      examples: measure on the first so many only; default all. (The sources shuffle their examples
        or keep the published order, so the first ones are a fair sample.)

    Examples:
      >>> import jax.numpy as jnp, dflax as dx
      >>> data = dx.data.from_arrays(jnp.array([1.0, 2.0, 3.0]), jnp.array([1.0, 2.0, 5.0]))
      >>> loss = dx.losses.squared_error(lambda params, inputs: params * inputs)
      >>> measure = dx.evaluation.on(loss, data, batch_size=2)
      >>> round(float(measure(jnp.float32(1))["loss"]), 3)
      0.667
    """
    count = verified_count(loss, data, batch_size, examples)
    return OfModel(Bound(_on, loss, min(batch_size, count), count), data)


def server_model(
    measure: Measure, *, models: Models | None = None
) -> Callable[[FederatedState], Metrics]:
    """Measures the server's model, `state.server.params`.

    Args:
      measure: `params -> metrics`, see `on`.
      models: `state -> model`, another model of the state.

    Examples:
      >>> import jax, jax.numpy as jnp, optax, dflax as dx
      >>> data = dx.data.from_arrays(jnp.array([1.0, 2.0]), jnp.array([1.0, 4.0]))
      >>> loss = dx.losses.squared_error(lambda params, inputs: params * inputs)
      >>> evaluate = dx.evaluation.server_model(dx.evaluation.on(loss, data))
      >>> state = dx.server.fedavg(loss, optax.sgd(0.1)).init(jax.random.key(0), jnp.float32(1))
      >>> float(evaluate(state)["loss"])
      1.0
    """
    return Partial(Bound(_server_model, _checked(models)), _as_partial(measure))


def client_models(
    measure: Measure, *, models: Models | None = None, at_once: int | None = None
) -> Callable[[FederatedState], Metrics]:
    """Measures every client's model: mean over clients, `NAME_min`, `NAME_max` and `NAME_std`.

    Args:
      measure: `params -> metrics`, see `on`.
      models: `state -> stacked models [n, ...]`; default: `state.clients.params`.
      at_once: clients that one device measures at the same time, >= 1; None chooses as `map_clients`
        does.

    Examples:
      >>> import jax, jax.numpy as jnp, optax, dflax as dx
      >>> data = dx.data.from_arrays(jnp.array([1.0, 2.0]), jnp.array([1.0, 4.0]))
      >>> loss = dx.losses.squared_error(lambda params, inputs: params * inputs)
      >>> evaluate = dx.evaluation.client_models(dx.evaluation.on(loss, data))
      >>> algorithm = dx.decentralized.dfedavg(loss, optax.sgd(0.1), dx.gossip.ring(3))
      >>> sorted(evaluate(algorithm.init(jax.random.key(0), jnp.float32(1))))
      ['loss', 'loss_max', 'loss_min', 'loss_std']
    """
    validation.at_once(at_once)
    return Partial(Bound(_client_models, _checked(models), at_once), _as_partial(measure))


def mean_model(
    measure: Measure, *, models: Models | None = None
) -> Callable[[FederatedState], Metrics]:
    """Measures the mean of all clients' models, under the names `mean_model_NAME`.

    Of models with batch normalisation, give it `recalibrated(measure, model, data)`.

    Args:
      measure: `params -> metrics`, see `on`.
      models: `state -> stacked models [n, ...]`; default: `state.clients.params`.

    Warns:
      dflax.models.AveragedStatistics: models with "batch_stats" and any other measure, when it is
        first run or traced.
    """
    warned = not isinstance(measure, Recalibrated)
    return Partial(Bound(_mean_model, _checked(models), warned), _as_partial(measure))


def consensus(state: FederatedState) -> Metrics:
    """`consensus_distance`: (1/n) sum_i |x_i - mean of x|^2 over all parameters of the clients."""
    validation.instance("state", state, FederatedState)
    return {"consensus_distance": consensus_distance(_held(state, "clients"))}


def together(
    *measures: Callable[[FederatedState], Metrics],
) -> Callable[[FederatedState], Metrics]:
    """Several evaluations as one; of two metrics with the same name the later one stays."""
    if not measures:
        raise ValueError(
            "measures must name at least one evaluation, got none. Pass for example "
            "server_model(on(loss, test))."
        )
    for number, measure in enumerate(measures):
        validation.function(f"measures[{number}]", measure, takes=1)
    return Partial(_together, *(_as_partial(measure) for measure in measures))


def consensus_distance(models: Params) -> Float[Array, ""]:
    """(1/n) sum_i |x_i - mean of x|^2 of stacked models, leaves `[n, ...]`."""
    count = validation.leading_axis("models", models, least=1)
    validation.model("models", models)
    center = weighted_mean(models)
    squares = jax.tree.map(lambda x, c: jnp.sum(jnp.square(x - c)), models, center)
    return jnp.sum(jnp.stack(jax.tree.leaves(squares))) / count


def mean_over(
    measured: Callable[[Batch, Int[Array, ""]], Metrics], data: Dataset, batch_size: int, count: int
) -> Metrics:
    """Exact means over the first `count` examples of what is a mean over each batch.

    Args:
      measured: `(batch, number) -> metrics`, means that respect `batch.mask`; the last batch is
        filled up with masked examples.
      data: what is read.
      batch_size: examples at a time, at most `count`.
      count: how many.
    """

    def one_batch(number: Array) -> tuple[Metrics, Array]:
        places = number * batch_size + jnp.arange(batch_size)
        mask = (places < count).astype(jnp.float32)
        batch = data.fetch(jnp.minimum(places, count - 1))
        return measured(batch._replace(mask=mask), number), mask.sum()

    metrics, counts = jax.lax.map(one_batch, jnp.arange(-(-count // batch_size)))
    return weighted_mean(metrics, counts)


def verified_count(loss: Loss, data: Dataset, batch_size: int, examples: int | None) -> int:
    """How many examples are measured, after all checks of what is measured on what."""
    validation.function("loss", loss)
    validation.integer("batch_size", batch_size, low=1)
    if not isinstance(data, Dataset):
        raise TypeError(
            f"data must be a Dataset, got {type(data).__name__}. Of a Split pass its .test."
        )
    count = len(data) if examples is None else examples
    validation.integer("examples", count, low=1, high=len(data))
    return count


def _on(loss: Loss, batch_size: int, count: int, data: Dataset, params: Params) -> Metrics:
    return mean_over(lambda batch, _: metrics_of(loss, params, batch), data, batch_size, count)


def _server_model(models: Models | None, measure: Measure, state: FederatedState) -> Metrics:
    return measure(_held(state, "server") if models is None else models(state))


def _client_models(
    models: Models | None, at_once: int | None, measure: Measure, state: FederatedState
) -> Metrics:
    metrics = map_clients(
        lambda params, measure: measure(params),
        _held(state, "clients") if models is None else models(state),
        shared=(measure,),
        at_once=at_once,
    )
    spread: dict[str, Any] = {}
    for name, values in metrics.items():
        spread |= {
            name: values.mean(0),
            f"{name}_min": values.min(0),
            f"{name}_max": values.max(0),
            f"{name}_std": values.std(0),
        }
    return spread


def _mean_model(
    models: Models | None, warned: bool, measure: Measure, state: FederatedState
) -> Metrics:
    averaged = _held(state, "clients") if models is None else models(state)
    if warned:
        warn_of_averaging(averaged)
    metrics = measure(weighted_mean(averaged))
    return {f"mean_model_{name}": value for name, value in metrics.items()}


def _held(state: FederatedState, slot: str) -> Params:
    """The models in a slot of the state."""
    try:
        return getattr(state, slot).params
    except AttributeError as error:
        other = "client_models or mean_model" if slot == "server" else "server_model"
        raise TypeError(
            f"state must have models at state.{slot}.params, got {type(state).__name__} without. Take "
            f"evaluation.{other}, or say where they are: models=lambda state: ..."
        ) from error


def _checked(models: Any) -> Models | None:
    if models is not None:
        fix = "For example lambda state: state.clients.params."
        validation.function("models", models, fix, takes=1)
    return models


def _together(*arguments: Any) -> Metrics:
    *measures, state = arguments
    metrics: Metrics = {}
    for measure in measures:
        metrics |= measure(state)
    return metrics


def _as_partial(measure: Callable[..., Any]) -> Partial:
    validation.function("measure", measure, takes=1)
    return measure if isinstance(measure, Partial) else Partial(measure)
