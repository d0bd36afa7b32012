"""Connections of n peers: dialled, punched through NATs, or relayed."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Key

from dflax import validation
from dflax.data.dataset import AnyArray
from dflax.p2p.network.nat import TYPES, Nat, textbook_nats

NONE, RELAYED, DIRECT = 0, 1, 2


class Network(NamedTuple):
    """Who is connected with whom; all is symmetric, and nobody with itself.

    Attributes:
      state: `[n, n]` int32: 0 none, 1 relayed, 2 direct.
      attempts: `[n, n]` int32, tries of hole punching that were made.
      relay: `[n, n]` int32, the relay of a relayed connection; -1 of others.
      delay: `[n, n]` seconds, round trip over the connection; infinite without one.
    """

    state: Int[Array, "n n"]
    attempts: Int[Array, "n n"]
    relay: Int[Array, "n n"]
    delay: Float[Array, "n n"]

    @property
    def link(self) -> Bool[Array, "n n"]:
        """`[n, n]` whether there is a connection of any kind."""
        return self.state > NONE

    @property
    def direct(self) -> Bool[Array, "n n"]:
        """`[n, n]` whether there is a direct one, over which alone Lattica's calls go."""
        return self.state == DIRECT


def connected(
    key: Key[Array, ""],
    nat: Int[Array, " n"],
    rtt: Float[Array, "n n"],
    to_relay: Float[Array, "n R"] | None = None,
    *,
    possible: Float[AnyArray, "5 5"] | None = None,
    success: float | Float[Array, ""] = 0.976,
    attempts: int = 3,
    reversal: bool = True,
) -> Network:
    """All pairs of peers try to connect, in the manner of libp2p's DCUtR.

    A peer that is not public reserves a slot on its nearest relay. A pair i < j goes on in this order:
    1. `reversal`: one side is public, so the other dials it, and they are direct;
    2. over the relayed stream they agree when to dial at once, `attempts` times at most. A try works
       with probability p where their NATs can be joined at all:
       P(direct) = possible[a_i, a_j] (1 - (1 - p)^attempts);
    3. else they stay relayed, over the nearer of their two relays:
       delay = min over these of rtt(i, relay) + rtt(relay, j); or unconnected, without relays.

    Args:
      key: of all draws.
      nat: `[n]` values of `Nat`.
      rtt: `[n, n]` seconds, round trip between peers; symmetric.
      to_relay: `[n, R]` seconds, round trip to every relay; None for no relays.
      possible: `[5, 5]` probabilities that NATs of two types can be joined; default `textbook_nats()`.
      success: p in [0, 1], of the timing in a try; traceable.
      attempts: tries at most, >= 0; 0 for no hole punching.
      reversal: whether public peers are dialled without punching.

    Returns:
      The `Network`. Its `link`, or `direct`, is the graph of a decentralized method.

    Raises:
      TypeError, ValueError: naming the argument.

    References:
      Yang et al., Lattica, arXiv 2510.00183; measurements of DCUtR: arXiv 2510.27500.
    """
    validation.typed_key("key", key)
    nat = jnp.asarray(
        validation.array("nat", nat, kind="integer", shape=("n",), low=0, high=TYPES - 1)
    )
    peers = nat.shape[0]
    rtt = _times("rtt", rtt, (peers, peers))
    away = None if to_relay is None else _times("to_relay", to_relay, (peers, "R"))
    chances = jnp.asarray(_chances(possible))
    validation.probability("success", success)
    validation.integer("attempts", attempts, low=0)
    validation.flag("reversal", reversal)
    joining, timing = jax.random.split(key)
    joinable = _symmetric(jax.random.uniform(joining, (peers, peers))) < chances[nat[:, None], nat]
    luck = _symmetric(jax.random.uniform(timing, (peers, peers)))
    failed = (1 - jnp.asarray(success, jnp.float32)) ** jnp.arange(attempts + 1)
    # The first try of which the draw is below 1 - (1 - p)^tries.
    tries = 1 + jnp.sum(luck[:, :, None] >= 1 - failed[1:], axis=2)
    punched = joinable & (tries <= attempts)
    open_ = nat == Nat.PUBLIC
    dialled = (open_[:, None] | open_) & reversal
    others = ~jnp.eye(peers, dtype=bool)
    direct = (dialled | punched) & others
    used = jnp.where(
        others & ~dialled, jnp.where(joinable, jnp.minimum(tries, attempts), attempts), 0
    )
    through, around = _around(away, others)
    relayed = ~direct & (through >= 0)
    state = jnp.where(direct, DIRECT, jnp.where(relayed, RELAYED, NONE))
    delay = jnp.where(direct, rtt, jnp.where(relayed, around, jnp.inf))
    return Network(
        state=state.astype(jnp.int32),
        attempts=used.astype(jnp.int32),
        relay=jnp.where(relayed, through, -1),
        delay=jnp.where(others, delay, 0.0),
    )


def _symmetric(drawn: Float[Array, "n n"]) -> Float[Array, "n n"]:
    upper = jnp.triu(drawn, 1)
    return upper + upper.T


def _around(
    away: Float[Array, "n R"] | None, others: Bool[Array, "n n"]
) -> tuple[Int[Array, "n n"], Float[Array, "n n"]]:
    """The relay of every pair, -1 for none, and the round trip over it."""
    if away is None:
        return jnp.full(others.shape, -1, jnp.int32), jnp.full(others.shape, jnp.inf)
    nearest = jnp.argmin(away, axis=1).astype(jnp.int32)
    # over[i, j]: i dials j's circuit, at j's relay.
    over = away[:, nearest] + jnp.min(away, axis=1)
    theirs = (over < over.T) | ((over == over.T) & (nearest < nearest[:, None]))
    relay = jnp.where(theirs, nearest, nearest[:, None])
    return jnp.where(others, relay, -1), jnp.minimum(over, over.T)


def _times(name: str, value: Array, shape: tuple[int | str, ...]) -> Float[Array, "..."]:
    found = validation.array(
        name, value, kind="real", shape=shape, low=0.0, fix="Round trips are in seconds."
    )
    if name == "rtt" and not validation.is_traced(found) and not np.allclose(found, found.T):
        raise ValueError(
            "rtt must be symmetric, got one that is not. Average it with its transpose."
        )
    return jnp.asarray(found, jnp.float32)


def _chances(possible: Float[AnyArray, "5 5"] | None) -> np.ndarray:
    if possible is None:
        return textbook_nats()
    found = validation.array(
        "possible", possible, kind="real", shape=(TYPES, TYPES), low=0.0, high=1.0
    )
    if not validation.is_traced(found) and not np.allclose(found, found.T):
        raise ValueError(
            "possible must be symmetric, got one that is not. It does not matter who dials whom."
        )
    return found


def metropolis_of(link: Bool[AnyArray, "n n"]) -> Float[Array, "n n"]:
    """Metropolis weights of links: w_ij = 1 / (1 + max(deg_i, deg_j)), rows and columns of sum 1.

    Traceable, so that a program may take the links of every round; for links that stay,
    `topology_of` has a `Graph`.

    Args:
      link: `[n, n]` bools, symmetric; the diagonal does not matter.

    Returns:
      `[n, n]` float32.

    Raises:
      TypeError, ValueError: naming the argument.
    """
    link = jnp.asarray(_links(link))
    edges = link & ~jnp.eye(link.shape[0], dtype=bool)
    degree = jnp.sum(edges, axis=1)
    weights = jnp.where(edges, 1 / (1.0 + jnp.maximum(degree[:, None], degree)), 0.0)
    return weights + jnp.diag(1 - jnp.sum(weights, axis=1))


def _links(link: Bool[AnyArray, "n n"]) -> np.ndarray:
    found = validation.array("link", link, kind="boolean", shape=("n", "n"))
    if found.shape[0] != found.shape[1]:
        raise ValueError(f"link must be square, got shape {found.shape}.")
    if not validation.is_traced(found) and not (found == found.T).all():
        raise ValueError("link must be symmetric, got one that is not. Pass link | link.T.")
    return found
