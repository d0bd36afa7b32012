"""Clients that own a law over classes: minibatches drawn afresh in every round."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, UInt32

from dflax import counter, validation
from dflax.data.dataset import AnyArray


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class ClassLaws:
    """Clients that own a law over classes instead of examples: every minibatch is drawn afresh.

    Each entry of a minibatch draws a class from the client's law and then an example of that class
    uniformly from the whole data set. Build it with `resample`.

    Attributes:
      cumulative: `[n, C]` cumulative class probabilities, last column 1.
      indices: `[N]` int32 example numbers sorted by class.
      offsets: `[C]` int32 where each class starts.
      counts: `[C]` int32 examples of each class.
      sizes: `[n]` int32 nominal sizes, equal: clients weigh the same.
    """

    cumulative: Float[Array, "n C"]
    indices: Int[Array, " N"]
    offsets: Int[Array, " C"]
    counts: Int[Array, " C"]
    sizes: Int[Array, " n"]

    @property
    def clients(self) -> int:
        """n, the number of clients."""
        return self.cumulative.shape[0]

    def minibatches(
        self,
        seed: UInt32[Array, "2"],
        clients: Int[Array, " m"],
        start: Int[Array, "..."],
        steps: int,
        batch_size: int,
        replacement: bool = True,
    ) -> Int[Array, "m K B"]:
        """Example numbers `[m, K, B]`: class ~ the client's law, then uniform within the class.

        Arguments are those of `Partition.minibatches`; draws are always with replacement.
        """
        stream = counter.stream(seed, clients)[:, None]
        position = counter.positions(start, steps * batch_size)
        first = counter.mix(stream + counter.mix(position))
        second = counter.mix(first ^ counter.mix(seed[1] + jnp.uint32(1)))
        uniform = counter.uniform(first)
        laws = self.cumulative[clients][:, None]
        label = jnp.sum(uniform[..., None] >= laws[..., :-1], axis=-1)
        within = (second % self.counts[label].astype(jnp.uint32)).astype(jnp.int32)
        chosen = self.indices[self.offsets[label] + within]
        return chosen.reshape(clients.shape[0], steps, batch_size)


def resample(labels: Int[AnyArray, " N"], laws: Float[AnyArray, "n C"]) -> ClassLaws:
    """Clients whose minibatches are redrawn each round from fixed class laws.

    Args:
      labels: `[N]` class numbers in [0, C).
      laws: `[n, C]` class probabilities of each client; rows >= 0 that sum to 1.

    Returns:
      A `ClassLaws`, to be used where a `Partition` is.

    Raises:
      ValueError: laws that are no probabilities, a label out of range, or a class that some client
        wants but the data set lacks.

    References:
      Zhu et al., A Single Merging Suffices, arXiv 2507.06542.
    """
    rows = validation.array(
        "laws", laws, kind="real", shape=("clients", "classes"), low=0.0, high=1.0
    ).astype(np.float64)
    numbers = validation.array("labels", labels, kind="integer", shape=("N",))
    if not np.allclose(rows.sum(1), 1.0, atol=1e-5):
        worst = int(np.abs(rows.sum(1) - 1).argmax())
        raise ValueError(
            f"laws must have rows that sum to 1, got {rows[worst].sum():g} for client {worst}."
        )
    classes = rows.shape[1]
    if numbers.min() < 0 or numbers.max() >= classes:
        raise ValueError(
            f"labels must lie in [0, {classes}) to match laws, got {numbers.min()} to {numbers.max()}."
        )
    counts = np.bincount(numbers, minlength=classes)
    missing = np.flatnonzero((counts == 0) & (rows.max(0) > 0))
    if len(missing):
        raise ValueError(
            f"laws must not give mass to classes without examples, got mass for {missing.tolist()}."
        )
    cumulative = np.cumsum(rows, axis=1)
    return ClassLaws(
        jnp.asarray(cumulative / cumulative[:, -1:], jnp.float32),
        jnp.asarray(np.argsort(numbers, kind="stable"), jnp.int32),
        jnp.asarray(np.concatenate([[0], np.cumsum(counts)[:-1]]), jnp.int32),
        jnp.asarray(counts, jnp.int32),
        jnp.ones(rows.shape[0], jnp.int32),
    )
