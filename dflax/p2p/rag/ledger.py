"""A ledger of scores: what is written when, and what it costs."""

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from dflax import validation

Real = float | Float[Array, ""]


class Ledger(NamedTuple):
    """Scores of S sources as a contract keeps them, from `ledger`.

    Attributes:
      reliability: `[S]` int32.
      usefulness: `[S]` int32.
      stamp: `[S]` int32, block of the last write; -1 for none.
      nonce: `[S]` int32, how often each was written: what a signature names, so that it serves once.
      block: `[]` int32, transactions so far.
      gas: `[]` spent so far.
      refused: `[]` int32, transactions that were not taken.
    """

    reliability: Int[Array, " S"]
    usefulness: Int[Array, " S"]
    stamp: Int[Array, " S"]
    nonce: Int[Array, " S"]
    block: Int[Array, ""]
    gas: Float[Array, ""]
    refused: Int[Array, ""]


class Gas(NamedTuple):
    """What a transaction of n updates costs: fixed + each x n. From `gas`."""

    fixed: Real
    each: Real


def gas(fixed: Real = 24_600.0, each: Real = 24_740.0) -> Gas:
    """Costs of a transaction, as measured with a Vyper contract.

    Args:
      fixed: of a transaction, >= 0; traceable.
      each: of each source in it, >= 0; traceable.

    Raises:
      TypeError, ValueError: naming the argument.
    """
    validation.real("fixed", fixed, low=0.0, scalar=True)
    validation.real("each", each, low=0.0, scalar=True)
    return Gas(fixed, each)


def ledger(sources: int, *, reliability: int = 10_000, usefulness: int = 10_000) -> Ledger:
    """A ledger in which all sources begin alike.

    Args:
      sources: S >= 1.
      reliability: of each, an integer of 32 bits.
      usefulness: of each, an integer of 32 bits.

    Raises:
      TypeError, ValueError: naming the argument.
    """
    validation.integer("sources", sources, low=1)
    low = -validation.LARGEST_COUNT
    validation.integer("reliability", reliability, low=low, high=validation.LARGEST_COUNT)
    validation.integer("usefulness", usefulness, low=low, high=validation.LARGEST_COUNT)
    return Ledger(
        jnp.full((sources,), reliability, jnp.int32),
        jnp.full((sources,), usefulness, jnp.int32),
        jnp.full((sources,), -1, jnp.int32),
        jnp.zeros((sources,), jnp.int32),
        jnp.zeros((), jnp.int32),
        jnp.zeros(()),
        jnp.zeros((), jnp.int32),
    )


def written(
    kept: Ledger,
    reliability: Int[Array, " S"],
    usefulness: Int[Array, " S"],
    who: Bool[Array, " S"],
    price: Gas,
    signed: Int[Array, " S"] | None = None,
) -> Ledger:
    """The ledger after one transaction that adds to the scores of `who`; nobody, no transaction.

    A transaction with a signature that names another nonce, or with none, is refused whole and counted.

    Args:
      kept: see `Ledger`.
      reliability: `[S]` int32, to be added.
      usefulness: `[S]` int32, to be added.
      who: `[S]` bool, whose scores are in it.
      price: see `gas`.
      signed: `[S]` int32, the nonce that each source signed; -1 for no signature. Default: those of now.

    Raises:
      TypeError: naming the argument.
    """
    validation.instance("kept", kept, Ledger, "Make it with dflax.p2p.ledger.")
    validation.instance("price", price, Gas, "Make it with dflax.p2p.gas.")
    sources = kept.nonce.shape
    validation.array("reliability", reliability, kind="integer", shape=sources)
    validation.array("usefulness", usefulness, kind="integer", shape=sources)
    validation.array("who", who, kind="boolean", shape=sources)
    if signed is not None:
        validation.array("signed", signed, kind="integer", shape=sources, low=-1)
    right = jnp.bool_(True) if signed is None else jnp.all(~who | (signed == kept.nonce))
    asked, who = jnp.any(who), who & right
    some = jnp.any(who)
    block = kept.block + some
    return Ledger(
        kept.reliability + jnp.where(who, reliability, 0),
        kept.usefulness + jnp.where(who, usefulness, 0),
        jnp.where(who, block, kept.stamp),
        kept.nonce + who,
        block,
        kept.gas + jnp.where(some, price.fixed + price.each * jnp.sum(who), 0.0),
        kept.refused + (asked & ~right),
    )
