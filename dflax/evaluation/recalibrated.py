"""Measuring averaged models with BatchNorm, whose statistics have to be estimated afresh."""

from jax.tree_util import Partial

from dflax import validation
from dflax.algorithm import Metrics, Params
from dflax.data.dataset import Dataset
from dflax.evaluation.measure import Bound, Recalibrated
from dflax.evaluation.measures import Measure
from dflax.models.apply import Model, as_module
from dflax.models.statistics import recalibrate


def recalibrated(
    measure: Measure, model: Model, data: Dataset, *, batches: int = 32, batch_size: int = 128
) -> Measure:
    """`params -> measure(recalibrate(params))`: the metrics of a model with fresh statistics.

    Use it as `mean_model(recalibrated(on(loss, test), model, train))`: what merging the models at
    this round would give, while training goes on untouched.

    Args:
      measure: `params -> metrics`, see `on`.
      model: a module with BatchNorm, see `dflax.models.recalibrate`.
      data: training examples.
      batches: minibatches to estimate statistics with, >= 1.
      batch_size: examples in each, >= 1.

    Returns:
      A `Measure` on whole variables dicts.

    Raises:
      TypeError, ValueError: naming the argument.

    References:
      Zhu et al., A Single Merging Suffices, arXiv 2507.06542.
    """
    validation.function("measure", measure, takes=1)
    as_module("model", model)  # Refuses here what is no model.
    validation.instance("data", data, Dataset, "Of a Split pass its .train.")
    validation.integer("batches", batches, low=1)
    validation.integer("batch_size", batch_size, low=1)
    inner = measure if isinstance(measure, Partial) else Partial(measure)
    return Recalibrated(Bound(_recalibrated, model, batches, batch_size), inner, data)


def _recalibrated(
    model: Model,
    batches: int,
    batch_size: int,
    measure: Measure,
    data: Dataset,
    variables: Params,
) -> Metrics:
    fresh = recalibrate(model, variables, data, batches=batches, batch_size=batch_size)
    return measure(fresh)
