"""Parts of rounds alone: the draws, reads and sums that their equations need, and no more."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Key, PyTree, UInt32

from dflax import inference


def repeated(step: Callable[..., Any], times: int) -> Callable[..., Any]:
    """The compiled `(state, *given) -> state` of so many `state = step(state, *given)` in turn.

    A step must use its state in all that it computes, or the compiler takes it out of the loop.
    """

    def run(state: Any, *given: Any) -> Any:
        return jax.lax.scan(lambda at, _: (step(at, *given), None), state, None, length=times)[0]

    return jax.jit(run)


def counted(
    key: Key[Array, ""], values: Int[Array, " n"], length: int, drawn: bool
) -> Int[Array, " length"]:
    """How many users report each value; where `drawn`, each draws a word and moves by its first bit.

    Reports under local privacy need a word of chance from every user. Where only counts are simulated,
    users draw nothing.
    """
    if drawn:
        values = values ^ (jax.random.bits(key, values.shape, jnp.uint32) >> 31).astype(jnp.int32)
    return jnp.zeros(length, jnp.int32).at[values].add(1, mode="drop")


def heard_by_each(links: Bool[np.ndarray, "n n"]) -> Int[np.ndarray, "n D"]:
    """Whom everybody hears, so many each that all together hear no more than there are links."""
    most = max(1, int(links.sum()) // len(links))
    own = [np.flatnonzero(row) for row in links]
    return np.stack([np.resize(row if len(row) else [0], most) for row in own]).astype(np.int32)


def hopped(
    stamps: tuple[Int[Array, "n m"], ...], heard: Int[Array, "n D"]
) -> tuple[Int[Array, "n m"], ...]:
    """A hop of flooding: the newest claim of each origin among those heard, as small integers.

    The rows of all who are heard are read once, and every array of stamps is read and written once.
    """
    held = stamps[0].astype(jnp.int16)

    def hear(best: Array, whom: Array) -> tuple[Array, None]:
        return jnp.maximum(best, held[whom]), None

    best = jax.lax.scan(hear, held, heard.T)[0].astype(jnp.int32)
    return tuple(jnp.maximum(leaf, best) for leaf in stamps)


def executed(apply: Callable[[Any, Array], Array], size: int) -> Callable[..., Any]:
    """The step `(state, models, inputs, weights) -> state` of a query that nodes run.

    Each of several models, leaves `[v, ...]`, runs one of the inputs `[Q, ...]`. A committee is drawn by
    the nodes' weights `[n]`, a word a member. Answers are not compared, nor is anything booked. The
    state is the query's number, and a sum that all results enter.

    Args:
      apply: of one model and one query's inputs.
      size: of the committee.
    """

    def step(state: Any, models: PyTree[Array], inputs: Array, weights: Float[Array, " n"]) -> Any:
        number, total = state
        x = jax.lax.dynamic_slice_in_dim(inputs, number % len(inputs), 1)
        outputs = jax.vmap(apply, in_axes=(0, None))(models, x)
        up_to = jnp.cumsum(weights + 1e-30 * total)
        drawn = jax.random.uniform(jax.random.fold_in(jax.random.key(0), number), (size,))
        members = jnp.searchsorted(up_to, drawn * up_to[-1])
        return number + 1, outputs.sum() + members.sum()

    return step


def ranked(nodes: int, pairs: int, iterations: int) -> Callable[..., Any]:
    """The step `(state, key) -> state` of comparisons and their ranking by Bradley-Terry.

    Every node draws a word for each of its pairs, which says both answers and, by their order, who won.
    Answers are not drawn, no reputation is kept. The state is the round's number and a sum of
    strengths.

    Args:
      nodes: N.
      pairs: of each node.
      iterations: of the ranking.
    """

    def step(state: Any, key: Key[Array, ""]) -> Any:
        number, total = state
        word = jax.random.bits(jax.random.fold_in(key, number), (nodes * pairs,), jnp.uint32)
        first = word % nodes
        second = (first + 1 + (word >> 8) % (nodes - 1)) % nodes
        wins = jnp.zeros((nodes, nodes)).at[first, second].add(1.0)
        found = inference.bradley_terry(wins, prior=0.1, iterations=iterations, tolerance=None)
        return number + 1, total + found.strength

    return step


def answered(
    best: UInt32[Array, "q k"],
    known: UInt32[Array, "n M"],
    keys: UInt32[Array, " q"],
    asked: Int[Array, "r q"],
) -> UInt32[Array, "q k"]:
    """Requests of lookups: k ids in a row of each asked peer's table are read, and k distances kept.

    Kept is the lesser at each place: what merges two lists in order does not less. Who is asked is
    given; how the asked finds the k is left out.
    """
    k = best.shape[1]

    def ask(best: Array, whom: Array) -> tuple[Array, None]:
        return jnp.minimum(best, known[whom, :k] ^ keys[:, None]), None

    return jax.lax.scan(ask, best, asked)[0]


def joined(
    counters: Int[Array, "n E"], called: Int[Array, " n"], callers: Int[Array, " n"]
) -> Int[Array, "n E"]:
    """A round of push-pull where everybody is called once: three replicas read for each written."""
    return jnp.maximum(jnp.maximum(counters, counters[called]), counters[callers])


def fetched(have: UInt32[Array, "n w"]) -> UInt32[Array, "n w"]:
    """Peers in turn each take one block that they lack and a peer with a free slot has.

    32 blocks are one word. A peer looks at the words of all who are free. The lowest block is taken, of
    the first who has it: no counts of how rare blocks are, no draws.
    """
    peers = have.shape[0]

    def take(free: Array, peer: Array) -> tuple[Array, Array]:
        offered = jnp.where(free[:, None], have, 0) & ~have[peer]
        wanted = jax.lax.reduce(offered, jnp.uint32(0), jax.lax.bitwise_or, (0,))
        lowest = wanted & -wanted
        word = jnp.argmax(lowest > 0)
        block = jnp.where(jnp.arange(have.shape[1]) == word, lowest, 0)
        holder = jnp.argmax(jnp.any(offered & block, axis=1))
        return free.at[holder].set(free[holder] & ~jnp.any(block)), block

    blocks = jax.lax.scan(take, jnp.ones(peers, bool), jnp.arange(peers))[1]
    return have | blocks
