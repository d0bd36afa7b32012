"""Every client's own small test set, and how well a model knows each class on it."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, PyTree

from dflax import validation
from dflax.data.dataset import Dataset
from dflax.data.partition import Partition


class ClassTests(NamedTuple):
    """What the n clients grade models by, or, without the axis n, what one of them has.

    Attributes:
      inputs: `[n, T, ...]` test inputs, padded to the T of the largest set.
      labels: `[n, T]` int32 in [0, C).
      mask: `[n, T]` 1 for an example, 0 for padding.
      familiar: `[n, C]` whether a client owns examples of a class. The other classes are foreign to it.
      common: `[n, n]` int32, how many familiar classes two clients share. In a deployment a private
        set intersection tells this number and no more.
    """

    inputs: PyTree[Array]
    labels: Int[Array, "n T"]
    mask: Float[Array, "n T"]
    familiar: Bool[Array, "n C"]
    common: Int[Array, "n n"]


def class_tests(data: Dataset, partition: Partition) -> ClassTests:
    """The clients' test sets, from a data set and who owns which of its examples.

    A class is familiar to a client that owns a test example of it. The examples must be clean: a
    client believes them. They should not be those that it trains on.

    Args:
      data: whose labels are class numbers; features where the model is a head on frozen ones.
      partition: each client's test examples, for example 10 of every class that it owns.

    Returns:
      A `ClassTests` with copies of the examples.

    Raises:
      TypeError, ValueError: naming the argument.
    """
    validation.instance("data", data, Dataset, "Of a Split pass its .train or .test.")
    validation.instance("partition", partition, Partition, "Make one with dflax.data.")
    if data.classes is None:
        raise ValueError("data must have class numbers for labels, got classes None.")
    owned = partition.as_lists()
    highest = max(int(rows.max()) for rows in owned)
    if highest >= len(data):
        raise ValueError(
            f"partition must hold numbers of data's {len(data)} examples, got {highest}."
        )
    largest = max(len(rows) for rows in owned)
    rows = np.stack([np.resize(own, largest) for own in owned])
    mask = np.arange(largest) < np.array([len(own) for own in owned])[:, None]
    batch = data.fetch(jnp.asarray(rows.reshape(-1)))
    labels = np.asarray(data.labels)[rows]
    familiar = np.stack(
        [
            np.bincount(own[there], minlength=data.classes) > 0
            for own, there in zip(labels, mask, strict=True)
        ]
    )
    count = familiar.astype(np.int32)
    return ClassTests(
        jax.tree.map(lambda leaf: leaf.reshape(*rows.shape, *leaf.shape[1:]), batch.inputs),
        jnp.asarray(labels, jnp.int32),
        jnp.asarray(mask, jnp.float32),
        jnp.asarray(familiar),
        jnp.asarray(count @ count.T),
    )


def f1_by_class(
    predicted: Int[Array, " T"],
    labels: Int[Array, " T"],
    mask: Float[Array, " T"],
    classes: int,
) -> Float[Array, " C"]:
    """The F1 score of every class: `2 TP / (2 TP + FP + FN)`, 0 where all three are 0.

    Args:
      predicted: classes that a model says.
      labels: classes that are right.
      mask: 1 for an example that counts, 0 for one that does not.
      classes: C, static.
    """
    numbers = jnp.arange(classes)
    said = (predicted[:, None] == numbers) * mask[:, None]
    right = (labels[:, None] == numbers) * mask[:, None]
    # FP + TP is how often a class is said, FN + TP how often it is right.
    both, either = jnp.sum(said * right, 0), jnp.sum(said + right, 0)
    return jnp.where(either > 0, 2 * both / jnp.where(either > 0, either, 1), 0)
