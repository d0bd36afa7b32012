"""Minibatches in which every example is by its own chance."""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, UInt32

from dflax import counter, validation
from dflax.data.partition import Partition


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class PoissonSampled(Partition):
    """A partition whose minibatches are Poisson samples; made by `poisson_sampled`.

    Attributes:
      probability: p, `[]` or `[n]` one per client.
      largest: the largest client's number of examples (static); the others are those of `Partition`.
    """

    probability: Float[Array, "..."] = 1.0  # type: ignore[assignment]
    largest: int = dataclasses.field(default=0, metadata={"static": True})
    leaves_places_empty = True

    @property
    def expected(self) -> Float[Array, " n"]:
        """The clients' expected numbers of examples in a minibatch, `b_i = p_i n_i`, float32."""
        return self.probability * self.sizes.astype(jnp.float32)

    def minibatches_and_left_out(
        self,
        seed: UInt32[Array, "2"],
        clients: Int[Array, " m"],
        start: Int[Array, "..."],
        steps: int,
        batch_size: int,
        replacement: bool,
    ) -> tuple[Int[Array, "m K B"], Int[Array, "m K"]]:
        """What `minibatches` returns, and how many examples were left out for want of a place."""
        sizes, offsets = self.sizes[clients], self.offsets[clients]
        chance = jnp.broadcast_to(self.probability, self.sizes.shape)[clients]
        # Of 2^32 equally likely words, those below the threshold; p = 1 takes all.
        threshold = jnp.float32(2**32) * chance.astype(jnp.float32)
        most = jnp.float32(2**32 - 256)
        below = jnp.minimum(threshold, most).astype(jnp.uint32)
        always = threshold > most
        places = jnp.arange(self.largest, dtype=jnp.uint32)
        kept = min(batch_size, self.largest)
        streams = counter.stream(seed, clients)
        first = jnp.broadcast_to(jnp.reshape(start, (-1,)), clients.shape).astype(jnp.uint32)

        def minibatch(step: Array) -> tuple[Array, Array]:
            base = counter.mix(streams ^ counter.mix(first + step))
            bits = counter.mix(base[:, None] + counter.mix(places))
            owned = places < sizes[:, None].astype(jnp.uint32)
            within = owned & ((bits < below[:, None]) | always[:, None])
            # The smallest words of those that are in are a random choice among them.
            scores = jnp.where(within, -bits.astype(jnp.float32), -jnp.inf)
            best, chosen = jax.lax.top_k(scores, kept)
            rows = self.indices[jnp.where(jnp.isfinite(best), offsets[:, None] + chosen, 0)]
            rows = jnp.where(jnp.isfinite(best), rows, -1)
            rows = jnp.pad(rows, ((0, 0), (0, batch_size - kept)), constant_values=-1)
            return rows, jnp.maximum(jnp.sum(within, axis=1, dtype=jnp.int32) - batch_size, 0)

        rows, dropped = jax.lax.map(minibatch, jnp.arange(steps, dtype=jnp.uint32))
        return jnp.moveaxis(rows, 0, 1), dropped.T

    def minibatches(
        self,
        seed: UInt32[Array, "2"],
        clients: Int[Array, " m"],
        start: Int[Array, "..."],
        steps: int,
        batch_size: int,
        replacement: bool,
    ) -> Int[Array, "m K B"]:
        """Example numbers of K Poisson samples, -1 in the places that they leave empty.

        Arguments are those of `Partition.minibatches`. Samples are independent, whatever
        `replacement` says. Of a sample of more than B examples, B at random stay.
        """
        asked = (seed, clients, start, steps, batch_size, replacement)
        return self.minibatches_and_left_out(*asked)[0]


def poisson_sampled(
    partition: Partition, probability: float | Float[Array, " n"]
) -> PoissonSampled:
    """The same partition, of which every example is in each minibatch independently.

        example j of client i is in minibatch k of round t with probability p_i

    Make a `Federation` with it, whose `batch_size` is then a number of places, the most examples that
    a minibatch can hold: `places` computes one. Places that stay empty are masked (`Batch.mask` is 0);
    a sample of more examples loses some of them at random, which the metric `examples_dropped` counts
    and the accountant must know. Bits are a hash of the round's seed: good enough to simulate with,
    not for keeping a secret.

    Args:
      partition: who owns what.
      probability: p in (0, 1], traceable: one number, or `[n]`, one per client.

    Returns:
      The partition of a `Federation`.

    Raises:
      TypeError, ValueError: naming the argument.
    """
    fix = "Make one with dflax.data.iid, dirichlet or from_indices."
    validation.instance("partition", partition, Partition, fix)
    _require_probability(probability, partition)
    return PoissonSampled(
        partition.indices,
        partition.offsets,
        partition.sizes,
        partition.multipliers,
        jnp.asarray(probability, jnp.float32),
        int(np.asarray(partition.sizes).max()),
    )


def places(partition: Partition, probability: float, deviations: float = 6.0) -> int:
    """Places for the minibatches of the largest client: `ceil(b + 6 sqrt(b))`, at most its examples.

    Args:
      partition: who owns what.
      probability: p in (0, 1].
      deviations: how many standard deviations above b = p n_i, >= 0.
    """
    fix = "Make one with dflax.data.iid, dirichlet or from_indices."
    validation.instance("partition", partition, Partition, fix)
    _require_probability(probability, partition)
    validation.real("deviations", deviations, low=0.0, scalar=True)
    sizes = np.asarray(partition.sizes)
    expected = np.asarray(probability) * sizes
    most = np.minimum(np.ceil(expected + float(deviations) * np.sqrt(expected)), sizes)
    return max(math.ceil(float(most.max())), 1)


def _require_probability(probability: Any, partition: Partition) -> None:
    validation.real("probability", probability, low=0.0, high=1.0, low_open=True)
    if jnp.ndim(probability) and jnp.shape(probability) != (partition.clients,):
        raise ValueError(
            f"probability must be one number or one per client, ({partition.clients},), got shape "
            f"{jnp.shape(probability)}."
        )
