"""Rounds in which peers fetch a content's blocks from each other."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from dflax import validation
from dflax.algorithm import Algorithm, FederatedState, Metrics
from dflax.p2p.blocks.peer_score import PeerScores, PeerStats
from dflax.population import Round


class Peers(NamedTuple):
    """What each of n peers has; leaves `[n, ...]`.

    Attributes:
      have: `[n, B]` bools.
      dropped: `[n]` int32, blocks that came and whose hash did not fit.
    """

    have: Bool[Array, "n B"]
    dropped: Int[Array, " n"]


class Ways(NamedTuple):
    """Who can fetch from whom, and what is remembered of them.

    Attributes:
      link: `[n, n]` bools.
      corrupting: `[n]` probability that a block that a peer uploads is corrupted.
      stats: of the rating, None without one.
    """

    link: Bool[Array, "n n"]
    corrupting: Float[Array, " n"]
    stats: PeerStats | None


class Requests(NamedTuple):
    """What all peers ask for in a round.

    Attributes:
      peer: `[n]` int32, of whom.
      block: `[n]` int32, for which.
      asked: `[n]` whether for any.
      served: `[n]` whether it is sent.
    """

    peer: Int[Array, " n"]
    block: Int[Array, " n"]
    asked: Bool[Array, " n"]
    served: Bool[Array, " n"]


def swarm(
    *, upload: int = 1, requests: str = "coordinated", scores: PeerScores | None = None
) -> Algorithm:
    """Bitswap in rounds: every peer asks for the rarest block it lacks, every peer uploads u blocks.

    What counts is who had which block at the round's start. Equally rare blocks are drawn from.
    - "coordinated": peers ask in a random order, each for the rarest block that some peer with a free
      slot has, and a random one of such peers;
    - "blind": all ask at once, for the rarest block that anybody has, a random one of those who have
      it; who is asked for more than u serves u of them, drawn at random, and the others get nothing.

    With B blocks, one source, u = 1 and everybody linked no way takes fewer than B + ceil(log2 n) - 1
    rounds; over a star (`link`) it takes B (n - 1). A block whose hash does not fit is dropped and
    counted, and has used its slot.

    Args:
      upload: u >= 1.
      requests: "coordinated" or "blind".
      scores: how peers choose whom they ask, from `peer_scores`; None: of all that have the block.

    Returns:
      An `Algorithm` on rounds of a `dflax.Population` of n, of which it takes the key and the number,
      one second a round. `init(key, have, link=None, corrupting=None)` gets bools `[n, B]`; who is
      linked, `[n, n]`; and probabilities `[n]` that an uploaded block is corrupted. The state is a
      `FederatedState` with `Peers` under `clients`. Metrics: `complete` (peers that have everything),
      `share` (of all blocks that are there), `uploads`, `unserved` (requests that got nothing),
      `dropped`.

    Raises:
      TypeError, ValueError: naming the argument; from `init` also `have`, `link`, `corrupting`.
    """
    validation.integer("upload", upload, low=1)
    validation.choice("requests", requests, ("coordinated", "blind"))
    if scores is not None:
        validation.instance("scores", scores, PeerScores, "dflax.p2p.peer_scores makes them.")

    def init(
        key: Key[Array, ""],
        have: Bool[Array, "n B"],
        link: Bool[Array, "n n"] | None = None,
        corrupting: Float[Array, " n"] | None = None,
    ) -> FederatedState:
        has = jnp.asarray(validation.array("have", have, kind="boolean", shape=("n", "B")))
        peers = has.shape[0]
        linked = ~jnp.eye(peers, dtype=bool)
        if link is not None:
            linked &= jnp.asarray(
                validation.array("link", link, kind="boolean", shape=(peers, peers))
            )
        chance = jnp.zeros((peers,), jnp.float32)
        if corrupting is not None:
            given = validation.array(
                "corrupting", corrupting, kind="real", shape=(peers,), low=0.0, high=1.0
            )
            chance = jnp.asarray(given, jnp.float32)
        stats = None if scores is None else scores.init(peers)
        ways = Ways(linked, chance, stats)
        return FederatedState(
            jnp.zeros((), jnp.int32), ways, Peers(has, jnp.zeros((peers,), jnp.int32))
        )

    def step(state: FederatedState, round: Round) -> tuple[FederatedState, Metrics]:
        have, ways = state.clients.have, state.server
        asking, selecting, corrupting = jax.random.split(round.key, 3)
        link, now = ways.link, state.round.astype(jnp.float32)
        if scores is not None:
            useful = link & jnp.any(~have[:, None, :] & have, axis=2)
            link = scores.select(selecting, ways.stats, useful, now)
        ask = _coordinated if requests == "coordinated" else _blind
        made = ask(asking, have, link, upload)
        spoilt = jax.random.uniform(corrupting, made.peer.shape) < ways.corrupting[made.peer]
        kept, bad = made.served & ~spoilt, made.served & spoilt
        rows = jnp.arange(have.shape[0])
        after = have.at[rows, made.block].max(kept)
        if scores is not None:
            asked = jnp.where(made.served, made.peer, -1)
            speed = jnp.full(asked.shape, 262_144.0)
            ways = ways._replace(stats=scores.observe(ways.stats, asked, ~spoilt, speed, now))
        metrics: Metrics = {
            "complete": jnp.sum(jnp.all(after, axis=1)),
            "share": jnp.mean(after.astype(jnp.float32)),
            "uploads": jnp.sum(made.served),
            "unserved": jnp.sum(made.asked & ~made.served),
            "dropped": jnp.sum(bad),
        }
        clients = Peers(after, state.clients.dropped + bad)
        return state._replace(round=state.round + 1, server=ways, clients=clients), metrics

    return Algorithm(init, step)


def _rarest(key: Key[Array, ""], have: Bool[Array, "n B"]) -> Float[Array, "n B"]:
    """How many have each block, in whole numbers, and a random order of equals, for every peer."""
    return jnp.sum(have, axis=0) + jax.random.uniform(key, have.shape)


def _coordinated(
    key: Key[Array, ""], have: Bool[Array, "n B"], link: Bool[Array, "n n"], upload: int
) -> Requests:
    peers = have.shape[0]
    ordering, blocks, holders = jax.random.split(key, 3)
    rarity = _rarest(blocks, have)
    luck = jax.random.uniform(holders, (peers, peers))
    order = jax.random.permutation(ordering, peers)

    def ask(free: Int[Array, " n"], peer: Int[Array, ""]) -> tuple[Array, tuple[Array, ...]]:
        can = link[peer] & (free > 0)
        wanted = ~have[peer] & jnp.any(have & can[:, None], axis=0)
        some = jnp.any(wanted)
        block = jnp.argmin(jnp.where(wanted, rarity[peer], jnp.inf))
        holder = jnp.argmax(jnp.where(can & have[:, block], luck[peer], -1.0))
        return free.at[holder].add(-some.astype(jnp.int32)), (holder, block, some)

    _, found = jax.lax.scan(ask, jnp.full((peers,), upload, jnp.int32), order)
    holder, block, some = (jnp.zeros_like(each).at[order].set(each) for each in found)
    return Requests(holder, block, some, some)


def _blind(
    key: Key[Array, ""], have: Bool[Array, "n B"], link: Bool[Array, "n n"], upload: int
) -> Requests:
    peers = have.shape[0]
    blocks, holders, serving = jax.random.split(key, 3)
    held = (link.astype(jnp.float32) @ have.astype(jnp.float32)) > 0
    wanted = ~have & held
    some = jnp.any(wanted, axis=1)
    block = jnp.argmin(jnp.where(wanted, _rarest(blocks, have), jnp.inf), axis=1)
    luck = jax.random.uniform(holders, (peers, peers))
    holder = jnp.argmax(jnp.where(link & have[:, block].T, luck, -1.0), axis=1)
    drawn = jax.random.uniform(serving, (peers,))
    # How many of those who ask the same peer come first.
    before = (holder == holder[:, None]) & some & (drawn > drawn[:, None])
    return Requests(holder, block, some, some & (jnp.sum(before, axis=1) < upload))
