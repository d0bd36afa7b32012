"""Attackers of G-Rank: they join, and then spam clicks."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from dflax import validation
from dflax.p2p.chosen import anyone
from dflax.p2p.g_rank.click_log import clicked, sampled, told
from dflax.p2p.g_rank.g_rank import GRankState
from dflax.p2p.g_rank.ranking import Scorer, Search, searched


def joined(
    state: GRankState,
    key: Key[Array, ""],
    *,
    attackers: int,
    share: float | Float[Array, ""] = 0.1,
) -> GRankState:
    """The network after the last A peers have come, each with a sample of one benign peer's log.

    They answer from now on, and search from their attack on.

    Args:
      state: of a `g_rank` with so many attackers.
      key: typed.
      attackers: A >= 1.
      share: rho in (0, 1]; traceable.

    Raises:
      TypeError, ValueError: naming the argument.
    """
    benign = _benign(state, attackers)
    validation.typed_key("key", key)
    validation.probability("share", share, low_open=True)

    def meets(log, peer):
        choosing, sampling = jax.random.split(jax.random.fold_in(key, peer))
        donor = jax.random.randint(choosing, (), 0, benign)
        return told(log, donor, peer, sampled(log, donor, share, sampling)), None

    peers = jnp.arange(benign, benign + attackers)
    log, _ = jax.lax.scan(meets, state.log, peers)
    return state._replace(log=log, alive=state.alive.at[peers].set(True))


def spammed(
    state: GRankState,
    scorer: Scorer,
    key: Key[Array, ""],
    *,
    attackers: int,
    queries: int,
    attack: str,
) -> GRankState:
    """The network after each attacker has made its spam, met a benign peer, and begun to search.

    Args:
      state: of a `g_rank` whose attackers have `joined`.
      scorer: by which a "targeted" attacker finds its term's last item, once.
      key: typed.
      attackers: A >= 1.
      queries: n_spam >= 1 of each.
      attack: "targeted": one term each, always the last item of the list with that tag;
        "inflation": random terms and random items that carry them.

    Raises:
      TypeError, ValueError: naming the argument.

    References:
      Gold and Pouwelse, G-Rank, arXiv 2301.12530; its "epic" attack is "targeted" by three attackers a
      benign peer, its "push" attack "targeted" with push gossip.
    """
    benign = _benign(state, attackers)
    validation.function("scorer", scorer, "dflax.p2p.g_rank_score makes one.", takes=1)
    validation.typed_key("key", key)
    validation.integer("queries", queries, low=1)
    validation.choice("attack", attack, ("targeted", "inflation"))
    tags = state.tags

    def attacks(log, peer):
        own = jax.random.fold_in(key, peer)
        terming, ranking, clicking, meeting = jax.random.split(own, 4)
        if attack == "targeted":
            term = jax.random.randint(terming, (), 0, tags.shape[1])
            listed = searched(scorer, Search(log, peer, term, tags, ranking))
            item = listed[jnp.sum(tags[:, term]) - 1]
            terms = jnp.broadcast_to(term, (queries,))
            items = jnp.broadcast_to(item, (queries,))
        else:
            terms = jax.random.randint(terming, (queries,), 0, tags.shape[1])
            keys = jax.random.split(clicking, queries)
            items = jax.vmap(lambda term, one: anyone(tags[:, term], one))(terms, keys)

        def clicks(log, one: tuple[Int[Array, ""], Int[Array, ""]]):
            return clicked(log, peer, *one), None

        log, _ = jax.lax.scan(clicks, log, (terms, items))
        friend = jax.random.randint(meeting, (), 0, benign)
        aware = log.aware.at[peer, friend].set(True).at[friend, peer].set(True)
        return log._replace(aware=aware), None

    peers = jnp.arange(benign, benign + attackers)
    log, _ = jax.lax.scan(attacks, state.log, peers)
    return state._replace(log=log, searching=state.searching.at[peers].set(True))


def _benign(state: GRankState, attackers: int) -> int:
    validation.instance("state", state, GRankState, "Make it with dflax.p2p.g_rank(...).init.")
    validation.integer("attackers", attackers, low=1, high=state.alive.shape[0] - 1)
    return state.alive.shape[0] - attackers
