"""Measuring averaged models with BatchNorm, whose statistics have to be estimated afresh."""

from flax import linen as nn
from jax.tree_util import Partial

from dflax import validation
from dflax.algorithm import Metrics, Params
from dflax.data.dataset import Dataset
from dflax.evaluation.measure import Bound, Recalibrated
from dflax.evaluation.measures import Measure
from dflax.models.statistics import recalibrate


def recalibrated(
    measure: Measure, module: nn.Module, data: Dataset, *, batches: int = 32, batch_size: int = 128
) -> Measure:
    """`params -> measure(recalibrate(params))`: the metrics of a model with fresh statistics.

    Use it as `mean_model(recalibrated(on(loss, test), module, train))`: what merging the models at
    this round would give, while training goes on untouched.

    Args:
      measure: `params -> metrics`, see `on`.
      module: the linen module with BatchNorm.
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
    validation.function("measure", measure)
    validation.instance("module", module, nn.Module, "Pass the linen module, not its apply.")
    validation.instance("data", data, Dataset, "Of a Split pass its .train.")
    validation.integer("batches", batches, low=1)
    validation.integer("batch_size", batch_size, low=1)
    inner = measure if isinstance(measure, Partial) else Partial(measure)
    return Recalibrated(Bound(_recalibrated, module, batches, batch_size), inner, data)


def _recalibrated(
    module: nn.Module,
    batches: int,
    batch_size: int,
    measure: Measure,
    data: Dataset,
    variables: Params,
) -> Metrics:
    fresh = recalibrate(module, variables, data, batches=batches, batch_size=batch_size)
    return measure(fresh)
