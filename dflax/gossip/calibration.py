"""The examples on which clients compare and calibrate models while they mix."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int, Key

from dflax.data.dataset import Dataset


class Calibration(NamedTuple):
    """Examples of every client.

    Attributes:
      rows: `[n, T, B]` indices, T minibatches of B examples for each client; None for no data.
      data: the data set that they point into.
    """

    rows: Int[Array, "n T B"] | None
    data: Dataset | None


def own_examples(
    round: Any, key: Key[Array, ""], clients: int, batches: int, batch_size: int
) -> Calibration:
    """Examples that each client owns, every one once until there are no more, in a new order."""
    seed = jax.random.bits(jax.random.fold_in(key, 0x5EED), (2,), jnp.uint32)
    everyone = jnp.arange(clients, dtype=jnp.int32)
    rows = round.partition.minibatches(seed, everyone, jnp.uint32(0), batches, batch_size, False)
    return Calibration(rows, round.data)


def shared_examples(
    data: Dataset, key: Key[Array, ""], clients: int, batches: int, batch_size: int
) -> Calibration:
    """The same examples of one set for all clients, without repetition as long as it lasts."""
    order = jax.random.permutation(jax.random.fold_in(key, 0x5EED), len(data))
    rows = jnp.resize(order, (batches, batch_size)).astype(jnp.int32)
    return Calibration(jnp.broadcast_to(rows, (clients, *rows.shape)), data)


def require_round(round: Any) -> None:
    """Refuse to mix without the round where the clients' own examples are read.

    Raises:
      ValueError: no round.
    """
    if round is None:
        raise ValueError(
            "round must be given to a mixer that reads the clients' examples (mixer.informed). The "
            "algorithms of dflax.decentralized that are made by adapt_then_combine and "
            "combine_then_adapt do so; elsewhere pass round=federation.draw(key, t), or match by "
            "weights or on a shared set."
        )
