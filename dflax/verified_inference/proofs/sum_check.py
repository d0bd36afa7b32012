"""The sum-check protocol for a matrix product, on multilinear extensions over a prime field."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int, Key, UInt32

from dflax import validation
from dflax.data.dataset import AnyArray
from dflax.verified_inference.proofs.field import (
    MERSENNE,
    add,
    matmul,
    multiply,
    require_modulus,
    subtract,
    to_field,
    total,
    uniform,
)
from dflax.verified_inference.proofs.products import in_range, require_factors, require_product


class Challenges(NamedTuple):
    """What the verifier draws: elements of the field.

    Attributes:
      rows: `[ceil(log2 m)]`, the point at which rows of the claim are looked at.
      columns: `[ceil(log2 k)]`, that of its columns.
      rounds: `[ceil(log2 n)]`, one for each round; each must be unknown until that round's message
        is in.
    """

    rows: UInt32[Array, " a"]
    columns: UInt32[Array, " c"]
    rounds: UInt32[Array, " v"]


def variables(length: int) -> int:
    """Bits that number so many entries."""
    return (length - 1).bit_length()


def challenges(
    key: Key[Array, ""], shape: tuple[int, int, int], *, modulus: int = MERSENNE
) -> Challenges:
    """The verifier's coins for a product of `[m, n]` and `[n, k]`, drawn by key.

    Args:
      key: of the coins.
      shape: (m, n, k).
      modulus: p, 2^31 - 1 or a prime below 2^16.

    Raises:
      TypeError, ValueError: naming the argument.
    """
    validation.typed_key("key", key)
    modulus = require_modulus(modulus)
    sizes = validation.sequence("shape", shape, "three integers, m, n and k", least=3)
    for size in sizes:
        validation.integer("shape", size, low=1)
    if len(sizes) != 3:
        raise ValueError(f"shape must be (m, n, k), got {len(sizes)} numbers.")
    m, n, k = map(variables, sizes)
    drawn = uniform(key, (m + n + k,), modulus)
    return Challenges(drawn[:m], drawn[m : m + k], drawn[m + k :])


def prove_product(
    a: Int[AnyArray, "m n"],
    b: Int[AnyArray, "n k"],
    coins: Challenges,
    *,
    modulus: int = MERSENNE,
) -> UInt32[Array, "v 3"]:
    """The prover's messages in the sum-check for `C = A B`.

        claim:    C~(u, w) = sum over z in {0, 1}^v of A~(u, z) B~(z, w)
        round i:  g_i(t) = sum over what is left of z of A~(u, r_1..r_(i-1), t, z) B~(r_1..r_(i-1),
        t, z, w)

    with ~ the multilinear extension of a matrix in the bits of its indices, the first bit the highest,
    padded by zeros to powers of two. A message is g_i(0), g_i(1), g_i(2).

    Args:
      a: `[m, n]` integers.
      b: `[n, k]`.
      coins: from `challenges`.
      modulus: p.

    Returns:
      `[v, 3]` field elements, v = ceil(log2 n).

    Raises:
      TypeError, ValueError: naming the argument.

    References:
      Lund, Fortnow, Karloff and Nisan, Algebraic methods for interactive proof systems, JACM 1992.
      Thaler, Time-optimal interactive proofs for circuit evaluation, arXiv 1304.3812.
    """
    modulus = require_modulus(modulus)
    a, b = require_factors(a, b, modulus)
    coins = require_coins(coins, (a.shape[0], a.shape[1], b.shape[1]))
    start = opened(a, b, coins.rows, coins.columns, modulus)

    def round_(carry: tuple[Array, Array], known: tuple[Array, Array]) -> tuple[Any, Array]:
        half, at = known
        message = message_of(*carry, half, modulus)
        return tuple(folded(one, half, at, modulus) for one in carry), message

    return jax.lax.scan(round_, start, (halves(a.shape[1]), coins.rounds))[1]


def rounds_of(
    a: Array,
    b: Array,
    rows: Array,
    columns: Array,
    draw: Callable[[int, Array], Array],
    modulus: int,
) -> tuple[UInt32[Array, "v 3"], UInt32[Array, " v"]]:
    """The messages, and the challenges; `draw(i, message)` gives that of round i once it is sent."""
    left, right = opened(a, b, rows, columns, modulus)
    messages, drawn = [], []
    for place, half in enumerate(halves(a.shape[1])):
        message = message_of(left, right, half, modulus)
        at = jnp.asarray(draw(place, message), jnp.uint32)
        left, right = (folded(one, half, at, modulus) for one in (left, right))
        messages.append(message)
        drawn.append(at)
    if not messages:
        return jnp.zeros((0, 3), jnp.uint32), jnp.zeros(0, jnp.uint32)
    return jnp.stack(messages), jnp.stack(drawn)


@functools.partial(jax.jit, static_argnames="modulus")
def opened(
    a: Array, b: Array, rows: Array, columns: Array, modulus: int
) -> tuple[UInt32[Array, " n"], UInt32[Array, " n"]]:
    """A~(u, .) and B~(., w) on the inner index."""
    first, second = (to_field(one, modulus) for one in (a, b))
    left = matmul(lagrange(rows, a.shape[0], modulus)[None], first, modulus)[0]
    right = matmul(second, lagrange(columns, b.shape[1], modulus)[:, None], modulus)[:, 0]
    return left, right


@functools.partial(jax.jit, static_argnames="modulus")
def message_of(left: Array, right: Array, half: Array, modulus: int) -> UInt32[Array, "3"]:
    """g(0), g(1) and g(2) of the round in which so many indices have the first bit left at 0."""
    (l0, l1), (r0, r1) = cut(left, half), cut(right, half)
    l2, r2 = (subtract(add(y, y, modulus), x, modulus) for x, y in ((l0, l1), (r0, r1)))
    products = multiply(jnp.stack([l0, l1, l2]), jnp.stack([r0, r1, r2]), modulus)
    return total(products, -1, modulus)


@functools.partial(jax.jit, static_argnames="modulus")
def folded(values: Array, half: Array, at: Array, modulus: int) -> UInt32[Array, " n"]:
    """The extension with its first bit set to a field element, in the first entries."""
    zero, one = cut(values, half)
    return add(zero, multiply(at, subtract(one, zero, modulus), modulus), modulus)


def cut(values: Array, half: Array) -> tuple[Array, Array]:
    """The entries whose first bit is 0, and those where it is 1, each behind the other's index."""
    size = values.shape[0]
    doubled = jnp.pad(values, (0, size))
    low = jnp.arange(size) < half
    other = jax.lax.dynamic_slice_in_dim(doubled, half, size)
    return jnp.where(low, values, 0), jnp.where(low, other, 0)


def halves(length: int) -> Int[Array, " v"]:
    """Half the number of entries that are left, for each round."""
    count = variables(length)
    return 2 ** jnp.arange(count - 1, -1, -1, dtype=jnp.int32)


def verify_product(
    a: Int[AnyArray, "m n"],
    b: Int[AnyArray, "n k"],
    c: Int[AnyArray, "m k"],
    messages: UInt32[AnyArray, "v 3"],
    coins: Challenges,
    *,
    modulus: int = MERSENNE,
) -> Bool[Array, ""]:
    """Whether the messages of a sum-check bear out `C = A B`.

    In round i the verifier wants `g_i(0) + g_i(1)` to be what is claimed, and then claims g_i(r_i). In
    the end it computes `A~(u, r) B~(r, w)` itself, with work in the sizes of A, B and C, not of their
    product. A right claim with honest messages is always accepted. Any other is accepted with
    probability at most `(a + c + 2 v) / p`, where a, c and v are the numbers of coins: a + c for the
    point at which C is looked at, 2 for each round. This is verifiable, not zero knowledge: messages
    tell of A and B.

    Args:
      a: `[m, n]` integers of 32 bits at most.
      b: `[n, k]`; `2 n max|A| max|B|` must be below the modulus.
      c: `[m, k]`, the claim.
      messages: `[v, 3]`, of the prover.
      coins: those that the prover was given round by round.
      modulus: p, 2^31 - 1 or a prime below 2^16.

    Returns:
      `[]` whether the claim is accepted.

    Raises:
      TypeError, ValueError: naming the argument; a modulus too small for the product, with the bits
        that are needed.
    """
    a, b, c, modulus = require_product(a, b, c, modulus)
    count = variables(a.shape[1])
    coins = require_coins(coins, (a.shape[0], a.shape[1], b.shape[1]))
    if count:
        fix = "They come from prove_product."
        given: Any = validation.array(
            "messages", messages, kind="integer", shape=(count, 3), fix=fix
        )
    elif _entries(messages):
        raise ValueError("messages must be empty for a product over one index.")
    else:
        given = messages
    return accepted(a, b, c, jnp.asarray(given, jnp.uint32), coins, modulus)


@functools.partial(jax.jit, static_argnames="p")
def accepted(a: Array, b: Array, c: Array, messages: Array, coins: Challenges, p: int) -> Array:
    """What `verify_product` computes, on arguments that fit."""
    first, second, claims = (to_field(one, p) for one in (a, b, c))
    left = lagrange(coins.rows, a.shape[0], p)[None]
    right = lagrange(coins.columns, b.shape[1], p)[:, None]
    claim = matmul(matmul(left, claims, p), right, p)[0, 0]
    fits = in_range(c, p) & jnp.all(messages < p)

    def check(carry: tuple[Array, Array], told: tuple[Array, Array]) -> tuple[Any, None]:
        claim, fits = carry
        message, at = told
        fits &= add(message[0], message[1], p) == claim
        return (through_three(message, at, p), fits), None

    (claim, fits), _ = jax.lax.scan(check, (claim, fits), (messages, coins.rounds))
    inner = lagrange(coins.rounds, a.shape[1], p)
    own = matmul(matmul(left, first, p), inner[:, None], p)[0, 0]
    other = matmul(inner[None], matmul(second, right, p), p)[0, 0]
    return fits & (claim == multiply(own, other, p))


def through_three(values: UInt32[Array, "3"], at: Array, p: int) -> UInt32[Array, ""]:
    """The value at a point of the polynomial of degree 2 that has these at 0, 1 and 2."""
    half = jnp.uint32((p + 1) // 2)
    less_one, less_two = subtract(at, jnp.uint32(1), p), subtract(at, jnp.uint32(2 % p), p)
    zero = multiply(multiply(less_one, less_two, p), half, p)
    one = multiply(at, less_two, p)
    two = multiply(multiply(at, less_one, p), half, p)
    ends = add(multiply(values[0], zero, p), multiply(values[2], two, p), p)
    return subtract(ends, multiply(values[1], one, p), p)


def lagrange(point: UInt32[Array, " v"], length: int, p: int) -> UInt32[Array, " length"]:
    """The weight of each index in the multilinear extension at a point: the first bit is the highest."""
    numbers = jnp.arange(length, dtype=jnp.uint32)
    places = jnp.arange(point.shape[0] - 1, -1, -1, dtype=jnp.uint32)

    def times(weights: Array, bit: tuple[Array, Array]) -> tuple[Array, None]:
        one, place = bit
        own = jnp.where((numbers >> place) & 1, one, subtract(jnp.uint32(1), one, p))
        return multiply(weights, own, p), None

    return jax.lax.scan(times, jnp.ones(length, jnp.uint32), (point, places))[0]


def sum_check(
    key: Key[Array, ""],
    a: Int[AnyArray, "m n"],
    b: Int[AnyArray, "n k"],
    c: Int[AnyArray, "m k"],
    *,
    modulus: int = MERSENNE,
) -> Bool[Array, ""]:
    """Both sides of the sum-check for `C = A B` with a prover who follows the protocol on A and B.

    Arguments, results, errors and soundness are those of `prove_product` and `verify_product`; `key` is
    of the verifier's coins.
    """
    a, b, c, modulus = require_product(a, b, c, modulus)
    coins = challenges(key, (a.shape[0], a.shape[1], b.shape[1]), modulus=modulus)
    messages = prove_product(a, b, coins, modulus=modulus)
    return accepted(a, b, c, messages, coins, modulus)


def require_coins(coins: object, shape: tuple[int, int, int]) -> Challenges:
    """The verifier's coins, if they are those of this shape."""
    validation.instance("coins", coins, Challenges, "Draw them with challenges.")
    assert isinstance(coins, Challenges), "refused above"
    m, n, k = map(variables, shape)
    found = tuple(len(part) for part in coins)
    if found != (m, k, n):
        raise ValueError(
            f"coins must be {(m, k, n)} for rows, columns and rounds, got {found}. Draw them with "
            f"challenges(key, {shape})."
        )
    return jax.tree.map(lambda part: jnp.asarray(part, jnp.uint32), coins)


def _entries(values: object) -> int:
    """How many entries there are."""
    return int(jnp.size(jnp.asarray(values))) if values is not None else 1
