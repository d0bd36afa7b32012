"""What clients own: examples of each class, and the laws these amount to."""

import numpy as np
from jaxtyping import Float, Int

from dflax import validation
from dflax.data.class_laws import ClassLaws
from dflax.data.dataset import AnyArray
from dflax.data.partition import Partition


def class_counts(
    partition: Partition, labels: Int[AnyArray, " N"], classes: int | None = None
) -> Int[np.ndarray, "n C"]:
    """Examples of each class that each client owns.

    Args:
      partition: n clients.
      labels: `[N]` class numbers in [0, C).
      classes: C; default one more than the largest label.

    Returns:
      `[n, C]` int64.

    Raises:
      ValueError: labels that are out of range or fewer than the partition's indices ask for.
      TypeError: labels that are no integers, or a partition that is not a `Partition`.

    Examples:
      >>> import numpy as np, dflax as dx
      >>> labels = np.array([0, 0, 1, 2])
      >>> dx.data.class_counts(dx.data.from_indices([[0, 1], [2, 3]]), labels).tolist()
      [[2, 0, 0], [0, 1, 1]]
    """
    fix = "label_distribution also takes ClassLaws."
    validation.instance("partition", partition, Partition, fix)
    numbers = validation.array("labels", labels, kind="integer", shape=("N",))
    indices, sizes = np.asarray(partition.indices), np.asarray(partition.sizes)
    if indices.max() >= len(numbers):
        raise ValueError(
            f"labels must cover the partition's examples, got {len(numbers)} labels for index "
            f"{indices.max()}. Pass the labels of the data set that was dealt."
        )
    classes = int(numbers.max()) + 1 if classes is None else classes
    validation.integer("classes", classes, low=1)
    if numbers.min() < 0 or numbers.max() >= classes:
        raise ValueError(
            f"labels must lie in [0, {classes}), got {numbers.min()} to {numbers.max()}."
        )
    client = np.repeat(np.arange(len(sizes)), sizes)
    flat = np.bincount(client * classes + numbers[indices], minlength=len(sizes) * classes)
    return flat.reshape(len(sizes), classes)


def label_distribution(
    owned: Partition | ClassLaws,
    labels: Int[AnyArray, " N"] | None = None,
    classes: int | None = None,
) -> Float[np.ndarray, "n C"]:
    """Each client's law over classes: shares of its examples, or the law it draws from.

    Args:
      owned: who owns what.
      labels: `[N]` class numbers; only a `Partition` needs them.
      classes: C, as in `class_counts`; only a `Partition` reads it.

    Returns:
      `[n, C]` float64, rows that sum to 1.

    Raises:
      ValueError, TypeError: as `class_counts` does, or labels that are missing.

    Examples:
      >>> import numpy as np, dflax as dx
      >>> labels = np.array([0, 0, 1, 2])
      >>> dx.data.label_distribution(dx.data.from_indices([[0, 1], [2, 3]]), labels).tolist()
      [[1.0, 0.0, 0.0], [0.0, 0.5, 0.5]]
    """
    validation.instance("owned", owned, (Partition, ClassLaws))
    if isinstance(owned, ClassLaws):
        return np.diff(np.asarray(owned.cumulative, np.float64), axis=1, prepend=0.0)
    if labels is None:
        raise ValueError("labels must be given for a Partition, got None.")
    counts = class_counts(owned, labels, classes)
    return counts / counts.sum(1, keepdims=True)
