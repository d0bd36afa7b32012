"""What a committee agrees on."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Key

from dflax import validation
from dflax.data.dataset import AnyArray


class Consensus(NamedTuple):
    """What a committee has found.

    Attributes:
      accepted: `[]` bool, whether a quorum agrees.
      leader: `[]` int32, the member whom most agree with, the first of several.
      members: `[k]` bool, who agrees with the leader.
    """

    accepted: Bool[Array, ""]
    leader: Int[Array, ""]
    members: Bool[Array, " k"]


def committee(
    key: Key[Array, ""], weights: Float[AnyArray, " n"], size: int
) -> tuple[Int[Array, " k"], Bool[Array, " k"]]:
    """A committee drawn without replacement, each next member with probability as its weight.

    The k largest of `log w_i + Gumbel_i`, largest first: the first k' of them are a committee of k'.

    Args:
      key: of the draw.
      weights: `[n]` >= 0; who has 0 is not drawn.
      size: k in [1, n].

    Returns:
      `[k]` int32 numbers of nodes, and `[k]` whether each was drawn: False where fewer than k have
      weight.

    Raises:
      TypeError, ValueError: naming the argument.

    References:
      Kool, van Hoof and Welling, Stochastic beams and where to find them, arXiv 1903.06059.
    """
    validation.typed_key("key", key)
    given = validation.array("weights", weights, kind="real", shape=("n",), low=0.0)
    validation.integer("size", size, low=1, high=given.shape[0])
    own = jnp.asarray(given, jnp.float32)
    return heaviest(own, jax.random.gumbel(key, own.shape), size)


def heaviest(
    weights: Float[Array, " n"], gumbel: Float[Array, " n"], size: int
) -> tuple[Int[Array, " k"], Bool[Array, " k"]]:
    """`committee` with its noise given."""
    scores = jnp.where(weights > 0, jnp.log(weights) + gumbel, -jnp.inf)
    found, members = jax.lax.top_k(scores, size)
    return members.astype(jnp.int32), found > -jnp.inf


def consensus(
    agreement: Bool[AnyArray, "k k"],
    present: Bool[AnyArray, " k"],
    quorum: float | Float[Array, ""],
    *,
    weights: Float[AnyArray, " k"] | None = None,
) -> Consensus:
    """The largest set of members that agree with one of them, accepted if it is a quorum.

        i0 = argmax_i sum_j w_j A_ij   over members who are there;   accepted iff that sum >= quorum

    If faulty nodes collude and each node is faulty with probability f, a wrong answer is accepted with
    probability at most P[Bin(k, f) >= quorum], and a right one if at least quorum members are honest.

    Args:
      agreement: `[k, k]` whether two members' answers are within the tolerance.
      present: `[k]` whether a member has answered.
      quorum: > 0, how many must agree, or how much weight.
      weights: `[k]` >= 0; default 1 each.

    Raises:
      TypeError, ValueError: naming the argument.
    """
    k = np.shape(agreement)[:1] or ("k",)
    pairs = jnp.asarray(
        validation.array("agreement", agreement, kind="boolean", shape=(k[0], k[0]))
    )
    there = jnp.asarray(validation.array("present", present, kind="boolean", shape=k))
    validation.real("quorum", quorum, low=0.0, low_open=True, scalar=True)
    given = jnp.ones(k) if weights is None else weights
    own = jnp.asarray(validation.array("weights", given, kind="real", shape=k, low=0.0))
    heard = pairs & there & there[:, None]
    support = jnp.where(there, jnp.sum(jnp.where(heard, own, 0.0), axis=1), -1.0)
    leader = jnp.argmax(support).astype(jnp.int32)
    return Consensus(support[leader] >= quorum, leader, heard[leader])


def quorum_of(size: Array, share: Array) -> Float[Array, ""]:
    """How many of a committee are a share of it: `ceil(share k)`, at least 1."""
    # A share such as 2/3 has no exact float.
    return jnp.maximum(jnp.ceil(share * size - 1e-4), 1.0)
