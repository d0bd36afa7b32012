"""The examples on which clients compare and calibrate models while they mix."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int, Key

from dflax import counter, validation
from dflax.data.dataset import Dataset
from dflax.gossip.mixer import Mixing


class Examples(NamedTuple):
    """Which examples clients look at while they mix, drawn anew in every mixing.

    Attributes:
      batches: T >= 1, minibatches.
      batch_size: B >= 1, examples in each. A client that owns fewer than T B sees some twice.
      shared: a set of which all clients see the same examples; None for their own ones.
    """

    batches: int
    batch_size: int
    shared: Dataset | None


class Calibration(NamedTuple):
    """Examples of every client, or of one.

    Attributes:
      rows: `[n, T, B]` indices, T minibatches of B examples for each client, `[T, B]` of one; None for
        no data.
      data: the data set that they point into.
    """

    rows: Int[Array, "*n T B"] | None
    data: Dataset | None


def examples_of(batches: int, batch_size: int, calibration: Dataset | None) -> Examples:
    """The `Examples` of a mixer's arguments, once they are looked at.

    Raises:
      TypeError, ValueError: naming the argument.
    """
    validation.integer("batches", batches, low=1)
    validation.integer("batch_size", batch_size, low=1)
    if calibration is not None:
        fix = "Of a Split pass its .train; None means the clients' own examples."
        validation.instance("calibration", calibration, Dataset, fix)
    return Examples(batches, batch_size, calibration)


def draw_calibration(
    examples: Examples | None, shared: Dataset | None, mixing: Mixing, clients: int
) -> Calibration:
    """Examples for every client: of the shared set, or of those that each client owns.

    Args:
      examples: how many; None for none.
      shared: the shared set, as the mixer's state carries it; None for the clients' own.
      mixing: its key draws the order; its round is read where there is no shared set.
      clients: n.

    Raises:
      ValueError: neither a shared set nor a round.
    """
    if examples is None:
        return Calibration(None, None)
    size = examples.batches, examples.batch_size
    if shared is not None:
        return _shared_examples(shared, mixing.key, clients, *size)
    _require_round(mixing.round)
    return _own_examples(mixing.round, mixing.key, clients, *size)


def _own_examples(
    round: Any, key: Key[Array, ""], clients: int, batches: int, batch_size: int
) -> Calibration:
    """Examples that each client owns, every one once until there are no more, in a new order."""
    seed = jax.random.bits(jax.random.fold_in(key, counter.OF_CALIBRATION), (2,), jnp.uint32)
    everyone = jnp.arange(clients, dtype=jnp.int32)
    rows = round.partition.minibatches(seed, everyone, jnp.uint32(0), batches, batch_size, False)
    return Calibration(rows, round.data)


def _shared_examples(
    data: Dataset, key: Key[Array, ""], clients: int, batches: int, batch_size: int
) -> Calibration:
    """The same examples of one set for all clients, without repetition as long as it lasts."""
    order = jax.random.permutation(jax.random.fold_in(key, counter.OF_CALIBRATION), len(data))
    rows = jnp.resize(order, (batches, batch_size)).astype(jnp.int32)
    return Calibration(jnp.broadcast_to(rows, (clients, *rows.shape)), data)


def _require_round(round: Any) -> None:
    """Refuse to mix without the round where the clients' own examples are read.

    Raises:
      ValueError: no round.
    """
    if round is None:
        raise ValueError(
            "round must be given to a mixer that reads the clients' examples. The algorithms of "
            "dflax.decentralized do so; elsewhere pass Mixing(key, t, round=federation.draw(key, t)), "
            "or match by weights or on a shared set."
        )
