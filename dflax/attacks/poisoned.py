"""Data that teach what is wrong: turned labels, swapped labels, and a backdoor with its success."""

import dataclasses
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int

from dflax import validation
from dflax.algorithm import Metrics, Params
from dflax.data.dataset import Batch, Dataset
from dflax.data.partition import Partition
from dflax.evaluation.measure import Bound, OfModel, metrics_of
from dflax.evaluation.measures import Measure, mean_over, verified_count
from dflax.local.oracle import Loss

Examples = Int[np.ndarray, " k"] | Sequence[int]


def owned(partition: Partition, clients: int | Sequence[int]) -> Int[np.ndarray, " k"]:
    """The numbers of the examples that some clients own: what a hostile client can poison.

    Args:
      partition: who owns which examples. An example of two clients is poisoned for both.
      clients: one number or several.

    Returns:
      Example numbers, ascending.

    Raises:
      TypeError, ValueError: naming the argument.
    """
    validation.instance("partition", partition, Partition, "Make one with dflax.data.")
    given = validation.array("clients", clients, kind="integer", low=0, high=partition.clients - 1)
    if not given.size:
        raise ValueError("clients must name one client at least, got none.")
    lists = partition.as_lists()
    return np.unique(np.concatenate([lists[client] for client in given.reshape(-1)]))


def flipped_labels(data: Dataset, examples: Examples) -> Dataset:
    """The data with `y <- C - 1 - y` for some examples, C classes.

    Args:
      data: whose labels are class numbers, `data.classes` of them.
      examples: their numbers, for example `owned(partition, clients)`.

    Returns:
      A `Dataset` that shares the inputs.

    Raises:
      TypeError, ValueError: naming the argument.

    Examples:
      >>> import numpy as np, dflax as dx
      >>> data = dx.data.from_arrays(np.zeros((4, 2), np.float32), np.array([0, 1, 2, 2]))
      >>> dx.attacks.flipped_labels(data, [0, 1]).labels.tolist()
      [2, 1, 2, 2]
    """
    classes = _require_classes(data)
    return _relabelled(data, examples, classes - 1 - jnp.asarray(data.labels))


def rotated_labels(data: Dataset, examples: Examples, by: int = 1) -> Dataset:
    """The data with `y <- (y + by) mod C` for some examples, C classes.

    Unlike `flipped_labels` it leaves no class its own name, whatever C is.

    Args:
      data: whose labels are class numbers, `data.classes` of them.
      examples: their numbers, for example `owned(partition, clients)`.
      by: in [1, C - 1].

    Returns:
      A `Dataset` that shares the inputs.

    Raises:
      TypeError, ValueError: naming the argument.
    """
    classes = _require_classes(data)
    validation.integer("by", by, low=1, high=classes - 1)
    return _relabelled(data, examples, (jnp.asarray(data.labels) + by) % classes)


def swapped_labels(data: Dataset, examples: Examples, first: int, second: int) -> Dataset:
    """The data with two classes named as each other, for some examples.

    Args:
      data: whose labels are class numbers.
      examples: their numbers, for example `owned(partition, clients)`.
      first: a class in [0, C).
      second: another one.

    Returns:
      A `Dataset` that shares the inputs.

    Raises:
      TypeError, ValueError: naming the argument.
    """
    classes = _require_classes(data)
    validation.integer("first", first, low=0, high=classes - 1)
    validation.integer("second", second, low=0, high=classes - 1)
    if first == second:
        raise ValueError(f"second must be another class than first, got {second} twice.")
    labels = jnp.asarray(data.labels)
    turned = jnp.where(labels == second, first, labels)
    return _relabelled(data, examples, jnp.where(labels == first, second, turned))


def backdoor(data: Dataset, examples: Examples, target: int, *, side: int = 3) -> Dataset:
    """The data with a bright patch in the corner of some images, all labelled as the target.

    Args:
      data: images `[N, H, W]` or `[N, H, W, channels]`, whose labels are class numbers.
      examples: their numbers, for example some of `owned(partition, clients)`.
      target: the class that the patch shall stand for.
      side: pixels of the patch's side, in the corner of row 0 and column 0. They get the largest
        value that the stored images hold.

    Returns:
      A `Dataset`.

    Raises:
      TypeError, ValueError: naming the argument.
    """
    _require_target(data, target)
    chosen = _chosen(data, examples)
    labels = jnp.full_like(jnp.asarray(data.labels), target)
    return dataclasses.replace(
        _relabelled(data, examples, labels), inputs=_patched(data, chosen, side)
    )


def triggered(data: Dataset, target: int, *, side: int = 3) -> Dataset:
    """The examples of all other classes, with the patch, labelled as the target.

    A model's accuracy on them is the share that the backdoor sends to its target.

    Args:
      data: test images, as `backdoor` takes them.
      target: the backdoor's target.
      side: as of the backdoor.

    Returns:
      A smaller `Dataset`.

    Raises:
      TypeError, ValueError: naming the argument; all examples are of the target.
    """
    _require_target(data, target)
    others = np.flatnonzero(np.asarray(data.labels) != target)
    if not len(others):
        raise ValueError(f"target must leave examples of other classes, got {target}: all are.")
    inputs = _patched(data, np.ones(len(data), bool), side)[others]
    labels = jnp.full(len(others), target, data.labels.dtype)
    return dataclasses.replace(data, inputs=inputs, labels=labels)


def backdoor_success(
    loss: Loss, data: Dataset, target: int, *, side: int = 3, batch_size: int = 500
) -> Measure:
    """The share of patched examples of other classes that a model takes for the target.

    The metric `attack_success`, in [0, 1], of one model.

    Args:
      loss: `(params, batch, key) -> (loss, metrics)` with the metric "accuracy", such as
        `losses.classification`.
      data: clean test images, as `backdoor` takes them.
      target: the backdoor's target.
      side: as of the backdoor.
      batch_size: examples at a time, >= 1.

    Returns:
      A measure `params -> metrics`, for `evaluation.server_model`, `client_models` or `mean_model`.

    Raises:
      TypeError, ValueError: naming the argument; and, when it is traced, a loss without accuracy.
    """
    validation.function("loss", loss)
    patched = triggered(data, target, side=side)
    count = verified_count(loss, patched, batch_size, None)
    return OfModel(Bound(_success, loss, min(batch_size, count), count), patched)


def swap_success(
    loss: Loss, data: Dataset, first: int, second: int, *, batch_size: int = 500
) -> Measure:
    """The share of the examples of two classes that a model takes for the other of the two.

    The metric `attack_success`, in [0, 1], of one model: what `swapped_labels` is after.

    Args:
      loss: as of `backdoor_success`.
      data: test examples whose labels are class numbers.
      first: a class in [0, C).
      second: another one.
      batch_size: examples at a time, >= 1.

    Returns:
      A measure, as `backdoor_success`.

    Raises:
      TypeError, ValueError: naming the argument; no example of either class.
    """
    validation.function("loss", loss)
    _require_classes(data)
    swapped = swapped_labels(data, np.arange(len(data)), first, second)
    rows = np.flatnonzero(np.isin(np.asarray(data.labels), (first, second)))
    if not len(rows):
        raise ValueError(f"data must hold examples of the classes {first} and {second}, got none.")
    tried = dataclasses.replace(
        swapped,
        inputs=jax.tree.map(lambda leaf: leaf[rows], data.inputs),
        labels=swapped.labels[rows],
    )
    count = verified_count(loss, tried, batch_size, None)
    return OfModel(Bound(_success, loss, min(batch_size, count), count), tried)


def _success(loss: Loss, batch_size: int, count: int, data: Dataset, params: Params) -> Metrics:
    def measured(batch: Batch, number: Array) -> Metrics:
        metrics = metrics_of(loss, params, batch)
        if "accuracy" not in metrics:
            raise TypeError(
                f"loss must measure the accuracy, got metrics {sorted(metrics)}. See "
                "dflax.losses.classification."
            )
        return {"attack_success": metrics["accuracy"]}

    return mean_over(measured, data, batch_size, count)


def _require_classes(data: Dataset) -> int:
    validation.instance("data", data, Dataset, "Of a Split pass its .train.")
    if data.classes is None:
        raise ValueError(
            "data must have class numbers for labels, got a Dataset with classes None."
        )
    return data.classes


def _require_target(data: Dataset, target: int) -> None:
    validation.integer("target", target, low=0, high=_require_classes(data) - 1)


def _chosen(data: Dataset, examples: Examples) -> np.ndarray:
    """Which examples, as a mask `[N]`."""
    fix = "Give example numbers, for example those of dflax.attacks.owned(partition, clients)."
    given = validation.array(
        "examples", examples, kind="integer", shape=("k",), low=0, high=len(data) - 1, fix=fix
    )
    mask = np.zeros(len(data), bool)
    mask[given] = True
    return mask


def _relabelled(data: Dataset, examples: Examples, labels: Array) -> Dataset:
    chosen = jnp.asarray(_chosen(data, examples))
    old = jnp.asarray(data.labels)
    return dataclasses.replace(data, labels=jnp.where(chosen, labels.astype(old.dtype), old))


def _patched(data: Dataset, chosen: np.ndarray, side: int) -> Array:
    """The images with the patch on those that are chosen."""
    leaves = jax.tree.leaves(data.inputs)
    if len(leaves) != 1 or leaves[0].ndim not in (3, 4):
        shapes = [leaf.shape for leaf in leaves]
        raise ValueError(f"data must hold images [N, H, W] or [N, H, W, channels], got {shapes}.")
    images = jnp.asarray(leaves[0])
    validation.integer("side", side, low=1, high=min(images.shape[1:3]))
    bright = images.at[:, :side, :side].set(images.max())
    mask = jnp.asarray(chosen).reshape(-1, *(1,) * (images.ndim - 1))
    return jax.tree.unflatten(jax.tree.structure(data.inputs), [jnp.where(mask, bright, images)])
