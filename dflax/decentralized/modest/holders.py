"""Who holds the newest model of a federation without a server, and who takes over when they are gone."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, UInt32

from dflax import validation
from dflax.algorithm import Params
from dflax.decentralized.modest.hash_sampling import hashed_keys, probe_in_order


class Holders(NamedTuple):
    """The newest model and the aggregators that hold it.

    Attributes:
      models: one model per aggregator, leaves `[a, ...]`.
      holders: `[a]` int32, their ids; n for a place that nobody took.
      sample: `[s]` int32, the participants of the last round, who can put their models forward again.
      seed: `[2]`, of the hash.
      arrivals: `[n]` int32, round in which each node joins; 0 from the start.
      departures: `[n]` int32, round in which it leaves with notice.
      ranks: `[T, n]` places in the order of round number t, or None for the hash.
      time: `[]` simulated seconds.
    """

    models: Params
    holders: Int[Array, " a"]
    sample: Int[Array, " s"]
    seed: UInt32[Array, "2"]
    arrivals: Int[Array, " n"]
    departures: Int[Array, " n"]
    ranks: Int[Array, "T n"] | None
    time: Float[Array, ""]

    @property
    def params(self) -> Params:
        """The first aggregator's model."""
        return jax.tree.map(lambda leaf: leaf[0], self.models)


def require_ranks(ranks: Int[Array, "T n"], nodes: int) -> None:
    """Refuse what is no table of at least one order of all nodes.

    Raises:
      TypeError: no array of integers.
      ValueError: another shape.
    """
    fix = "Make them with dflax.decentralized.md5_ranks(nodes, rounds)."
    validation.instance("ranks", ranks, (jax.Array, np.ndarray), fix)
    if not jnp.issubdtype(ranks.dtype, jnp.integer):
        raise TypeError(f"ranks must hold integers, got {ranks.dtype}. {fix}")
    if ranks.ndim != 2 or ranks.shape[1] != nodes or not len(ranks):
        raise ValueError(
            f"ranks must have shape [T, {nodes}] with T >= 1, got {ranks.shape}. {fix}"
        )


def order_of(
    seed: UInt32[Array, "2"], ranks: Int[Array, "T n"] | None, nodes: int, round: Int[Array, ""]
) -> Int[Array, " n"]:
    """Ids in the order of a round: by a table of ranks, or by the hash."""
    keys = hashed_keys(seed, round, nodes) if ranks is None else ranks[round % ranks.shape[0]]
    return jnp.argsort(keys)


def who_holds(
    server: Holders, order: Int[Array, " n"], online: Bool[Array, " n"]
) -> tuple[Int[Array, " a"], Bool[Array, " a"], Bool[Array, ""]]:
    """The holders, which of them are on line, and whether somebody took over because none was.

    It is the first of the last round's participants on line who does, with the model that was put
    forward: a sender without acknowledgement looks for the next aggregator.

    Args:
      server: as the last round left it.
      order: ids in the order of the round.
      online: `[n]`.
    """
    n = online.shape[0]
    last = jnp.zeros(n, bool).at[server.sample].set(True, mode="drop")
    heir = probe_in_order(order, last, online, 1)
    taken = ~at(online, server.holders).any() & heir.answered[0]
    holders = jnp.where(taken, server.holders.at[0].set(heir.chosen[0]), server.holders)
    return holders, at(online, holders), taken


def at(mask: Bool[Array, " n"], ids: Int[Array, " k"]) -> Bool[Array, " k"]:
    """The mask at ids, false for n."""
    return mask.at[ids].get(mode="fill", fill_value=False)
