"""A federation: data dealt to clients, who takes part, and the rounds drawn from both."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial
from jaxtyping import Array, Float, Int, Key

from dflax import counter, validation
from dflax.clients import everywhere
from dflax.data.dataset import AnyArray, Dataset, Split
from dflax.data.partition import Partition
from dflax.participation import Cohort, Participation, everyone

LARGEST = 2**31 - 1


class Assignment(NamedTuple):
    """What one client has to do in a round; stacked over the cohort, every leaf leads with m.

    Attributes:
      minibatches: `[K, B]` int32 indices into the data set.
      local_steps: `[]` int32, how many of the K steps the client manages.
      key: the client's own typed key of this round.
      client: `[]` int32, the client's number in [0, n), so that an attack, a rate or a fault can be
        said of a client; None in work that is made up without a federation.
    """

    minibatches: Int[Array, "K B"]
    local_steps: Int[Array, ""]
    key: Key[Array, ""]
    client: Int[Array, ""] | None = None


@jax.tree_util.register_static
class Count(int):
    """An integer that is part of a pytree's structure: static wherever the tree goes."""


class Round(NamedTuple):
    """What a federation hands to a step.

    Attributes:
      key: the round's typed key, for everything random outside of the clients.
      number: `[]` int32, which round of the run this is, from 0.
      cohort: `[m]` int32 ids of the invited clients, distinct; None for all n clients in order.
      weights: `[m]` aggregation weights, float32, or float64 of a federation made under
        `jax.enable_x64`; 0 for a client that was invited but did not report. Where all are 0 nobody
        reports, and what is a mean over clients in the round's metrics is NaN.
      reports: `[m]` 1 for clients that report, 0 for the others; None when every one of them does.
      assignments: the clients' work, leaves `[m, ...]`.
      data: the data set that the assignments' indices point into.
      partition: who owns what, for methods that read more of a client than its assignment.
      clients: n, the number of all clients; static.
      largest: the largest client's number of examples; static.
    """

    key: Key[Array, ""]
    number: Int[Array, ""]
    cohort: Int[Array, " m"] | None
    weights: Float[Array, " m"]
    reports: Float[Array, " m"] | None
    assignments: Assignment
    data: Dataset
    partition: Any
    clients: Count
    largest: Count


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
        order of its own. With `local_steps` the epochs go on from round to round (round t starts at
        example t K B of every client's stream); with `local_epochs` each round starts new ones.

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
                "Make one with dflax.data.from_arrays(inputs, labels, test_fraction=0.2)."
            )
        _verify_examples(data)
        sizes = _sizes(partition, len(data))
        validation.integer("batch_size", batch_size, low=1)
        validation.flag("replacement", replacement)
        if participation is not None:
            validation.function(
                "participation",
                participation,
                "Use one of dflax.participation, such as uniform(10).",
                takes=3,
            )
        if (local_steps is None) == (local_epochs is None):
            raise ValueError(
                f"give exactly one of local_steps and local_epochs, got local_steps={local_steps} "
                f"and local_epochs={validation.shown(local_epochs)}."
            )
        if local_epochs is not None:
            validation.real("local_epochs", local_epochs, low=0.0, low_open=True, scalar=True)
            steps = np.maximum(np.ceil(float(local_epochs) * sizes / batch_size - 1e-9), 1.0)
        else:
            validation.integer("local_steps", local_steps, low=1)
            steps = np.full(sizes.shape, local_steps)
        if int(steps.max()) * int(batch_size) > LARGEST:
            raise ValueError(
                f"local_steps * batch_size must be at most 2^31 - 1 examples a round, got "
                f"{int(steps.max())} * {batch_size}. Use fewer local steps or epochs."
            )
        weighted = weights is not None
        if weights is None:
            weights = jnp.asarray(sizes, float)
        validation.real("weights", weights, low=0.0)
        validation.leading_axis("weights", weights, partition.clients)
        if np.ndim(weights) != 1:
            raise ValueError(
                f"weights must have shape ({partition.clients},), one number per client, got "
                f"{np.shape(weights)}."
            )
        if not validation.is_traced(weights) and float(np.sum(weights)) <= 0.0:
            raise ValueError("weights must be positive for at least one client, got zeros only.")

        self.data = data
        self.partition = partition
        participation = everyone() if participation is None else participation
        # A plain function is no pytree; wrapped, it becomes part of the structure.
        plain = jax.tree_util.all_leaves([participation])
        self.participation = Partial(participation) if plain else participation
        self.weights = jnp.asarray(weights, float)
        self.steps = jnp.asarray(steps, jnp.int32)
        # How far every client's stream moves on from round to round: whole epochs where they count.
        self.strides = jnp.asarray(
            steps * batch_size if local_epochs is None else -(-steps * batch_size // sizes) * sizes,
            jnp.int32,
        )
        self.largest = int(sizes.max())
        self.local_steps = int(steps.max())
        self.local_epochs = None if local_epochs is None else float(local_epochs)
        self.batch_size = int(batch_size)
        self.replacement = bool(replacement)
        self.weighted = weighted
        # Refuses a cohort larger than the federation, and tells m.
        drawn = jax.eval_shape(self.draw, jax.random.key(0), jnp.int32(0))
        self.cohort_size = drawn.weights.shape[0]
        if self.cohort_size == 0:
            raise ValueError("participation must invite at least one client, got a cohort of 0.")

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
        number = jnp.asarray(index, jnp.int32)
        # The examples stay outside: compiled programs copy what they hand back.
        arrays = (self.partition, self.participation, self.weights, self.steps, self.strides)
        counts = (self.clients, self.local_steps, self.batch_size, self.replacement)
        step_key, cohort, weights, assignments = _drawn(*arrays, key, number, counts)
        return Round(
            key=step_key,
            number=number,
            cohort=cohort.clients,
            weights=weights,
            reports=cohort.reports,
            assignments=assignments,
            data=self.data,
            partition=self.partition,
            clients=Count(self.clients),
            largest=Count(self.largest),
        )

    def replace(self, **changes: Any) -> "Federation":
        """The federation with some of its arguments changed, and all checks made again.

        What is not named stays as it is: the same data set is shared, not copied. Weights that were
        not given follow the sizes of a new partition, and so do the steps of `local_epochs`. A new
        `local_steps` ends `local_epochs`, and the other way round.

        Args:
          **changes: arguments of `Federation` by name, for example `partition=other`.

        Returns:
          A new `Federation`.

        Raises:
          TypeError: a name that is no argument of `Federation`.
          ValueError, TypeError: as `Federation` itself.
        """
        arguments = {
            "data": self.data,
            "partition": self.partition,
            "batch_size": self.batch_size,
            "local_steps": self.local_steps if self.local_epochs is None else None,
            "local_epochs": self.local_epochs,
            "participation": self.participation,
            "weights": self.weights if self.weighted else None,
            "replacement": self.replacement,
        }
        for name, value in changes.items():
            if name not in arguments:
                raise TypeError(
                    f"{name} is no argument of Federation, got {name}={validation.shown(value)}. "
                    "Allowed are "
                    f"{', '.join(arguments)}."
                )
        for given, other in (("local_steps", "local_epochs"), ("local_epochs", "local_steps")):
            if changes.get(given) is not None and other not in changes:
                arguments[other] = None
        return Federation(**(arguments | changes))

    def __repr__(self) -> str:
        return (
            f"Federation({self.data.name or 'data'}, clients={self.clients}, "
            f"cohort={self.cohort_size}, local_steps={self.local_steps}, "
            f"batch_size={self.batch_size})"
        )

    _arrays = ("data", "partition", "participation", "weights", "steps", "strides")
    _static = (
        "largest",
        "local_steps",
        "local_epochs",
        "batch_size",
        "replacement",
        "weighted",
        "cohort_size",
    )

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


@functools.partial(jax.jit, static_argnames="counts", inline=True)
def _drawn(
    partition: Any,
    participation: Participation,
    weights: Float[Array, " n"],
    steps: Int[Array, " n"],
    strides: Int[Array, " n"],
    key: Key[Array, ""],
    index: Int[Array, ""],
    counts: tuple[int, int, int, bool],
) -> tuple[Key[Array, ""], Cohort, Float[Array, " m"], Assignment]:
    """What is random in a round, as one program: a draw on its own would else be some hundred.

    Returns:
      The round's key, who takes part, their weights, and their work.
    """
    clients, local_steps, batch_size, replacement = counts
    # One call of the generator for all of the round's keys.
    numbers = 4 * index.astype(jnp.uint32) + jnp.arange(4, dtype=jnp.uint32)
    fold = jax.vmap(jax.random.fold_in, in_axes=(None, 0))
    cohort_key, clients_key, batch_key, step_key = fold(key, numbers)
    # A few numbers that every device needs whole: cut up they would travel time and again.
    cohort = participation(cohort_key, index, clients)
    validation.instance(
        "what participation returns", cohort, Cohort, "See dflax.participation.Cohort."
    )
    cohort = everywhere(cohort)
    ids = cohort.clients
    ids = jnp.arange(clients, dtype=jnp.int32) if ids is None else ids
    # Without replacement the stream must outlive the round, so its seed is the run's.
    minibatches = partition.minibatches(
        counter.seed_of(batch_key if replacement else key),
        ids,
        index * strides[ids],
        local_steps,
        batch_size,
        replacement,
    )
    own_steps, own_weights = steps[ids], weights[ids]
    if cohort.effort is not None:
        managed = cohort.effort * own_steps.astype(cohort.effort.dtype)
        own_steps = jnp.ceil(managed - 1e-5).astype(jnp.int32)
    if cohort.reports is not None:
        own_steps = jnp.where(cohort.reports > 0, own_steps, 0)
        own_weights = own_weights * cohort.reports.astype(own_weights.dtype)
    assignments = Assignment(minibatches, own_steps, fold(clients_key, ids), ids)
    return step_key, cohort, own_weights, assignments


def _verify_examples(data: Dataset) -> None:
    """As many inputs as labels, and labels that are classes; values are only looked at if known."""
    validation.leading_axis(
        "data.inputs", data.inputs, validation.leading_axis("data.labels", data.labels)
    )
    known = isinstance(data.labels, (jax.Array, np.ndarray)) and not validation.is_traced(
        data.labels
    )
    if data.classes is None or not known or not jnp.issubdtype(data.labels.dtype, jnp.integer):
        return
    low, high = int(data.labels.min()), int(data.labels.max())
    if low < 0 or high >= data.classes:
        raise ValueError(
            f"data.labels must lie in [0, {data.classes}), the data set's classes, got {low} to "
            f"{high}. Number the labels from 0, or give the right number of classes."
        )


def _sizes(partition: Any, examples: int) -> np.ndarray:
    """The clients' numbers of examples, after all checks of who owns what."""
    missing = [n for n in ("clients", "sizes", "minibatches") if not hasattr(partition, n)]
    if missing:
        raise TypeError(
            f"partition must have clients, sizes and minibatches, got a {type(partition).__name__} "
            f"without {', '.join(missing)}. Make one with dflax.data, such as iid(labels, 10), or "
            "from lists of example numbers with dflax.data.from_indices."
        )
    sizes = np.asarray(partition.sizes)
    if sizes.shape != (partition.clients,) or sizes.size == 0 or sizes.min() < 1:
        raise ValueError(
            f"partition must give each of at least one client a size >= 1, got sizes of shape "
            f"{sizes.shape} from {sizes.min(initial=0)}. Leave out clients without examples."
        )
    indices = getattr(partition, "indices", None)
    if indices is not None:
        owned = np.asarray(indices)
        low, high = int(owned.min(initial=0)), int(owned.max(initial=0))
        if low < 0 or high >= examples:
            raise ValueError(
                f"partition must hold indices in [0, {examples}), the data set's examples, got "
                f"{low if low < 0 else high}. Partition the labels of the data set that you pass, "
                "not another's."
            )
    if isinstance(partition, Partition):
        offsets = np.asarray(partition.offsets)
        if (
            offsets.shape != sizes.shape
            or (offsets < 0).any()
            or (offsets + sizes > owned.size).any()
        ):
            raise ValueError(
                f"partition must have offsets and sizes within its {owned.size} indices, got ends up "
                f"to {int(np.max(offsets)) + int(np.max(sizes))}. Build it with "
                "dflax.data.from_indices."
            )
    return sizes
