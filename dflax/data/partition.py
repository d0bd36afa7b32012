"""Who owns which examples, and minibatches of them as index arithmetic."""

import dataclasses
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int, UInt32

from dflax import counter, validation
from dflax.data.dataset import AnyArray

LARGEST_CLIENT = 1 << 24
MULTIPLIERS = 256


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Partition:
    """The examples of n clients as one flat list of indices; build it with `from_indices`.

    Client i owns `indices[offsets[i] : offsets[i] + sizes[i]]`, in an order shuffled once, so that an
    arithmetic walk through it is a walk through the client's data in random order. Nothing is padded.

    Attributes:
      indices: `[total]` int32 example numbers.
      offsets: `[n]` int32.
      sizes: `[n]` int32, all >= 1.
      multipliers: `[P]` uint32, each coprime to every client's size: the strides of the walks.
    """

    indices: Int[Array, " total"]
    offsets: Int[Array, " n"]
    sizes: Int[Array, " n"]
    multipliers: UInt32[Array, " P"]

    @property
    def clients(self) -> int:
        """n, the number of clients."""
        return self.sizes.shape[0]

    def minibatches(
        self,
        seed: UInt32[Array, "2"],
        clients: Int[Array, " m"],
        start: Int[Array, "..."],
        steps: int,
        batch_size: int,
        replacement: bool,
    ) -> Int[Array, "m K B"]:
        """Example numbers of the next K minibatches of B examples of some clients.

        With replacement every entry is uniform over the client's examples. Without, position
        p = start + (0, ..., K B - 1) of client i's endless stream lies in epoch e = p // n_i, and
        within it at r = p mod n_i; the example is number `(a r + c) mod n_i` of the client's shuffled
        list, where the stride a (coprime to n_i) and the shift c are drawn by a hash of (seed, i, e).
        So every epoch visits each example exactly once, at the price of a few integer operations.

        Args:
          seed: `[2]` random bits. Without replacement, use the same in every round of a run.
          clients: `[m]` client numbers.
          start: `[]`, or `[m]` one per client: position in the streams of the first example.
          steps: K, static.
          batch_size: B, static.
          replacement: static.

        Returns:
          `[m, K, B]` int32 indices into the data set.
        """
        sizes = self.sizes[clients].astype(jnp.uint32)[:, None]
        stream = counter.stream(seed, clients)[:, None]
        position = counter.positions(start, steps * batch_size)
        if replacement:
            within = counter.mix(stream + counter.mix(position)) % sizes
        else:
            epoch, rank = jnp.divmod(position, sizes)
            shift = counter.mix(stream ^ counter.mix(epoch))
            strides = jnp.uint32(self.multipliers.shape[0])
            stride = self.multipliers[counter.mix(shift) % strides] % sizes
            within = (stride * rank + shift % sizes) % sizes
        chosen = self.indices[self.offsets[clients][:, None] + within.astype(jnp.int32)]
        return chosen.reshape(clients.shape[0], steps, batch_size)

    def as_lists(self) -> list[np.ndarray]:
        """Every client's example numbers, as n NumPy arrays."""
        flat, offsets = np.asarray(self.indices), np.asarray(self.offsets)
        return [flat[o : o + s] for o, s in zip(offsets, np.asarray(self.sizes), strict=True)]


def from_indices(
    owned: Sequence[Int[AnyArray, " _"]], *, seed: int = 0, examples: int | None = None
) -> Partition:
    """A partition from one list of example numbers per client (lists may overlap).

    Args:
      owned: n integer arrays `[n_i]`, each with at least one and at most 2^24 entries.
      seed: of the one shuffle of every client's list.
      examples: N of the data set; when given, indices outside [0, N) are refused.

    Returns:
      The `Partition`.

    Raises:
      ValueError: no clients, a client without examples, one that is too large, an index out of range.
      TypeError: `owned` is no list, or holds anything but lists of integers.

    Examples:
      >>> import dflax as dx
      >>> partition = dx.data.from_indices([[0, 1, 2], [3, 4]])
      >>> partition.clients, partition.sizes.tolist()
      (2, [3, 2])
    """
    validation.seed("seed", seed)
    if examples is not None:
        validation.integer("examples", examples, low=1)
    fix = "Pass one list of example numbers per client."
    validation.instance("owned", owned, (Sequence, np.ndarray, jax.Array), fix)
    lists = [_numbers(client, rows) for client, rows in enumerate(owned)]
    if not lists:
        raise ValueError("owned must list the examples of at least one client, got an empty list.")
    sizes = np.array([len(rows) for rows in lists])
    if sizes.min() == 0:
        raise ValueError(
            f"owned must give every client at least one example, got none for client "
            f"{int(sizes.argmin())} (and {int((sizes == 0).sum())} in all). Use fewer clients, a "
            "partitioner with min_size, or drop empty clients."
        )
    if sizes.max() > LARGEST_CLIENT:
        raise ValueError(
            f"owned must give a client at most {LARGEST_CLIENT} examples, got {int(sizes.max())}. "
            "Split such a client into several."
        )
    flat = np.concatenate(lists)
    if flat.min() < 0 or (examples is not None and flat.max() >= examples):
        allowed = "non-negative" if examples is None else f"in [0, {examples})"
        raise ValueError(f"owned must hold indices {allowed}, got {flat.min()} to {flat.max()}.")
    generator = np.random.default_rng(seed)
    flat = np.concatenate([generator.permutation(rows) for rows in lists])
    return Partition(
        jnp.asarray(flat, jnp.int32),
        jnp.asarray(np.concatenate([[0], np.cumsum(sizes)[:-1]]), jnp.int32),
        jnp.asarray(sizes, jnp.int32),
        jnp.asarray(coprime_strides(sizes), jnp.uint32),
    )


def _numbers(client: int, rows: Int[AnyArray, " _"]) -> np.ndarray:
    """The example numbers of one client, as they were given but for their width."""
    numbers = np.asarray(rows)
    if numbers.ndim != 1:
        raise ValueError(
            f"owned[{client}] must be one list of example numbers, got shape {numbers.shape}."
        )
    # An empty list, which is refused later on, has no integer type.
    if numbers.size and not np.issubdtype(numbers.dtype, np.integer):
        raise TypeError(
            f"owned[{client}] must hold integers, got dtype {numbers.dtype}. Of a mask take "
            "numpy.flatnonzero(mask)."
        )
    return numbers.astype(np.int64)


def coprime_strides(sizes: np.ndarray) -> np.ndarray:
    """Primes p that divide no client's size and whose product with any size fits 32 bits."""
    largest = int(sizes.max())
    limit = min((1 << 32) // largest - 1, max(8 * largest, 1 << 12))
    sieve = np.ones(limit + 1, bool)
    sieve[:2] = False
    for divisor in range(2, int(limit**0.5) + 1):
        if sieve[divisor]:
            sieve[divisor * divisor :: divisor] = False
    primes = np.flatnonzero(sieve)
    distinct = np.unique(sizes)
    coprime = np.array([p for p in primes[::-1] if p > largest or np.all(distinct % p)])
    if len(coprime) == 0:
        return np.array([1])
    spread = np.linspace(0, len(coprime) - 1, min(MULTIPLIERS, len(coprime))).astype(int)
    return coprime[spread]
