"""Types of NATs, and which pairs of them hole punching can join."""

import enum

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key

from dflax import validation
from dflax.data.dataset import AnyArray

TYPES = 5


class Nat(enum.IntEnum):
    """What stands between a peer and the Internet, from open to closed.

    Attributes:
      PUBLIC: nothing; anybody may dial the peer.
      FULL_CONE: one mapping for all; who knows it may send.
      ADDRESS_RESTRICTED: one mapping; only addresses that were sent to may answer.
      PORT_RESTRICTED: one mapping; only address and port that were sent to may answer.
      SYMMETRIC: another mapping for every destination.
    """

    PUBLIC = 0
    FULL_CONE = 1
    ADDRESS_RESTRICTED = 2
    PORT_RESTRICTED = 3
    SYMMETRIC = 4


def textbook_nats() -> Float[np.ndarray, "5 5"]:
    """`[5, 5]`: 1 where two peers of these types can be joined directly, 0 where never.

    Only a symmetric NAT against a symmetric or a port-restricted one is hopeless. Carrier-grade NATs
    and firewalls lower the entries: write probabilities instead of ones.
    """
    possible = np.ones((TYPES, TYPES), np.float32)
    possible[Nat.SYMMETRIC, Nat.SYMMETRIC] = 0
    possible[Nat.SYMMETRIC, Nat.PORT_RESTRICTED] = 0
    possible[Nat.PORT_RESTRICTED, Nat.SYMMETRIC] = 0
    return possible


def drawn_nats(key: Key[Array, ""], peers: int, mix: Float[AnyArray, " 5"]) -> Int[Array, " n"]:
    """Types of n peers, drawn independently of each other.

    Args:
      key: of the draw.
      peers: n >= 1.
      mix: `[5]` shares of the types in the order of `Nat`, >= 0, of sum 1.

    Returns:
      `[n]` int32, values of `Nat`.

    Raises:
      TypeError, ValueError: naming the argument.
    """
    validation.typed_key("key", key)
    validation.integer("peers", peers, low=1)
    shares = validation.array("mix", mix, kind="real", shape=(TYPES,), low=0.0, high=1.0)
    if not validation.is_traced(shares) and abs(float(shares.sum()) - 1) > 1e-4:
        raise ValueError(
            f"mix must have the sum 1, got {float(shares.sum()):g}. Divide by the sum."
        )
    return jax.random.choice(key, TYPES, (peers,), p=jnp.asarray(shares, jnp.float32)).astype(
        jnp.int32
    )


def nat_by_stun(local: Int[Array, "... 2"], mapped: Int[Array, "... 2 2"]) -> Int[Array, "..."]:
    """What a peer learns of its own type from two STUN servers that it asks from one socket.

    Two mappings that differ: symmetric. Both equal to the local one: public. Else a cone, which more
    servers would tell apart; port-restricted is said, as the closest of them.

    Args:
      local: `[..., 2]` address and port of the socket, as integers.
      mapped: `[..., 2, 2]` address and port that each server saw.

    Returns:
      `[...]` int32, values of `Nat`.

    Raises:
      TypeError, ValueError: naming the argument.
    """
    own = jnp.asarray(validation.array("local", local, kind="integer", fix="[..., 2] integers."))
    seen = jnp.asarray(
        validation.array("mapped", mapped, kind="integer", fix="[..., 2, 2] integers.")
    )
    if own.ndim < 1 or own.shape[-1] != 2:
        raise ValueError(f"local must be integers of shape [..., 2], got shape {own.shape}.")
    if seen.shape != (*own.shape[:-1], 2, 2):
        raise ValueError(
            f"mapped must be integers of shape {(*own.shape[:-1], 2, 2)}, got shape {seen.shape}. "
            "There is an address and a port of each of two servers."
        )
    differ = jnp.any(seen[..., 0, :] != seen[..., 1, :], axis=-1)
    open_ = jnp.all(seen == own[..., None, :], axis=(-1, -2))
    closed = jnp.where(differ, Nat.SYMMETRIC, Nat.PORT_RESTRICTED)
    return jnp.where(open_, Nat.PUBLIC, closed).astype(jnp.int32)
