"""Ids, the XOR metric, and routing tables of k contacts for every bucket."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int, UInt32

from dflax import validation
from dflax.data.dataset import AnyArray

BITS = 32


class Routing(NamedTuple):
    """What n peers know of each other.

    Attributes:
      ids: `[n]` uint32, distinct.
      contacts: `[n, M]` int32, peers that a peer knows, those of its farthest bucket first; -1 in
        free places. It is the table of buckets without their empty places; `bucket` tells them apart.
      order: `[n]` int32, peers in the order of their ids.
    """

    ids: UInt32[Array, " n"]
    contacts: Int[Array, "n M"]
    order: Int[Array, " n"]


def xor_distance(x: UInt32[Array, "..."], y: UInt32[Array, "..."]) -> UInt32[Array, "..."]:
    """d(x, y) = x XOR y: symmetric, d(x, x) = 0, d(x, z) <= d(x, y) + d(y, z).

    Args:
      x: ids, uint32 of any shape.
      y: ids, uint32 of a shape that broadcasts with it.

    Raises:
      TypeError: no uint32.
    """
    return _ids("x", x) ^ _ids("y", y)


def bucket(distance: UInt32[Array, "..."]) -> Int[Array, "..."]:
    """floor(log2 d), 0 to 31: the bucket of a peer at that distance; -1 of distance 0.

    Args:
      distance: uint32 of any shape.

    Raises:
      TypeError: no uint32.
    """
    return (BITS - 1) - jax.lax.clz(_ids("distance", distance)).astype(jnp.int32)


def drawn_ids(peers: int, seed: int) -> UInt32[np.ndarray, " n"]:
    """`[n]` random ids of 32 bits, all distinct.

    Args:
      peers: n in [1, 2^20].
      seed: of NumPy's generator.

    Raises:
      TypeError, ValueError: naming the argument.
    """
    validation.integer("peers", peers, low=1, high=1 << 20)
    validation.seed("seed", seed)
    generator = np.random.default_rng(seed)
    ids = np.zeros(0, np.uint32)
    while len(ids) < peers:
        more = generator.integers(0, 1 << BITS, 2 * peers, dtype=np.uint32)
        ids = np.unique(np.concatenate([ids, more]))
    return generator.permutation(ids)[:peers]


def routing(ids: UInt32[np.ndarray, " n"], *, bucket_size: int = 20, seed: int = 0) -> Routing:
    """Tables in which bucket b of peer i has at most k random peers at distances in [2^b, 2^(b+1)).

    These share the first 31 - b bits with i and differ in the next, so that they are neighbours in the
    order of ids. Made on the host, once.

    Args:
      ids: `[n]` uint32, n >= 2, distinct; `drawn_ids` draws them.
      bucket_size: k >= 1.
      seed: of the choice of k of more peers.

    Returns:
      `Routing`.

    Raises:
      TypeError, ValueError: naming the argument.
    """
    validation.integer("bucket_size", bucket_size, low=1)
    validation.seed("seed", seed)
    given = np.asarray(_ids("ids", ids))
    if given.ndim != 1 or len(given) < 2 or len(np.unique(given)) < len(given):
        raise ValueError(
            f"ids must be at least two distinct ones, [n], got {len(np.unique(given))} in shape "
            f"{given.shape}. dflax.p2p.drawn_ids draws them."
        )
    order = np.argsort(given)
    in_order = given[order].astype(np.int64)
    # [n, 32] where each bucket's ids begin and end, from the farthest on.
    width = np.arange(BITS - 1, -1, -1)
    first = ((given.astype(np.int64)[:, None] >> width) ^ 1) << width
    low = np.searchsorted(in_order, first.reshape(-1)).reshape(first.shape)
    high = np.searchsorted(in_order, (first + (np.int64(1) << width)).reshape(-1)).reshape(
        first.shape
    )
    chosen = _chosen(low, high - low, bucket_size, np.random.default_rng(seed))
    contacts = np.where(chosen >= 0, order[np.maximum(chosen, 0)], -1).reshape(len(given), -1)
    # Full places first, in their order.
    packed = np.take_along_axis(contacts, np.argsort(contacts < 0, axis=1, kind="stable"), axis=1)
    most = int((contacts >= 0).sum(1).max())
    return Routing(
        jnp.asarray(given),
        jnp.asarray(packed[:, :most], jnp.int32),
        jnp.asarray(order, jnp.int32),
    )


def _chosen(
    low: np.ndarray, count: np.ndarray, k: int, generator: np.random.Generator
) -> Int[np.ndarray, "n B k"]:
    """At most k of each range of places [low, low + count), without repetition; -1 in places left.

    Floyd's sampling of all ranges at once: in step m a random place up to count - k + m, or that one.
    """
    k = min(k, int(count.max()))
    chosen = np.where(np.arange(k) < count[..., None], low[..., None] + np.arange(k), -1)
    full = count > k
    starts, sizes = low[full], count[full]
    found = np.full((len(sizes), k), -1, np.int64)
    for m in range(k):
        last = sizes - k + m
        drawn = generator.integers(0, last + 1)
        taken = (found == drawn[:, None]).any(1)
        found[:, m] = np.where(taken, last, drawn)
    chosen[full] = starts[:, None] + found
    return chosen


def _ids(name: str, value: AnyArray) -> UInt32[Array, "..."]:
    found = validation.array(name, value, kind="integer")
    if found.dtype != np.uint32:
        raise TypeError(f"{name} must be uint32, got {found.dtype}. Ids have 32 bits.")
    return jnp.asarray(found)
