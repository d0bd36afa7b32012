"""Whom peers hear while they come and go: what each knows of who was active, by MoDeST's clock."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Key

from dflax import topology, validation
from dflax.algorithm import Metrics
from dflax.data.dataset import AnyArray


def active_neighbours(
    present: Bool[AnyArray, "T n"],
    reached: Bool[AnyArray, "n n"],
    score: Float[AnyArray, "n n"],
    *,
    most: int,
    inactivity: int,
) -> tuple[topology.Schedule, Metrics]:
    """Neighbours of every round, chosen among those whom a peer believes to be there.

    Peer i keeps in `seen[i, j]` the last round in which it knows j to have been active. Its clock is the
    newest of them, so a peer that was away goes on with what it knew. In round t a peer that is there
    asks the best of its candidates

        {j : reached[i, j], seen[i, j] >= clock_i - inactivity},   clock_i = max_j seen[i, j]

    Those of them that are there send their models with what they have seen; both ends then know each
    other to be active in round t, and the asking one takes the later of what both knew. Nobody says
    that it leaves: who is away is asked until it has not been seen for `inactivity` rounds.

    Args:
      present: `[T, n]`, who is there; round t is row `t mod T`.
      reached: `[n, n]`, whom each peer can hear; the diagonal does not matter.
      score: `[n, n]`, finite: of those that it may ask a peer asks the ones with the largest, such as
        trust. Equal ones are taken by their numbers.
      most: k in [1, n), how many each asks.
      inactivity: >= 1, rounds after which one that was not seen is no candidate.

    Returns:
      A `Schedule` of equal weights `1 / (1 + asked)` of a peer's own model and of whom it asks, for
      `gossip.by_rule` and `gossip.mixer`, which pass over who is away; and metrics of each round, `[T]`:
      `asked`, the mean number of those that present peers ask, `away`, the share of them that are not
      there, and `unknown`, the share of present ones within reach that are no candidates.

    Raises:
      TypeError, ValueError: naming the argument.

    References:
      De Vos et al., Decentralized Learning Made Practical with Client Sampling, arXiv 2302.13837.
    """
    there = validation.array("present", present, kind="boolean", shape=("T", "n"))
    nodes = there.shape[1]
    link = validation.array("reached", reached, kind="boolean", shape=(nodes, nodes))
    liked = validation.array("score", score, kind="real", shape=(nodes, nodes))
    validation.integer("most", most, low=1, high=nodes - 1)
    validation.integer("inactivity", inactivity, low=1)
    link = np.array(link) & ~np.eye(nodes, dtype=bool)
    asked, metrics = _played(
        jnp.asarray(there), jnp.asarray(link), jnp.asarray(liked, jnp.float32), most, inactivity
    )
    neighbours = np.asarray(asked)
    own = np.arange(nodes, dtype=np.int32)[:, None]
    used = neighbours >= 0
    weights = used / (1.0 + used.sum(-1, keepdims=True))
    tables = (np.where(used, neighbours, own), weights.astype(np.float32))

    def draw(tables: Any, key: Key[Array, ""], index: Int[Array, ""]) -> topology.Slots:
        neighbours, weights = map(jnp.asarray, tables)
        row = index % len(neighbours)
        return topology.Slots(neighbours[row], weights[row])

    schedule = topology.Schedule(nodes, tables, draw, symmetric=False, doubly_stochastic=None)
    return schedule, metrics


@jax.jit(static_argnames=("most",))
def _played(
    present: Bool[Array, "T n"],
    link: Bool[Array, "n n"],
    score: Float[Array, "n n"],
    most: int,
    inactivity: int,
) -> tuple[Int[Array, "T n k"], Metrics]:
    """Whom each peer asks in every round, -1 for nobody."""
    nodes = link.shape[0]
    itself = jnp.eye(nodes, dtype=bool)
    rows = jnp.arange(nodes)[:, None]

    def round(seen: Int[Array, "n n"], now: Any) -> tuple[Array, Any]:
        t, there = now
        clock = jnp.where(itself, -1, seen).max(1, keepdims=True)
        candidates = link & (seen >= clock - inactivity)
        best, asked = jax.lax.top_k(jnp.where(candidates, score, -jnp.inf), most)
        asks = (best > -jnp.inf) & there[:, None]
        answered = asks & there[asked]
        met = jnp.zeros((nodes, nodes), bool).at[rows, asked].max(answered)
        active = met | met.T | (itself & there)
        known = jnp.where(active, t, seen)
        told = jnp.where(answered[..., None], known[asked], -1).max(1)
        could = there[:, None] & there & link
        metrics = {
            "asked": asks.sum() / jnp.maximum(there.sum(), 1),
            "away": (asks & ~answered).sum() / jnp.maximum(asks.sum(), 1),
            "unknown": (could & ~candidates).sum() / jnp.maximum(could.sum(), 1),
        }
        return jnp.maximum(known, told), (jnp.where(asks, asked, -1), metrics)

    # Everybody begins with who there is, as of before the first round.
    seen = jnp.zeros((nodes, nodes), jnp.int32)
    times = jnp.arange(1, len(present) + 1)
    _, told = jax.lax.scan(round, seen, (times, present))
    return told
