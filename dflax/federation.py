"""A federation: a population whose clients own examples."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from dflax import validation
from dflax.data.dataset import AnyArray, Dataset, Split
from dflax.data.partition import Partition
from dflax.participation import Participation
from dflax.population import Population

LARGEST = 2**31 - 1


@jax.tree_util.register_pytree_with_keys_class
class Federation(Population):
    """Clients with their data, and the pure function that draws a round of them.

    A federation is a pytree: hand it to compiled programs as an argument, so that the data set is
    never a constant in them.

    Args:
      data: training examples; of a `Split` the training part.
      partition: who owns what: a `Partition`, `ClassLaws`, `Pools`, or any pytree with `clients`,
        `sizes` and `minibatches(seed, clients, start, steps, batch_size, replacement)`. One with
        `leaves_places_empty` may return -1 for places without an example; with
        `minibatches_and_left_out`, which says so beside them, `[m, K]` how many examples had no place.
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

    Examples:
      >>> import jax, dflax as dx
      >>> data = dx.data.digits()
      >>> partition = dx.data.dirichlet(data.labels, clients=20, alpha=0.3, seed=0)
      >>> federation = dx.Federation(data, partition, local_steps=5, batch_size=16)
      >>> federation
      Federation(digits, clients=20, cohort=20, local_steps=5, batch_size=16)
      >>> round = federation.draw(jax.random.key(0), 0)
      >>> round.assignments.minibatches.shape  # clients, local steps, examples
      (20, 5, 16)
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
        # Who reads the data has to know that some places of a minibatch hold no example.
        masked = data.masked or getattr(partition, "leaves_places_empty", False)
        self.data = dataclasses.replace(data, masked=masked) if masked else data
        self.partition = partition
        # How far every client's stream moves on from round to round: whole epochs where they count.
        self.strides = jnp.asarray(
            steps * batch_size if local_epochs is None else -(-steps * batch_size // sizes) * sizes,
            jnp.int32,
        )
        self.largest = int(sizes.max())
        self.local_epochs = None if local_epochs is None else float(local_epochs)
        self.batch_size = int(batch_size)
        self.replacement = bool(replacement)
        super().__init__(
            partition.clients,
            participation=participation,
            weights=sizes if weights is None else weights,
            local_steps=steps.astype(int),
        )
        self.weighted = weights is not None

    def _arguments(self, changes: dict[str, Any]) -> dict[str, Any]:
        arguments = {"data": self.data, "partition": self.partition} | super()._arguments(changes)
        arguments |= {
            "batch_size": self.batch_size,
            "local_steps": self.local_steps if self.local_epochs is None else None,
            "local_epochs": self.local_epochs,
            "replacement": self.replacement,
        }
        for given, other in (("local_steps", "local_epochs"), ("local_epochs", "local_steps")):
            if changes.get(given) is not None and other not in changes:
                arguments[other] = None
        del arguments["clients"]
        return arguments

    def __repr__(self) -> str:
        return (
            f"Federation({self.data.name or 'data'}, clients={self.clients}, "
            f"cohort={self.cohort_size}, local_steps={self.local_steps}, "
            f"batch_size={self.batch_size})"
        )

    _arrays = ("data", "partition", *Population._arrays, "strides")
    _static = (*Population._static, "largest", "local_epochs", "batch_size", "replacement")


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
