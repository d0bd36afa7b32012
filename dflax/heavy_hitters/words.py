"""Items of up to 64 bits as words of 32, in the order of numbers."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Int, UInt32, UInt64

from dflax import validation

WORD = 32
MOST_BITS = 64


def as_words(numbers: UInt64[np.ndarray, " n"], bits: int) -> UInt32[np.ndarray, "n W"]:
    """Numbers of m bits as W = ceil(m / 32) words each, the most significant first.

    Compiled programs have integers of 32 bits, so that items and their prefixes travel as words.

    Args:
      numbers: `[n]` whole numbers in [0, 2^m), on the host; NumPy's uint64 holds all of them.
      bits: m in [1, 64].

    Returns:
      `[n, W]` uint32.

    Raises:
      TypeError, ValueError: naming the argument.
    """
    validation.integer("bits", bits, low=1, high=MOST_BITS)
    fix = f"Items have {bits} bits here; hash longer ones."
    given = validation.array("numbers", numbers, kind="integer", shape=("n",), low=0, fix=fix)
    if int(given.max()) >= 1 << bits:
        raise ValueError(f"numbers must be below 2^{bits}, got {int(given.max())}. {fix}")
    given = given.astype(np.uint64)
    shifts = [WORD * place for place in reversed(range(word_count(bits)))]
    columns = [(given >> np.uint64(shift)).astype(np.uint32) for shift in shifts]
    return np.stack(columns, axis=-1)


def as_numbers(words: UInt32[np.ndarray, "n W"]) -> UInt64[np.ndarray, " n"]:
    """The numbers that `as_words` was given, as uint64 on the host.

    Args:
      words: `[n, W]` uint32, W = 1 or 2.

    Raises:
      TypeError, ValueError: naming the argument.
    """
    given = require_words("words", words)
    if validation.is_traced(given):
        raise TypeError("words must be known on the host, got a traced array.")
    total = np.zeros(given.shape[0], np.uint64)
    for column in np.asarray(given).T:
        total = (total << np.uint64(WORD)) | column.astype(np.uint64)
    return total


def word_count(bits: int) -> int:
    """W, words of an item."""
    return -(-bits // WORD)


def require_words(name: str, value: object) -> Any:
    """Refuse what are no rows of one or two uint32 words."""
    fix = "Make them with dflax.heavy_hitters.as_words(numbers, bits)."
    given = validation.array(name, value, kind="integer", shape=("n", "W"), fix=fix)
    if given.dtype != np.uint32 or given.shape[1] > MOST_BITS // WORD:
        raise TypeError(
            f"{name} must be uint32 words of shape [n, 1] or [n, 2], got {given.dtype} of shape "
            f"{given.shape}. {fix}"
        )
    return given


def shifted_right(words: UInt32[Array, "... W"], by: Int[Array, ""]) -> UInt32[Array, "... W"]:
    """The items over 2^by, rounded down; `by` in [0, 32 W), traced."""
    by = jnp.asarray(by, jnp.uint32)
    within, whole = by % WORD, by // WORD
    count = words.shape[-1]
    above = jnp.concatenate([jnp.zeros_like(words[..., :1]), words[..., :-1]], -1)
    # In two steps, as a shift by all 32 bits of a word is not defined.
    part = (words >> within) | ((above << 1) << (WORD - 1 - within))
    if count == 1:
        return part
    moved = jnp.concatenate([jnp.zeros_like(part[..., :1]), part[..., :-1]], -1)
    return jnp.where(whole == 0, part, moved)


def shifted_left(words: UInt32[Array, "... W"], by: Int[Array, ""]) -> UInt32[Array, "... W"]:
    """The items times 2^by; `by` in [0, 32), traced; nothing may be lost at the top."""
    by = jnp.asarray(by, jnp.uint32)
    below = jnp.concatenate([words[..., 1:], jnp.zeros_like(words[..., :1])], -1)
    return (words << by) | ((below >> 1) >> (WORD - 1 - by))


def is_less(one: UInt32[Array, "... W"], other: UInt32[Array, "... W"]) -> Bool[Array, "..."]:
    """Whether the one number is less than the other."""
    less = one[..., -1] < other[..., -1]
    for place in range(one.shape[-1] - 2, -1, -1):
        ahead, behind = one[..., place], other[..., place]
        less = (ahead < behind) | ((ahead == behind) & less)
    return less


def ascending(
    words: UInt32[Array, "n W"], valid: Bool[Array, " n"], *others: Array
) -> tuple[UInt32[Array, "n W"], Bool[Array, " n"], tuple[Array, ...]]:
    """Rows in ascending order of their numbers, those that are not valid behind; others go along."""
    count = words.shape[1]
    columns = [words[:, place] for place in range(count)]
    behind, *rows = jax.lax.sort((~valid, *columns, *others), num_keys=1 + count)
    return jnp.stack(rows[:count], -1), ~behind, tuple(rows[count:])
