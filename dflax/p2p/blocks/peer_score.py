"""How peers rate those that sent them blocks, and whom they ask next."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from dflax import validation

NEW, KEPT = 55.0, 10


class PeerStats(NamedTuple):
    """What each of n peers remembers of each other one; `[n, n]`, rows remember.

    Attributes:
      ok: int32, requests that were answered well.
      fail: int32, that were not.
      run_ok: int32, of the latest in a row that were.
      run_fail: int32, of the latest in a row that were not.
      speed: `[n, n, 10]` bytes a second of the last ten that were, in no order; 0 in free places.
      last: seconds, time of the last request.
    """

    ok: Int[Array, "n n"]
    fail: Int[Array, "n n"]
    run_ok: Int[Array, "n n"]
    run_fail: Int[Array, "n n"]
    speed: Float[Array, "n n 10"]
    last: Float[Array, "n n"]


class PeerScores(NamedTuple):
    """A rating as pure functions.

    Attributes:
      init: `init(peers) -> PeerStats`, of peers that know nobody.
      score: `score(stats, now) -> [n, n]` in [0, 100].
      select: `select(key, stats, candidates, now) -> [n, n]` bools: whom each asks, of `candidates`
        `[n, n]`.
      observe: `observe(stats, asked, ok, speed, now)`: each peer i asked `asked[i]` (-1: nobody), it
        went well or not, `[n]`, at a speed `[n]` in bytes a second.
    """

    init: Callable[[int], PeerStats]
    score: Callable[..., Float[Array, "n n"]]
    select: Callable[..., Bool[Array, "n n"]]
    observe: Callable[..., PeerStats]


def peer_scores(*, top: int = 3, least: int = 2) -> PeerScores:
    """Lattica's rating of peers by speed, success and steadiness.

    A peer that was never asked has 55, another one, clipped to [0, 100],
        (0.5 sp + 0.35 x 100 ok / (ok + fail) + 0.15 st) x (1 - min(age / 600 s, 0.3)),
    sp = clip(20 (log10(mean of the last ten speeds) - 3), 0, 100), st = 0 after more than 3 failures in
    a row, else 10 min(successes in a row, 10). Of more than `top` candidates `top` are taken at random
    from the best floor(1.5 top); all of them if there are at most `least`.

    Args:
      top: >= 1.
      least: >= 0.

    Returns:
      `PeerScores`.

    Raises:
      TypeError, ValueError: naming the argument.
    """
    validation.integer("top", top, low=1)
    validation.integer("least", least, low=0)
    best = (3 * top) // 2

    def init(peers: int) -> PeerStats:
        validation.integer("peers", peers, low=1)
        counts = jnp.zeros((peers, peers), jnp.int32)
        speed = jnp.zeros((peers, peers, KEPT), jnp.float32)
        return PeerStats(counts, counts, counts, counts, speed, jnp.zeros((peers, peers)))

    def score(stats: PeerStats, now: Float[Array, ""]) -> Float[Array, "n n"]:
        asked = stats.ok + stats.fail
        kept = jnp.sum(stats.speed > 0, axis=-1)
        mean = jnp.sum(stats.speed, axis=-1) / jnp.maximum(kept, 1)
        speed = jnp.clip(20 * (jnp.log10(jnp.maximum(mean, 1.0)) - 3), 0, 100)
        success = 35.0 * stats.ok / jnp.maximum(asked, 1)
        steady = jnp.where(stats.run_fail > 3, 0, 10 * jnp.minimum(stats.run_ok, 10))
        decay = 1 - jnp.minimum(jnp.maximum(now - stats.last, 0.0) / 600, 0.3)
        rated = jnp.clip((0.5 * speed + success + 0.15 * steady) * decay, 0, 100)
        return jnp.where(asked > 0, rated, NEW)

    def select(
        key: Key[Array, ""],
        stats: PeerStats,
        candidates: Bool[Array, "n n"],
        now: Float[Array, ""],
    ) -> Bool[Array, "n n"]:
        ties, choosing = jax.random.split(key)
        count = jnp.sum(candidates, axis=1, keepdims=True)
        # Equal scores stand in a random order.
        rated = score(stats, now) + 1e-3 * jax.random.uniform(ties, candidates.shape)
        among = _rank(jnp.where(candidates, rated, -1.0)) < best
        drawn = jax.random.uniform(choosing, candidates.shape)
        chosen = _rank(jnp.where(candidates & among, drawn, -1.0)) < top
        return candidates & (chosen | (count <= max(top, least)))

    def observe(
        stats: PeerStats,
        asked: Int[Array, " n"],
        ok: Bool[Array, " n"],
        speed: Float[Array, " n"],
        now: Float[Array, ""],
    ) -> PeerStats:
        rows = jnp.arange(asked.shape[0])
        who = jnp.where(asked >= 0, asked, asked.shape[0])
        good, bad = ok.astype(jnp.int32), (~ok).astype(jnp.int32)

        def runs(before: Int[Array, "n n"], goes_on: Int[Array, " n"]) -> Int[Array, "n n"]:
            return before.at[rows, who].set(
                goes_on * (before[rows, jnp.maximum(asked, 0)] + 1), mode="drop"
            )

        place = stats.ok[rows, jnp.maximum(asked, 0)] % KEPT
        noted = jnp.where(ok, who, asked.shape[0])
        return PeerStats(
            stats.ok.at[rows, who].add(good, mode="drop"),
            stats.fail.at[rows, who].add(bad, mode="drop"),
            runs(stats.run_ok, good),
            runs(stats.run_fail, bad),
            stats.speed.at[rows, noted, place].set(speed, mode="drop"),
            stats.last.at[rows, who].set(now, mode="drop"),
        )

    return PeerScores(init, score, select, observe)


def _rank(values: Float[Array, "n n"]) -> Int[Array, "n n"]:
    """Places in the descending order of each row, from 0."""
    return jnp.argsort(jnp.argsort(-values, axis=1), axis=1)
