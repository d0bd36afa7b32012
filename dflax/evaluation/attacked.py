"""How a model fares when its inputs are attacked."""

import jax
from jaxtyping import Array, Key

from dflax import validation
from dflax.algorithm import Metrics, Params
from dflax.data.dataset import Batch, Dataset
from dflax.evaluation.measure import Bound, OfModel, metrics_of
from dflax.evaluation.measures import Measure, mean_over, verified_count
from dflax.local.adversarial_training.attack import Attack
from dflax.local.oracle import Loss


def attacked(
    loss: Loss,
    attack: Attack,
    data: Dataset,
    key: Key[Array, ""],
    *,
    batch_size: int = 500,
    examples: int | None = None,
) -> Measure:
    """The metrics of one model on attacked examples, under the names `robust_NAME`.

    `robust_NAME = mean over examples of NAME(params; attack(params, example))`, so `robust_loss` on
    training data is L_A, what adversarial training minimises, with this attack for the maximum, and
    `robust_accuracy` on test data an upper bound on the accuracy against the worst perturbation.
    Measure all methods with one attack, stronger than that of training (more steps).

    Args:
      loss: `(params, batch, key) -> (loss, metrics)`, see `on`.
      attack: for example `dflax.local.projected_gradient(loss, 0.5, 20)`.
      data: what to measure on.
      key: of the attack's random starts: the same in every evaluation; another one than the run's.
      batch_size: examples at a time, >= 1.
      examples: measure on the first so many only; default all.

    Returns:
      A measure `params -> metrics`, for `server_model`, `client_models` or `mean_model`.

    Raises:
      TypeError, ValueError: naming the argument.
    """
    count = verified_count(loss, data, batch_size, examples)
    validation.function("attack", attack, "Make one with dflax.local.projected_gradient.")
    validation.typed_key("key", key)
    return OfModel(Bound(_attacked, loss, attack, min(batch_size, count), count), data, key)


def _attacked(
    loss: Loss,
    attack: Attack,
    batch_size: int,
    count: int,
    data: Dataset,
    key: Key[Array, ""],
    params: Params,
) -> Metrics:
    def measured(batch: Batch, number: Array) -> Metrics:
        moved = attack(params, batch, jax.random.fold_in(key, number))
        metrics = metrics_of(loss, params, moved)
        return {f"robust_{name}": value for name, value in metrics.items()}

    return mean_over(measured, data, batch_size, count)
