"""Disjoint groups of users, one for each level of a prefix tree: each user is asked once."""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Key, UInt32

from dflax import validation
from dflax.algorithm import Events
from dflax.heavy_hitters.words import require_words
from dflax.participation import Count

# Rows are padded to a multiple, so that devices can share them.
MULTIPLE = 128


class Group(NamedTuple):
    """The users of one level, party by party.

    Attributes:
      items: `[M, n, W]` uint32, what they hold.
      present: `[M, n]` bool, which rows are users.
      levels: g, how many groups there are; static.
    """

    items: UInt32[Array, "M n W"]
    present: Bool[Array, "M n"]
    levels: Count


def equal_groups(users: int, levels: int) -> list[int]:
    """Sizes of g groups that differ by at most one user.

    Args:
      users: N >= g.
      levels: g >= 1.

    Raises:
      TypeError, ValueError: naming the argument.
    """
    _require_sizes(users, levels)
    return [users * (level + 1) // levels - users * level // levels for level in range(levels)]


def growing_groups(users: int, levels: int) -> list[int]:
    """Sizes of g groups that grow, as in GTF.

        n_h = N / (2 g) + h N / (g (g + 1)),  h = 0, ..., g - 2, rounded down; the last takes the rest.

    Args:
      users: N, so many that no group is empty.
      levels: g >= 1.

    Raises:
      TypeError, ValueError: naming the argument.

    References:
      Shao et al., arXiv 2307.02277.
    """
    _require_sizes(users, levels)
    pairs = 2 * levels * (levels + 1)
    sizes = [(users * (levels + 1) + 2 * level * users) // pairs for level in range(levels - 1)]
    if 0 in sizes:
        raise ValueError(
            f"users must be so many that no group is empty, got {users} for {levels} levels. Take "
            "fewer levels."
        )
    return [*sizes, users - sum(sizes)]


def grouped(
    key: Key[Array, ""],
    items: UInt32[Array, "N W"],
    parties: Sequence[int],
    levels: int,
    *,
    growing: bool = False,
) -> Events:
    """The users in random disjoint groups, party by party: a source whose round h is level h.

    Every user is in exactly one group. It is asked at that level alone, with the whole epsilon, so that
    all that anybody learns of it is epsilon-private.

    Args:
      key: typed key, of the groups alone.
      items: `[N, W]` uint32 (`as_words`), the users of the first party first; may be traced.
      parties: N_1, ..., N_M, how many users each party has; they add up to N (static).
      levels: g >= 1 (static), at most the smallest N_i.
      growing: `growing_groups` in place of `equal_groups`.

    Returns:
      `dflax.Events` of g `Group`s, n the largest group, rounded up.

    Raises:
      TypeError, ValueError: naming the argument; a group would be empty.
    """
    validation.typed_key("key", key)
    given = require_words("items", items)
    counts = validation.sequence("parties", parties, "numbers of users")
    validation.integer("levels", levels, low=1)
    validation.flag("growing", growing)
    for place, count in enumerate(counts):
        fix = f"Every group needs a user of every party: take at most {count} levels."
        validation.integer(f"parties[{place}]", count, low=1)
        validation.integer(f"parties[{place}]", count, low=levels, fix=fix)
    if sum(counts) != given.shape[0]:
        raise ValueError(
            f"parties must add up to the {given.shape[0]} users in items, got {sum(counts)}."
        )
    sizes = growing_groups if growing else equal_groups
    by_level = np.array([sizes(int(count), levels) for count in counts]).T
    longest = -(-int(by_level.max()) // MULTIPLE) * MULTIPLE
    first = np.cumsum([0, *counts[:-1]]) + np.cumsum(by_level, axis=0) - by_level
    order = _shuffled(key, counts)
    slot = jnp.arange(longest)
    places = jnp.asarray(first, jnp.int32)[..., None] + slot
    present = slot < jnp.asarray(by_level, jnp.int32)[..., None]
    rows = order[jnp.where(present, places, 0)]
    shuffled = jnp.asarray(given)[rows]
    items = jnp.where(present[..., None], shuffled, 0)
    return Events(Group(items, present, Count(levels)))


def _shuffled(key: Key[Array, ""], counts: Sequence[int]) -> Array:
    """The users' numbers, those of each party in random order, parties in theirs."""
    total = sum(counts)
    ends = jnp.asarray(np.cumsum(counts), jnp.int32)
    number = jnp.arange(total, dtype=jnp.int32)
    party = jnp.searchsorted(ends, number, side="right").astype(jnp.int32)
    high, low = jax.random.bits(key, (2, total), jnp.uint32)
    return jax.lax.sort((party, high, low, number), num_keys=3)[-1]


def _require_sizes(users: int, levels: int) -> None:
    validation.integer("levels", levels, low=1)
    validation.integer("users", users, low=levels, fix="No group may be empty: take fewer levels.")
