"""TrieHH: a trusted server lets a trie grow by votes of random users; central privacy, not local."""

import math

import jax.numpy as jnp
from jaxtyping import Array, Key, UInt32

from dflax import validation
from dflax.algorithm import Algorithm, FederatedState, Metrics
from dflax.heavy_hitters.candidates import Candidates, find, largest
from dflax.heavy_hitters.levels import Found
from dflax.heavy_hitters.words import (
    MOST_BITS,
    ascending,
    require_words,
    shifted_right,
    word_count,
)
from dflax.population import Round


def triehh_threshold(delta: float) -> int:
    """The votes that a prefix needs in TrieHH.

        theta = the smallest integer >= 5 with theta! (theta - 3) / (theta - 2) >= 1 / delta

    Args:
      delta: in (0, 1).

    Raises:
      TypeError, ValueError: naming the argument.

    References:
      Zhu et al., Federated heavy hitters discovery with differential privacy, arXiv 1902.08534.
    """
    validation.probability("delta", delta, low_open=True, high_open=True)
    theta = 5
    while math.lgamma(theta + 1) + math.log((theta - 3) / (theta - 2)) < -math.log(delta):
        theta += 1
    return theta


def triehh_batch(epsilon: float, *, users: int, levels: int, threshold: int) -> int:
    """How many of N users vote in each of L rounds: N (e^(epsilon/L) - 1) / (theta e^(epsilon/L)).

    Args:
      epsilon: > 0, of all rounds together.
      users: N >= 1.
      levels: L >= 1.
      threshold: theta, `triehh_threshold(delta)`.

    Returns:
      The batch, rounded down.

    Raises:
      TypeError, ValueError: naming the argument; nobody would vote.

    References:
      Zhu et al., arXiv 1902.08534.
    """
    validation.real("epsilon", epsilon, low=0.0, low_open=True, scalar=True)
    validation.integer("users", users, low=1)
    validation.integer("levels", levels, low=1)
    validation.integer("threshold", threshold, low=5)
    batch = math.floor(-users * math.expm1(-float(epsilon) / levels) / threshold)
    if batch < 1:
        raise ValueError(
            f"users must be so many that somebody votes, got {users} for epsilon = "
            f"{float(epsilon):g} in {levels} rounds. Take fewer levels or a larger epsilon."
        )
    return batch


def triehh(*, bits: int, levels: int, k: int, threshold: int) -> Algorithm:
    """TrieHH: a random batch votes for prefixes, round by round; those with theta votes are kept.

    Round r is about prefixes of length l_r.

    A user votes if its prefix of the round before is in the trie. Votes are seen in the clear by a
    server that all trust. The trie is (epsilon, delta)-private for batches of `triehh_batch` users:
    CENTRAL privacy, so that its numbers are no local ones.

    Args:
      bits: m in [1, 64] of an item.
      levels: L in [1, m] rounds, l_r = ceil(r m / L). Items are complete at the last one.
      k: how many items are returned, the ones with most votes, >= 1.
      threshold: theta >= 2, `triehh_threshold(delta)`.

    Returns:
      An `Algorithm`: `init(key, items)` with `[N, W]` words; its source is
      `dflax.Population(N, participation=dflax.participation.uniform(batch))`. The result is
      `state.server`, the trie's prefixes of the last round and a `Found`. Metrics: `prefixes` in the
      trie, `votes` counted.

    Raises:
      TypeError, ValueError: naming the argument.

    References:
      Zhu et al., arXiv 1902.08534.
    """
    validation.integer("bits", bits, low=1, high=MOST_BITS)
    validation.integer("levels", levels, low=1, high=bits, fix="A level adds at least one bit.")
    validation.integer("k", k, low=1, high=1 << 20)
    validation.integer("threshold", threshold, low=2)
    lengths = [0, *(-(-(level + 1) * bits // levels) for level in range(levels))]

    def init(key: Key[Array, ""], params: UInt32[Array, "N W"]) -> FederatedState:
        validation.typed_key("key", key)
        items = jnp.asarray(require_words("params", params))
        if items.shape[1] != word_count(bits):
            raise ValueError(
                f"params must have {word_count(bits)} words an item of {bits} bits, got "
                f"{items.shape[1]}."
            )
        # No more prefixes can have theta votes than all users together have.
        rows = max(1, items.shape[0] // threshold)
        trie = Candidates(jnp.zeros((rows, items.shape[1]), jnp.uint32), jnp.int32(1))
        found = Found(jnp.zeros((k, items.shape[1]), jnp.uint32), jnp.zeros(k), jnp.int32(0))
        return FederatedState(jnp.int32(0), (trie, found), items)

    def step(state: FederatedState, round: Round) -> tuple[FederatedState, Metrics]:
        items, (trie, _) = state.clients, state.server
        if int(round.clients) != items.shape[0]:
            raise ValueError(
                f"the source must draw rounds of the {items.shape[0]} users, got "
                f"{int(round.clients)}. Use dflax.Population({items.shape[0]})."
            )
        drawn = items[round.members]
        table = jnp.asarray(lengths, jnp.int32)
        level = state.round
        before = shifted_right(drawn, jnp.minimum(bits - table[level], 32 * drawn.shape[1] - 1))
        # At the root everyone has the empty prefix.
        before = jnp.where(level == 0, jnp.uint32(0), before)
        votes = find(trie, before) >= 0
        if round.reports is not None:
            votes = votes & (round.reports > 0)
        prefixes = shifted_right(drawn, bits - table[level + 1])
        trie, found = _counted(prefixes, votes, threshold, trie.words.shape[0], k)
        metrics = {"prefixes": trie.size, "votes": jnp.sum(votes, dtype=jnp.int32)}
        return FederatedState(level + 1, (trie, found), items), metrics

    return Algorithm(init, step)


def _counted(
    prefixes: UInt32[Array, "B W"], votes: Array, threshold: int, rows: int, k: int
) -> tuple[Candidates, Found]:
    """The prefixes with enough votes, and the k of them with most."""
    words, valid, _ = ascending(prefixes, votes)
    before = jnp.concatenate([jnp.zeros(1, bool), jnp.all(words[1:] == words[:-1], -1)])
    begins = valid & ~before
    which = jnp.cumsum(begins) - 1
    count = words.shape[0]
    totals = jnp.zeros(count, jnp.int32).at[jnp.where(valid, which, count)].add(1, mode="drop")
    kept = begins & (totals[which] >= threshold)
    number = jnp.sum(kept, dtype=jnp.int32)
    top = largest(totals[which].astype(jnp.float32), kept, min(k, count))
    places = jnp.nonzero(kept, size=rows, fill_value=0)[0]
    exists = jnp.arange(top.shape[0]) < number
    missing = (0, k - top.shape[0])
    found = Found(
        jnp.pad(jnp.where(exists[:, None], words[top], 0), (missing, (0, 0))),
        jnp.pad(jnp.where(exists, totals[which][top], 0).astype(jnp.float32), missing),
        jnp.minimum(number, top.shape[0]),
    )
    return Candidates(words[places], number), found
