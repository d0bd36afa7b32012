"""Range checks by a lookup argument: that values are in a table, by one rational identity."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int, UInt32

from dflax import validation
from dflax.data.dataset import AnyArray
from dflax.verified_inference.proofs.field import (
    MERSENNE,
    inverse,
    multiply,
    require_modulus,
    subtract,
    to_field,
    total,
)


def multiplicities(values: Int[AnyArray, "..."], size: int) -> UInt32[Array, " size"]:
    """How often each of 0, ..., size - 1 is among the values: the prover's message in a range lookup.

    Args:
      values: integers; others than in [0, size) are not counted, and the lookup then fails.
      size: of the table, >= 1.

    Raises:
      TypeError, ValueError: naming the argument.
    """
    validation.integer("size", size, low=1, high=MERSENNE - 1)
    given = _integers(values)
    inside = (given >= 0) & (given < size)
    place = jnp.where(inside, given, size)
    return jnp.zeros(size, jnp.uint32).at[place].add(1, mode="drop")


def verify_range(
    values: Int[AnyArray, "..."],
    counts: Int[AnyArray, " size"],
    point: int | Int[AnyArray, ""],
    *,
    modulus: int = MERSENNE,
) -> Bool[Array, ""]:
    """Whether all values are in [0, size), as far as one random point tells (LogUp).

        sum over values 1 / (point - value) = sum over the table t of count_t / (point - t)   mod p

    With right counts values in range are always accepted, unless the point is one of the table.
    Values out of range are accepted with probability at most `(values + size) / p`, whatever the
    counts: the point must be drawn after both are fixed, uniformly in the field.

    Args:
      values: integers.
      counts: `[size]`, of `multiplicities`.
      point: `[]` field element.
      modulus: p, 2^31 - 1 or a prime below 2^16, above the size of the table.

    Raises:
      TypeError, ValueError: naming the argument.

    References:
      Haboeck, Multivariate lookups based on logarithmic derivatives, ePrint 2022/1530.
    """
    modulus = require_modulus(modulus)
    given = to_field(_integers(values), modulus)
    held = jnp.asarray(validation.array("counts", counts, kind="integer", shape=("size",), low=0))
    at = jnp.asarray(
        validation.array("point", point, kind="integer", shape=(), low=0, high=modulus - 1)
    )
    size = held.shape[0]
    if size >= modulus:
        raise ValueError(f"modulus must be above the table's size, {size}, got {modulus}.")
    return _identity(given, held, at.astype(jnp.uint32), modulus)


def _integers(values: Any) -> Int[Array, " n"]:
    given = validation.array("values", values, kind="integer", low=-(2**31), high=2**31 - 1)
    if given.size == 0:
        raise ValueError("values must be at least one integer, got none.")
    return jnp.asarray(given, jnp.int32).reshape(-1)


@functools.partial(jax.jit, static_argnames="modulus")
def _identity(given: Array, held: Array, at: Array, modulus: int) -> Bool[Array, ""]:
    reached = subtract(at, given, modulus)
    table = subtract(at, jnp.arange(held.shape[0], dtype=jnp.uint32), modulus)
    left = total(inverse(reached, modulus), 0, modulus)
    right = total(multiply(to_field(held, modulus), inverse(table, modulus), modulus), 0, modulus)
    # 1 / 0 is no fraction: a point that meets a value says nothing.
    return jnp.all(reached != 0) & jnp.all(table != 0) & (left == right)
