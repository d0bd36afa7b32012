"""Examples on the device in their storage dtype, decoded one minibatch at a time."""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key, PyTree

# What functions that run on the host take: device and NumPy arrays serve alike.
AnyArray = Array | np.ndarray


class Batch(NamedTuple):
    """A minibatch as the loss sees it.

    Attributes:
      inputs: `[B, ...]` decoded inputs (an array or a pytree of arrays).
      labels: `[B, ...]` labels or targets.
      mask: `[B]` weights of the examples, 0 for padding; None when all count the same.
    """

    inputs: PyTree[Array]
    labels: Array
    mask: Float[Array, " B"] | None = None


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Dataset:
    """N examples as a pytree of device arrays; pass it as an argument of compiled programs.

    A minibatch is `inputs[indices].astype(float32) * scale + shift`, in float64 for inputs stored so:
    images stay uint8 in memory.

    Attributes:
      inputs: `[N, ...]` in storage dtype (an array or a pytree of arrays).
      labels: `[N, ...]`; int32 class numbers for classification.
      scale: broadcasts against one decoded input; None leaves the inputs as they are stored.
      shift: broadcasts against one decoded input; only read when `scale` is given.
      classes: number of classes (static); None when labels are not classes.
      name: for tables and figures (static).
      transform: `(batch, key) -> batch`, applied to every decoded minibatch, for example an
        augmentation (static); None for none.
      masked: whether indices may be negative, for places of a minibatch that hold no example (static).
        `Batch.mask` is 0 there, and what stands in their place is the first example.
    """

    inputs: PyTree[Array]
    labels: Array
    scale: Float[Array, "..."] | None = None
    shift: Float[Array, "..."] | None = None
    classes: int | None = dataclasses.field(default=None, metadata={"static": True})
    name: str = dataclasses.field(default="", metadata={"static": True})
    transform: Callable[[Batch, Any], Batch] | None = dataclasses.field(
        default=None, metadata={"static": True}
    )
    masked: bool = dataclasses.field(default=False, metadata={"static": True})

    def __len__(self) -> int:
        return self.labels.shape[0]

    @property
    def example(self) -> PyTree[Array]:
        """The decoded inputs of the first example, `[1, ...]`: what `model.init` wants to see."""
        return self.fetch(jnp.zeros(1, jnp.int32)).inputs

    def fetch(self, indices: Int[Array, " B"], key: Key[Array, ""] | None = None) -> Batch:
        """The minibatch of the examples `indices`, decoded, and transformed when `key` is given."""
        mask = None
        if self.masked:
            mask = (indices >= 0).astype(jnp.float32)
            indices = jnp.maximum(indices, 0)
        inputs = jax.tree.map(lambda stored: stored[indices], self.inputs)
        if self.scale is not None:
            scale, shift = self.scale, 0.0 if self.shift is None else self.shift

            def decoded(stored: Array) -> Array:
                # float32, or the stored type where that is wider.
                kind = jnp.promote_types(stored.dtype, jnp.float32)
                return stored.astype(kind) * jnp.asarray(scale, kind) + jnp.asarray(shift, kind)

            inputs = jax.tree.map(decoded, inputs)
        batch = Batch(inputs, self.labels[indices], mask)
        if self.transform is not None and key is not None:
            batch = self.transform(batch, key)
        return batch


class Split(NamedTuple):
    """A data set's training and test examples, with shortcuts to what one asks of it most.

    Attributes:
      train: the examples that are dealt to clients.
      test: held-out examples.
    """

    train: Dataset
    test: Dataset

    @property
    def labels(self) -> Array:
        """Training labels `[N]`."""
        return self.train.labels

    @property
    def classes(self) -> int | None:
        """Number of classes."""
        return self.train.classes

    @property
    def example(self) -> PyTree[Array]:
        """One decoded training input, `[1, ...]`."""
        return self.train.example

    @property
    def name(self) -> str:
        """The data set's name."""
        return self.train.name
