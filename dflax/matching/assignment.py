"""Linear assignment: the permutation of largest total profit, on the device or on the host."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from dflax import validation

# Rounds of bidding before paths are searched for. Few settle most rows; each costs as much as d steps.
BIDDING = 4


class Search(NamedTuple):
    """Where the search for augmenting paths of one problem stands.

    Attributes:
      prices: `[d]` duals v of the columns.
      column: `[d]` column of each row, -1 for none.
      row: `[d]` row of each column, -1 for none.
      start: `[]` the free row that a path is searched for.
      current: `[]` the row whose columns are looked at next; or, while a path is flipped, the column
        whose turn it is.
      flipping: `[]` whether a path was found and is being flipped.
      level: `[]` length of the shortest path to `current`.
      distance: `[d]` lengths of the shortest paths to the columns found so far.
      previous: `[d]` the row that each column was reached from.
      visited: `[d]` columns whose distance is final.
    """

    prices: Float[Array, " d"]
    column: Int[Array, " d"]
    row: Int[Array, " d"]
    start: Int[Array, ""]
    current: Int[Array, ""]
    flipping: Bool[Array, ""]
    level: Float[Array, ""]
    distance: Float[Array, " d"]
    previous: Int[Array, " d"]
    visited: Bool[Array, " d"]


def assign(profit: Float[Array, "*B d d"]) -> Int[Array, "*B d"]:
    """Argmax over permutations p of sum_u profit[u, p(u)], on the device.

    Rows first bid for their best columns, all at once and only where that is safe, and shortest
    augmenting paths settle the rest (Jonker and Volgenant). All problems of a batch advance in one
    loop, each with its own path: its length is the largest number of steps any of them takes, not the
    sum over rows of the longest paths.

    Args:
      profit: `[..., d, d]`, finite; NaN and -inf count as very small, +inf as very large.

    Returns:
      `[..., d]` int32: the column of each row.

    Examples:
      >>> import jax.numpy as jnp, dflax as dx
      >>> profit = jnp.array([[1.0, 5.0], [2.0, 3.0]])
      >>> dx.matching.assign(profit).tolist()
      [1, 0]

    References:
      Jonker and Volgenant, A Shortest Augmenting Path Algorithm for Dense and Sparse Linear Assignment
      Problems, Computing 38, 1987.
      Bertsekas, The Auction Algorithm, Annals of Operations Research 14, 1988.
    """
    profit = require_square(profit)
    flat = profit.reshape(-1, *profit.shape[-2:])
    wide = jnp.nan_to_num(flat.astype(jnp.promote_types(flat.dtype, jnp.float32)))
    return jax.vmap(_assign)(-wide).reshape(profit.shape[:-1])


def assign_by_optax(profit: Float[Array, "*B d d"]) -> Int[Array, "*B d"]:
    """As `assign`, by optax's Hungarian algorithm."""
    import optax

    profit = require_square(profit)
    flat = profit.reshape(-1, *profit.shape[-2:])
    # The base version has the rows in order; of the other the columns are, for square problems.
    columns = jax.vmap(lambda one: optax.assignment.base_hungarian_algorithm(-one)[1])(flat)
    return columns.astype(jnp.int32).reshape(profit.shape[:-1])


def assign_on_host(profit: Float[Array, "*B d d"]) -> Int[Array, "*B d"]:
    """As `assign`, by scipy on the host: a callback from inside the compiled program."""
    profit = require_square(profit)
    shape = jax.ShapeDtypeStruct(profit.shape[:-1], jnp.int32)
    return jax.pure_callback(_by_scipy, shape, profit, vmap_method="expand_dims")


def require_square(profit: Float[Array, "*B d d"]) -> Float[Array, "*B d d"]:
    """Refuse a profit that is not square.

    Raises:
      TypeError, ValueError: no numbers, fewer than two axes, or the last two of different lengths.
    """
    if not isinstance(profit, jax.Array):
        profit = validation.array("profit", profit, kind="real")
    profit = jnp.asarray(profit)
    if profit.ndim < 2 or profit.shape[-1] != profit.shape[-2]:
        raise ValueError(
            f"profit must be [..., d, d], the units of one model against those of another, got shape "
            f"{profit.shape}. Layers of different widths are no permutation of each other."
        )
    return profit


def _by_scipy(profit: np.ndarray) -> np.ndarray:
    from scipy.optimize import linear_sum_assignment

    profit = np.nan_to_num(np.asarray(profit))
    flat = profit.reshape(-1, *profit.shape[-2:])
    columns = [linear_sum_assignment(one, maximize=True)[1] for one in flat]
    return np.asarray(columns, np.int32).reshape(profit.shape[:-1])


def _assign(cost: Float[Array, "d d"]) -> Int[Array, " d"]:
    """The permutation of least cost of one problem."""
    units = cost.shape[0]
    if units == 1:
        return jnp.zeros(1, jnp.int32)
    prices, column, row = jax.lax.fori_loop(
        0,
        BIDDING,
        lambda _, held: _bid(cost, *held),
        (cost.min(0), jnp.full(units, -1, jnp.int32), jnp.full(units, -1, jnp.int32)),
    )
    first = _fresh(prices, column, row)
    found = jax.lax.while_loop(lambda s: s.start < units, lambda s: _advance(cost, s), first)
    return found.column


def _bid(
    cost: Float[Array, "d d"],
    prices: Float[Array, " d"],
    column: Int[Array, " d"],
    row: Int[Array, " d"],
) -> tuple[Float[Array, " d"], Int[Array, " d"], Int[Array, " d"]]:
    """Every free row bids for its best column; the price falls to where its second best is as good.

    Rows stay on columns of least reduced cost, whatever the bids, which is what paths rest on.
    """
    places = jnp.arange(cost.shape[0], dtype=jnp.int32)
    reduced = cost - prices
    best = jnp.argmin(reduced, axis=1).astype(jnp.int32)
    lowest = jnp.min(reduced, axis=1)
    others = jnp.where(places == best[:, None], jnp.inf, reduced)
    raised = jnp.min(others, axis=1) - lowest
    bids = jnp.where((column < 0)[:, None] & (places == best[:, None]), raised[:, None], -1.0)
    highest = jnp.max(bids, axis=0)
    winner = jnp.argmax(bids, axis=0).astype(jnp.int32)
    # A bid of nothing may take an empty column, but not chase an owner around for ever.
    taken = jnp.where(row < 0, highest >= 0, highest > 0)
    out = jnp.where(taken & (row >= 0), row, cost.shape[0])
    column = column.at[out].set(-1, mode="drop")
    column = column.at[jnp.where(taken, winner, cost.shape[0])].set(places, mode="drop")
    return prices - jnp.where(taken, highest, 0), column, jnp.where(taken, winner, row)


def _fresh(prices: Float[Array, " d"], column: Int[Array, " d"], row: Int[Array, " d"]) -> Search:
    """The search from the next free row; its number is d when there is none."""
    units = column.shape[0]
    free = column < 0
    start = jnp.where(free.any(), jnp.argmax(free), units).astype(jnp.int32)
    return Search(
        prices,
        column,
        row,
        start,
        start,
        jnp.bool_(False),
        jnp.zeros((), prices.dtype),
        jnp.full(units, jnp.inf, prices.dtype),
        jnp.full(units, -1, jnp.int32),
        jnp.zeros(units, bool),
    )


def _advance(cost: Float[Array, "d d"], s: Search) -> Search:
    """One step: the columns of one row are looked at, or one edge of a path is flipped."""
    units = cost.shape[0]
    places = jnp.arange(units, dtype=jnp.int32)

    # Flipping: `current` is a column, to go to the row that it was reached from.
    parent = s.previous[s.current]
    freed = s.column[jnp.maximum(parent, 0)]
    done = s.flipping & (parent == s.start)
    flip = s.flipping
    column = jnp.where(flip & (places == parent), s.current, s.column)
    row = jnp.where(flip & (places == s.current), parent, s.row)

    # Searching: `current` is a row, the row of the column visited last, or the start.
    entered = s.column[s.current]
    mine = jnp.maximum(entered, 0)
    own = jnp.where(entered < 0, 0, cost[s.current, mine] - s.prices[mine] - s.level)
    through = cost[s.current] - s.prices - own
    nearer = (through < s.distance) & ~s.visited
    distance = jnp.where(nearer, through, s.distance)
    previous = jnp.where(nearer, s.current, s.previous)
    open_distance = jnp.where(s.visited, jnp.inf, distance)
    level = jnp.min(open_distance)
    # Of columns equally near one without a row ends the path at once.
    nearest = open_distance <= level
    chosen = jnp.argmax(nearest * (1 + (s.row < 0))).astype(jnp.int32)
    ends = s.row[chosen] < 0
    prices = jnp.where(s.visited & ends, s.prices + s.distance - level, s.prices)

    searched = Search(
        prices,
        s.column,
        s.row,
        s.start,
        jnp.where(ends, chosen, s.row[chosen]),
        ends,
        level,
        distance,
        previous,
        s.visited | ((places == chosen) & ~ends),
    )
    flipped = s._replace(column=column, row=row, current=freed)
    again = _fresh(s.prices, column, row)
    # The next free row; of what is settled nothing changes any more.
    flipped = jax.tree.map(lambda a, b: jnp.where(done, a, b), again, flipped)
    return jax.tree.map(lambda a, b: jnp.where(flip, a, b), flipped, searched)
