"""A federation: data dealt to clients, who takes part, and the rounds drawn from both."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key

from dflax import counter, validation
from dflax.clients import everywhere
from dflax.data.dataset import AnyArray, Dataset, Split
from dflax.participation import Participation, everyone


class Assignment(NamedTuple):
    """What one client has to do in a round; stacked over the cohort, every leaf leads with m.

    Attributes:
      minibatches: `[K, B]` int32 indices into the data set.
      local_steps: `[]` int32, how many of the K steps the client manages.
      key: the client's own typed key of this round.
    """

    minibatches: Int[Array, "K B"]
    local_steps: Int[Array, ""]
    key: Key[Array, ""]


@jax.tree_util.register_static
class Count(int):
    """An integer that is part of a pytree's structure: static wherever the tree goes."""


class Round(NamedTuple):
    """What a federation hands to a step.

    Attributes:
      key: the round's typed key, for everything random outside of the clients.
      number: `[]` int32, which round of the run this is, from 0.
      cohort: `[m]` int32 ids of the invited clients, distinct; None for all n clients in order.
      weights: `[m]` float32 aggregation weights; 0 for a client that was invited but did not report.
      reports: `[m]` 1 for clients that report, 0 for the others; None when every one of them does.
      assignments: the clients' work, leaves `[m, ...]`.
      data: the data set that the assignments' indices point into.
      clients: n, the number of all clients; static.
    """

    key: Key[Array, ""]
    number: Int[Array, ""]
    cohort: Int[Array, " m"] | None
    weights: Float[Array, " m"]
    reports: Float[Array, " m"] | None
    assignments: Assignment
    data: Dataset
    clients: Count


@jax.tree_util.register_pytree_with_keys_class
class Federation:
    """Clients with their data, and the pure function that draws a round of them.

    A federation is a pytree: hand it to compiled programs as an argument, so that the data set is
    never a constant in them.

    Args:
      data: training examples; of a `Split` the training part.
      partition: who owns what: a `Partition`, `ClassLaws`, or any pytree with `clients`, `sizes`
        and `minibatches(seed, clients, start, steps, batch_size, replacement)`.
      batch_size: B >= 1, examples per local step.
      local_steps: K >= 1, local steps per round, the same for every client; or give `local_epochs`.
      local_epochs: E > 0, passes over the client's own data per round: client i does
        ceil(E n_i / B) steps, and K is the largest of these.
      participation: who takes part, see `dflax.participation`; default all.
      weights: `[n]` aggregation weights, >= 0; default the clients' numbers of examples. Pass
        `jnp.ones(n)` to weigh clients the same.
      replacement: draw minibatches with replacement; default epochs without replacement, each in an
        order of its own, that go on from round to round (round t starts at example t K B of every
        client's stream).

    Raises:
      ValueError, TypeError: naming the argument, before anything is compiled.
    """

    def __init__(
        self,
        data: Dataset | Split,
        partition: Any,
        *,
        batch_size: int,
        local_steps: int | None = None,
        local_epochs: float | None = None,
        participation: Participation | None = None,
        weights: Float[AnyArray, " n"] | None = None,
        replacement: bool = False,
    ):
        data = data.train if isinstance(data, Split) else data
        if not isinstance(data, Dataset):
            raise TypeError(
                f"data must be a Dataset or a Split of two, got {type(data).__name__}. "
                "Make one with dflax.data.from_arrays(inputs, labels)."
            )
        validation.integer("batch_size", batch_size, low=1)
        sizes = np.asarray(partition.sizes)
        if (local_steps is None) == (local_epochs is None):
            raise ValueError(
                f"give exactly one of local_steps and local_epochs, got local_steps={local_steps} "
                f"and local_epochs={local_epochs}."
            )
        if local_epochs is not None:
            validation.real("local_epochs", local_epochs, low=0.0, low_open=True)
            steps = np.ceil(local_epochs * sizes / batch_size - 1e-9).astype(np.int64)
            steps = np.maximum(steps, 1)
        else:
            validation.integer("local_steps", local_steps, low=1)
            steps = np.full(sizes.shape, local_steps)
        _within(partition, len(data))
        if weights is None:
            weights = jnp.asarray(sizes, jnp.float32)
        validation.real("weights", weights, low=0.0)
        validation.leading_axis("weights", weights, partition.clients)
        if not validation.is_traced(weights) and float(np.sum(weights)) <= 0.0:
            raise ValueError("weights must be positive for at least one client, got zeros only.")

        self.data = data
        self.partition = partition
        self.participation = everyone() if participation is None else participation
        self.weights = jnp.asarray(weights, jnp.float32)
        self.steps = jnp.asarray(steps, jnp.int32)
        self.local_steps = int(steps.max())
        self.batch_size = int(batch_size)
        self.replacement = bool(replacement)
        # Refuses a cohort larger than the federation, and tells m.
        drawn = jax.eval_shape(self.draw, jax.random.key(0), jnp.int32(0))
        self.cohort_size = drawn.weights.shape[0]

    @property
    def clients(self) -> int:
        """n, the number of clients."""
        return self.partition.clients

    def draw(self, key: Key[Array, ""], index: Int[Array, ""]) -> Round:
        """Round number `index` of the run with this key: a pure function, ready to be scanned.

        Args:
          key: the run's typed key.
          index: `[]` int32 number of the round, >= 0.

        Returns:
          A `Round` of m clients with K minibatches of B indices each.
        """
        validation.typed_key("key", key)
        index = jnp.asarray(index, jnp.int32)
        # One call of the generator for all of the round's keys.
        numbers = 4 * index.astype(jnp.uint32) + jnp.arange(4, dtype=jnp.uint32)
        cohort_key, clients_key, batch_key, step_key = jax.vmap(
            jax.random.fold_in, in_axes=(None, 0)
        )(key, numbers)
        # A few numbers that every device needs whole: cut up they would travel time and again.
        cohort = everywhere(self.participation(cohort_key, index, self.clients))
        ids = cohort.clients
        ids = jnp.arange(self.clients, dtype=jnp.int32) if ids is None else ids
        # Without replacement the stream must outlive the round, so its seed is the run's.
        minibatches = self.partition.minibatches(
            counter.seed_of(batch_key if self.replacement else key),
            ids,
            index * (self.local_steps * self.batch_size),
            self.local_steps,
            self.batch_size,
            self.replacement,
        )
        local_steps, weights = self.steps[ids], self.weights[ids]
        if cohort.effort is not None:
            local_steps = jnp.ceil(cohort.effort * local_steps - 1e-5).astype(jnp.int32)
        if cohort.reports is not None:
            local_steps = jnp.where(cohort.reports > 0, local_steps, 0)
            weights = weights * cohort.reports
        client_keys = jax.vmap(jax.random.fold_in, in_axes=(None, 0))(clients_key, ids)
        return Round(
            key=step_key,
            number=index,
            cohort=cohort.clients,
            weights=weights,
            reports=cohort.reports,
            assignments=Assignment(minibatches, local_steps, client_keys),
            data=self.data,
            clients=Count(self.clients),
        )

    def __repr__(self) -> str:
        return (
            f"Federation({self.data.name or 'data'}, clients={self.clients}, "
            f"cohort={self.cohort_size}, local_steps={self.local_steps}, "
            f"batch_size={self.batch_size})"
        )

    _arrays = ("data", "partition", "participation", "weights", "steps")
    _static = ("local_steps", "batch_size", "replacement", "cohort_size")

    def tree_flatten_with_keys(self) -> tuple[Any, Any]:
        """Arrays as children, counts as static structure."""
        children = [(jax.tree_util.GetAttrKey(n), getattr(self, n)) for n in self._arrays]
        return children, tuple(getattr(self, n) for n in self._static)

    @classmethod
    def tree_unflatten(cls, static: Any, children: Any) -> "Federation":
        """Rebuilds the federation without checking again: its leaves may be traced."""
        federation = object.__new__(cls)
        for name, value in (*zip(cls._arrays, children), *zip(cls._static, static)):  # noqa: B905
            setattr(federation, name, value)
        return federation


def _within(partition: Any, examples: int) -> None:
    largest = int(np.max(np.asarray(partition.indices), initial=-1))
    if largest >= examples:
        raise ValueError(
            f"partition must hold indices in [0, {examples}), the data set's examples, got "
            f"{largest}. Partition the labels of the data set that you pass, not another's."
        )
