"""Web3Recommend: every peer ranks items for itself from what others gossip, and trusts accordingly."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from dflax import validation
from dflax.algorithm import Algorithm, Metrics
from dflax.p2p.recommendation.decay import decayed, visits, without_root
from dflax.p2p.recommendation.view import Statements, View, heard, neighbours
from dflax.p2p.recommendation.walks import Walks, salsa_walks, trust_walks

Real = float | Float[Array, ""]


class Heard(NamedTuple):
    """What a round brings.

    Attributes:
      likes: `Statements` of users about items.
      trusts: `Statements` of users about users.
      played: `[]` int32, the item that the root played meanwhile; -1 for none.
    """

    likes: Statements
    trusts: Statements
    played: Int[Array, ""]


class RecommenderState(NamedTuple):
    """What one peer carries from round to round.

    Attributes:
      root: `[]` int32, the peer's own number.
      known: its view.
      plays: `[M]` how often it has played each item.
      led: `[M, U]` bool, who led it to an item.
      walks: the walks over items of the last ranking.
      trusted: `[U]` the trust in users.
      ranking: `[M]` the scores of the items.
      clock: `[]` int32, the time of its own next statement.
    """

    root: Int[Array, ""]
    known: View
    plays: Float[Array, " M"]
    led: Bool[Array, "M U"]
    walks: Walks
    trusted: Float[Array, " U"]
    ranking: Float[Array, " M"]
    clock: Int[Array, ""]


def web3recommend(
    *,
    items: int = 16,
    friends: int = 8,
    walks: int = 1000,
    length: int = 100,
    stop: Real = 0.1,
    beta: Real = 0.8,
    threshold: Real = 0.99,
    leaders: int = 5,
    few: int = 5,
    bootstrap: bool = True,
) -> Algorithm:
    """Recommendations by trusted walks, for one peer; `jax.vmap` makes a network of them.

    A round: the peer hears statements, of each edge the newest counts. If it played an item, its liking
    of all items moves, A(r, m) = plays(m) / sum of plays, and by as much its trust in those who led it
    to an item: of a new item the `leaders` users most often seen before it in the walks, at least 0.
    Then it scores users by walks over trust, items by SALSA walks over trusted users, and takes off
    what was reached through one vertex alone.

    Args:
      items: a >= 1, of a user's items that walks consider; the heaviest. At most M.
      friends: b >= 1, of a user's friends likewise. At most U.
      walks: w >= 1.
      length: L >= 1, half-steps.
      stop: alpha in (0, 1]; traceable.
      beta: connectivity decay in [0, 1]; traceable.
      threshold: tau in [0, 1); traceable.
      leaders: users to whom an item is credited, >= 1.
      few: a root with fewer items than this starts walks at friends, with probability
        (few - items) / few; >= 1.
      bootstrap: whether it does.

    Returns:
      An `Algorithm`. `init(key, (root, View, plays))` gets the peer's number, what it knows, and `[M]`
      how often it has played each item. A round is `(Heard, key)`, as `dflax.Events` hands it out.
      Metrics: `reached` (items that walks reached), `best` (the item to recommend, which the root does
      not like yet; -1 for none), `length` (mean vertices of a walk).

    Raises:
      TypeError, ValueError: naming the argument.

    References:
      Madhwal and Pouwelse, Web3Recommend, arXiv 2307.01411.
    """
    for name, value in (("items", items), ("friends", friends), ("walks", walks)):
        validation.integer(name, value, low=1)
    for name, value in (("length", length), ("leaders", leaders), ("few", few)):
        validation.integer(name, value, low=1)
    validation.probability("stop", stop, low_open=True)
    validation.probability("beta", beta)
    validation.probability("threshold", threshold, high_open=True)
    validation.flag("bootstrap", bootstrap)

    def rank(state: RecommenderState, key: Key[Array, ""]) -> RecommenderState:
        over_trust, over_items = jax.random.split(key)
        users, count = state.known.affinity.shape
        graph = neighbours(state.known, items=min(items, count), friends=min(friends, users))
        trusting = trust_walks(
            graph.friends,
            graph.trusting,
            state.root,
            over_trust,
            walks=walks,
            length=length,
            stop=stop,
        )
        about = without_root(visits(trusting, state.root, vertices=users), state.root)
        trusted = decayed(about, beta=beta, threshold=threshold)
        own = jnp.sum(state.known.affinity[state.root] > 0)
        cold = jnp.maximum(few - own, 0) / few if bootstrap else 0.0
        walked = salsa_walks(
            graph,
            state.root,
            over_items,
            walks=walks,
            length=length,
            stop=stop,
            starts=trusted,
            cold=cold,
        )
        found = visits(walked, state.root, vertices=users + count, first=users)
        ranking = decayed(found, beta=beta, threshold=threshold)
        return state._replace(walks=walked, trusted=trusted, ranking=ranking)

    def init(key: Key[Array, ""], params: tuple) -> RecommenderState:
        root, known, plays = params
        validation.instance("params[1]", known, View, "Make it with dflax.p2p.view.")
        users, count = known.affinity.shape
        validation.array("params[0]", root, kind="integer", shape=(), low=0, high=users - 1)
        validation.array("params[2]", plays, kind="real", shape=(count,), low=0.0)
        state = RecommenderState(
            root=jnp.asarray(root, jnp.int32),
            known=known,
            plays=jnp.asarray(plays, jnp.float32),
            led=jnp.zeros((count, users), bool),
            walks=Walks(jnp.full((walks, length + 1), -1, jnp.int32)),
            trusted=jnp.zeros((users,)),
            ranking=jnp.zeros((count,)),
            clock=jnp.maximum(jnp.max(known.affinity_time), jnp.max(known.trust_time)) + 1,
        )
        return rank(state, key)

    def step(state: RecommenderState, round: tuple) -> tuple[RecommenderState, Metrics]:
        news, key = round
        state = state._replace(known=heard(state.known, news.likes, news.trusts))
        state = rank(_listened(state, news.played, leaders), key)
        new = jnp.where(state.known.affinity[state.root] > 0, -1.0, state.ranking)
        best = jnp.where(jnp.max(new) > 0, jnp.argmax(new), -1)
        return state, {
            "reached": jnp.sum(state.ranking > 0),
            "best": best,
            "length": jnp.mean(jnp.sum(state.walks.visited >= 0, axis=1)),
        }

    return Algorithm(init, step)


def recommended(state: RecommenderState, most: int) -> Int[Array, " most"]:
    """`[most]` items to recommend, best first, none that the root likes; -1 where there are no more.

    Args:
      state: of a `web3recommend`.
      most: how many, >= 1.

    Raises:
      TypeError, ValueError: naming the argument.
    """
    validation.instance("state", state, RecommenderState)
    validation.integer("most", most, low=1, high=state.ranking.shape[0])
    new = jnp.where(state.known.affinity[state.root] > 0, 0.0, state.ranking)
    scores, places = jax.lax.top_k(new, most)
    return jnp.where(scores > 0, places, -1)


def _listened(state: RecommenderState, played: Int[Array, ""], leaders: int) -> RecommenderState:
    """The root's own edges after it played an item."""
    root, users = state.root, state.known.trust.shape[0]
    plays = state.plays.at[jnp.where(played >= 0, played, len(state.plays))].add(1.0, mode="drop")
    some = (played >= 0) & (jnp.sum(plays) > 0)
    old = state.known.affinity[root]
    liking = jnp.where(some, plays / jnp.maximum(jnp.sum(plays), 1.0), old)
    path = state.walks.visited
    # Users seen before the item in walks that reach it.
    at = jnp.argmax(path == users + played, axis=1)
    reaches = jnp.any(path == users + played, axis=1)
    before = jnp.arange(path.shape[1])[None, :] < at[:, None]
    counted = reaches[:, None] & before & (path >= 0) & (path < users) & (path != root)
    seen = jnp.zeros((users,)).at[jnp.where(counted, path, users)].add(1.0, mode="drop")
    most, who = jax.lax.top_k(seen, min(leaders, users))
    led_by = jnp.zeros((users,), bool).at[who].set(most > 0)
    new = some & (old[jnp.maximum(played, 0)] <= 0)
    led = state.led.at[jnp.maximum(played, 0)].set(
        jnp.where(new, led_by, state.led[jnp.maximum(played, 0)])
    )
    moved = jnp.where(some, (liking - old) @ led.astype(liking.dtype), 0.0)
    trust = jnp.maximum(state.known.trust[root] + moved, 0.0).at[root].set(0.0)
    time = state.clock
    known = state.known._replace(
        affinity=state.known.affinity.at[root].set(liking),
        affinity_time=state.known.affinity_time.at[root].set(
            jnp.where(liking != old, time, state.known.affinity_time[root])
        ),
        trust=state.known.trust.at[root].set(trust),
        trust_time=state.known.trust_time.at[root].set(
            jnp.where(trust != state.known.trust[root], time, state.known.trust_time[root])
        ),
    )
    return state._replace(known=known, plays=plays, led=led, clock=time + some)
