"""Queries, drawn one a round from a data set."""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from dflax import validation
from dflax.data.dataset import AnyArray


class Query(NamedTuple):
    """What is asked in one round.

    Attributes:
      key: the round's typed key.
      number: `[]` int32, which query of the run this is.
      inputs: `[B, ...]`.
      labels: `[B]` int32 right classes; None where they are not known.
      critical: `[]` bool, whether the answer must be proved.
    """

    key: Key[Array, ""]
    number: Int[Array, ""]
    inputs: Float[Array, "B ..."]
    labels: Int[Array, " B"] | None
    critical: Bool[Array, ""]


@jax.tree_util.register_pytree_with_keys_class
@dataclasses.dataclass(frozen=True)
class Queries:
    """A source of queries: so many examples of a data set, drawn with replacement.

    Attributes:
      inputs: `[Q, ...]` what may be asked.
      labels: `[Q]` integer classes; None: not known, and no accuracy is measured.
      examples: B >= 1, in a query.
      critical: probability that a query is critical, in [0, 1]; traceable.

    Raises:
      TypeError, ValueError: naming the argument.
    """

    inputs: Float[AnyArray, "Q ..."]
    labels: Int[AnyArray, " Q"] | None = None
    examples: int = 1
    critical: float | Float[Array, ""] = 0.0

    def __post_init__(self) -> None:
        given = validation.array("inputs", self.inputs, kind="real")
        if given.ndim < 1 or given.shape[0] < 1:
            raise ValueError(f"inputs must be at least one example, got shape {given.shape}.")
        if self.labels is not None:
            validation.array("labels", self.labels, kind="integer", shape=given.shape[:1], low=0)
        validation.integer("examples", self.examples, low=1)
        validation.probability("critical", self.critical)

    def draw(self, key: Key[Array, ""], index: Int[Array, ""]) -> Query:
        """Query number `index` of the run whose key is `key`."""
        chosen_key, critical_key, own = jax.random.split(jax.random.fold_in(key, index), 3)
        inputs = jnp.asarray(self.inputs)
        rows = jax.random.randint(chosen_key, (self.examples,), 0, inputs.shape[0])
        labels = None if self.labels is None else jnp.asarray(self.labels, jnp.int32)[rows]
        critical = jax.random.bernoulli(critical_key, self.critical)
        return Query(own, jnp.asarray(index, jnp.int32), inputs[rows], labels, critical)

    def tree_flatten_with_keys(self) -> tuple[Any, int]:
        """Arrays as children, the number of examples as static structure."""
        names = ("inputs", "labels", "critical")
        return [(jax.tree_util.GetAttrKey(n), getattr(self, n)) for n in names], self.examples

    @classmethod
    def tree_unflatten(cls, static: int, children: Any) -> "Queries":
        """Rebuilds the source without checking again: its leaves may be anything."""
        queries = object.__new__(cls)
        inputs, labels, critical = children
        values = {"inputs": inputs, "labels": labels, "examples": static, "critical": critical}
        for name, value in values.items():
            object.__setattr__(queries, name, value)
        return queries
