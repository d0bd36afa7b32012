"""Sorting networks for any number of wires, and what is left of them when only some ranks count."""

import functools
from collections.abc import Iterable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Int

# A comparator (i, j), i < j, puts the smaller of two wires on wire i and the larger on wire j.
Comparators = tuple[tuple[int, int], ...]


@functools.lru_cache
def sorting(wires: int) -> Comparators:
    """Batcher's odd-even merge sort of n >= 0 wires: about `n log2(n)^2 / 4` comparators.

    References:
      Batcher, Sorting Networks and Their Applications, AFIPS 1968; Knuth, The Art of Computer
      Programming 3, Section 5.2.2, Algorithm M.
    """
    network = []
    run = 1
    while run < wires:
        step = run
        while step:
            for start in range(step % run, wires - step, 2 * step):
                for i in range(start, min(start + step, wires - step)):
                    if i // (2 * run) == (i + step) // (2 * run):
                        network.append((i, i + step))
            step //= 2
        run *= 2
    return tuple(network)


@functools.lru_cache
def selecting(wires: int, ranks: tuple[int, ...]) -> Comparators:
    """The comparators of `sorting(wires)` on which the wires of some ranks depend."""
    live = set(ranks)
    kept = []
    for i, j in reversed(sorting(wires)):
        if i in live or j in live:
            kept.append((i, j))
            live |= {i, j}
    return tuple(reversed(kept))


def apply(network: Iterable[tuple[int, int]], rows: Sequence[Array]) -> list[Array]:
    """Every comparator as an operation of its own; XLA drops the sides that nobody reads."""
    out = list(rows)
    for i, j in network:
        out[i], out[j] = jnp.minimum(out[i], out[j]), jnp.maximum(out[i], out[j])
    return out


def stages(
    network: Comparators, wires: int
) -> tuple[Int[np.ndarray, "s n"], Bool[np.ndarray, "s n"]]:
    """The network as tables, in the least number of stages of comparators that share no wire.

    Returns:
      `[s, n]` each wire's partner in each stage, itself where it rests; `[s, n]` whether it keeps the
      smaller value.
    """
    free = [0] * wires
    when = []
    for i, j in network:
        when.append(max(free[i], free[j]))
        free[i] = free[j] = when[-1] + 1
    partner = np.tile(np.arange(wires, dtype=np.int32), (max(free, default=0), 1))
    smaller = np.ones(partner.shape, bool)
    for stage, (i, j) in zip(when, network, strict=True):
        partner[stage, i], partner[stage, j], smaller[stage, j] = j, i, False
    return partner, smaller


def apply_stages(network: Comparators, rows: Int[Array, "n c"]) -> Int[Array, "n c"]:
    """The network one stage after another, in a loop whose program is as small for any n."""
    if not network:
        return rows
    partner, smaller = map(jnp.asarray, stages(network, rows.shape[0]))

    def compare(stage: Array, rows: Array) -> Array:
        other = rows.at[partner[stage]].get(mode="promise_in_bounds")
        low, high = jnp.minimum(rows, other), jnp.maximum(rows, other)
        return jnp.where(smaller[stage][:, None], low, high)

    return jax.lax.fori_loop(0, partner.shape[0], compare, rows)
