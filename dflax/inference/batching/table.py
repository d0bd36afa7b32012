"""What a replica knows of its requests: one row each, with room to look ahead."""

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from dflax.inference.requests import Requests

# The columns of a table.
ARRIVED, COMPUTED, OUTPUT, SIZE, HELD = range(5)


class Table(NamedTuple):
    """Requests that can be served, in the order of their arrival.

    Attributes:
      rows: `[n + ahead, 5]`: seconds of arrival, prompt tokens to compute, output tokens, tokens of
        prompt and output together, and tokens of memory that are held for them. Rows beyond those of
        requests arrive never.
      place: `[n]`, the row of each request.
      refused: `[n]`, who needs more memory than there is and has no row.
    """

    rows: Float[Array, "m 5"]
    place: Int[Array, " n"]
    refused: Bool[Array, " n"]


def table(
    requests: Requests,
    memory: float | Float[Array, ""],
    block: int,
    reuse: float | Float[Array, ""],
    ahead: int,
) -> Table:
    """The rows of a block of requests, without those that can never be served.

    Args:
      requests: `[n]`.
      memory: tokens of keys and values for which there is room.
      block: tokens in whose multiples memory is held.
      reuse: share of the shared tokens that need not be computed again.
      ahead: rows after the last.
    """
    kind = jnp.result_type(requests.arrived, jnp.float32)
    size = requests.prompt + requests.output
    held = (-(-size // block) * block).astype(kind)
    computed = requests.prompt.astype(kind) - reuse * requests.shared
    columns = [requests.arrived, computed, requests.output, size, held]
    refused = held > memory
    place = jnp.cumsum(~refused, dtype=jnp.int32) - 1
    count = len(size)
    to = jnp.where(refused, count + ahead, place)
    empty = jnp.zeros((count + ahead, 5), kind).at[:, ARRIVED].set(jnp.inf)
    rows = empty.at[to].set(jnp.stack([c.astype(kind) for c in columns], axis=1), mode="drop")
    return Table(rows, place, refused)
