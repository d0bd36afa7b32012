"""Which examples have labels: pools as masks, minibatches of them, and labels bought by scores."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, UInt32

from dflax import validation
from dflax.data.dataset import AnyArray
from dflax.data.partition import Partition, coprime_strides


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Pools:
    """The examples of n clients, some of them labelled; make it with `pools`.

    A client has P places, of which the first D_i hold its examples. The labels are the masks: buying
    changes values and no shape, so that one compiled program serves all stages of active learning.
    As the partition of a `Federation` it hands out minibatches of labelled examples alone, and its
    sizes, which weigh the clients, are the numbers of labels.

    Attributes:
      owned: `[n, P]` int32 example numbers; empty places repeat the client's first.
      valid: `[n, P]` whether the place holds an example.
      labelled: `[n, P]` whether its label is known; False in empty places.
      multipliers: `[S]` uint32 primes above P, the strides of walks through any pool.
    """

    owned: Int[Array, "n P"]
    valid: Bool[Array, "n P"]
    labelled: Bool[Array, "n P"]
    multipliers: UInt32[Array, " S"]

    @property
    def clients(self) -> int:
        """n, the number of clients."""
        return self.owned.shape[0]

    @property
    def sizes(self) -> Int[Array, " n"]:
        """Numbers of labels, `[n]` int32."""
        return jnp.sum(self.labelled, axis=1, dtype=jnp.int32)

    @property
    def unlabelled(self) -> Bool[Array, "n P"]:
        """The examples whose labels can be bought."""
        return self.valid & ~self.labelled

    def minibatches(
        self,
        seed: UInt32[Array, "2"],
        clients: Int[Array, " m"],
        start: Int[Array, "..."],
        steps: int,
        batch_size: int,
        replacement: bool,
    ) -> Int[Array, "m K B"]:
        """Numbers of labelled examples; arguments are those of `Partition.minibatches`."""
        return self.part(self.labelled).minibatches(
            seed, clients, start, steps, batch_size, replacement
        )

    def part(self, mask: Bool[Array, "n P"]) -> Partition:
        """The examples of one mask as a `Partition`, whose minibatches are drawn as anyone's.

        Where a client has none in the mask, its first place stands for them.
        """
        order = jnp.argsort(~mask, axis=1, stable=True)
        clients, places = self.owned.shape
        return Partition(
            jnp.take_along_axis(self.owned, order, axis=1).reshape(-1),
            places * jnp.arange(clients, dtype=jnp.int32),
            jnp.maximum(jnp.sum(mask, axis=1, dtype=jnp.int32), 1),
            self.multipliers,
        )

    def class_counts(self, labels: Int[Array, " N"], classes: int) -> Int[Array, "n C"]:
        """n_{i,c}, how many labels of each class each client has; other labels are not read.

        Args:
          labels: `[N]` class numbers in [0, C) of the data set.
          classes: C.
        """
        known = jnp.where(self.labelled, labels[self.owned], -1)
        # Class by class: a one-hot table of all examples would be C times the pools.
        count = jax.lax.map(
            lambda c: jnp.sum(known == c, axis=1, dtype=jnp.int32), jnp.arange(classes)
        )
        return count.T

    def bought(self, scores: Float[Array, "n P"], budgets: int | Int[Array, " n"]) -> "Pools":
        """The pools after every client bought the labels of its best unlabelled examples.

        Client i buys min(b_i, its unlabelled examples), those with the largest scores. Of equal scores
        the earlier place goes first; NaN comes after all numbers. Empty places are never bought.

        Args:
          scores: `[n, P]`, only read where a label can be bought.
          budgets: b, `[n]` or one number for all, >= 0.
        """
        able = self.unlabelled
        scores = jnp.where(jnp.isnan(scores), -jnp.inf, scores)
        order = jnp.lexsort((-scores, ~able), axis=1)
        rank = jnp.argsort(order, axis=1)
        chosen = able & (rank < jnp.reshape(jnp.asarray(budgets), (-1, 1)))
        return dataclasses.replace(self, labelled=self.labelled | chosen)


def pools(
    partition: Partition,
    labelled: int | Int[AnyArray, " n"],
    *,
    seed: int = 0,
    capacity: int | None = None,
) -> Pools:
    """Pools of a partition, with random labels to begin with.

    Args:
      partition: who owns what.
      labelled: how many labels each client has, one number or `[n]`, each in [1, the client's number
        of examples]; `budgets` makes them of a share.
      seed: of their choice.
      capacity: P, at least the largest client's number of examples, which is the default. Give the
        largest of several partitions for pools of equal shapes.

    Returns:
      The `Pools`.

    Raises:
      TypeError, ValueError: naming the argument.
    """
    fix = "Make one with dflax.data.iid, dirichlet or from_indices."
    validation.instance("partition", partition, Partition, fix)
    validation.seed("seed", seed)
    sizes = np.asarray(partition.sizes)
    given = np.broadcast_to(labelled, sizes.shape) if np.ndim(labelled) == 0 else labelled
    counts = validation.array("labelled", given, kind="integer", shape=sizes.shape, low=1)
    within("labelled", counts, sizes)
    largest = int(sizes.max())
    places = largest if capacity is None else capacity
    validation.integer("capacity", places, low=largest, fix="It must hold the largest client.")
    valid = np.arange(places) < sizes[:, None]
    owned = np.zeros(valid.shape, np.int64)
    generator = np.random.default_rng(seed)
    known = np.zeros(valid.shape, bool)
    for client, rows in enumerate(partition.as_lists()):
        owned[client] = rows[0]
        owned[client, : len(rows)] = rows
        known[client, generator.permutation(len(rows))[: counts[client]]] = True
    return Pools(
        jnp.asarray(owned, jnp.int32),
        jnp.asarray(valid),
        jnp.asarray(known),
        # Prime to all sizes that a pool may come to have.
        jnp.asarray(coprime_strides(np.arange(1, places + 1)), jnp.uint32),
    )


def budgets(partition: Partition, share: float) -> Int[np.ndarray, " n"]:
    """b_i = ceil(share D_i), the labels that each client buys for a share of its D_i examples.

    Args:
      partition: who owns what.
      share: in (0, 1].

    Returns:
      `[n]` integers.
    """
    fix = "Make one with dflax.data.iid, dirichlet or from_indices."
    validation.instance("partition", partition, Partition, fix)
    validation.real("share", share, low=0.0, high=1.0, low_open=True, scalar=True)
    # 1e-9: a tenth of 50 examples is 5 of them, whatever its last bit.
    return np.ceil(float(share) * np.asarray(partition.sizes) - 1e-9).astype(np.int64)


def within(name: str, counts: Int[AnyArray, " n"], sizes: Int[np.ndarray, " n"]) -> None:
    """Refuse more labels than a client has examples."""
    over = np.asarray(counts) > sizes
    if over.any():
        client = int(np.argmax(over))
        raise ValueError(
            f"{name} must be at most each client's number of examples, got {int(counts[client])} for "
            f"client {client}, which has {int(sizes[client])}. Ask for fewer, or deal it more."
        )
