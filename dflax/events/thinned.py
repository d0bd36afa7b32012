"""Streams without the events that do not take place: absence and loss of asynchronous methods."""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool

from dflax import validation
from dflax.data.dataset import AnyArray
from dflax.events.stream import Stream


def thinned(
    stream: Stream,
    *,
    present: Bool[AnyArray, " n"] | Bool[AnyArray, "K n"] | None = None,
    loss: float = 0.0,
    seed: int = 0,
) -> Stream:
    """The events of a stream that take place when nodes are absent and messages are lost.

    One rule for all methods that run on streams. An absent node takes no gradient. A communication
    takes place when both nodes are present and neither message is lost; else both keep what they have.
    An event that does not take place leaves no trace: a node's gap counts from its last event that did.
    The examples of an event stay the same.

    Args:
      stream: K events.
      present: `[n]` nodes that are present at all, or `[K, n]` in each event; None for everyone.
      loss: probability of losing a communication, in [0, 1].
      seed: of the draws of what is lost, >= 0.

    Returns:
      A `Stream` of the same law with at most K events.

    Raises:
      TypeError, ValueError: naming the argument; no event that takes place.
    """
    validation.instance("stream", stream, Stream, "Make one with poisson_stream.")
    validation.real("loss", loss, low=0.0, high=1.0, scalar=True)
    validation.integer("seed", seed, low=0)
    nodes, gradient = np.asarray(stream.nodes), np.asarray(stream.gradient)
    lost = np.random.default_rng(seed).random(len(nodes)) < loss
    takes_place = gradient | ~lost
    if present is not None:
        there = np.asarray(present)
        shapes = (stream.law.rates.nodes,), (len(nodes), stream.law.rates.nodes)
        if there.dtype != bool or there.shape not in shapes:
            raise ValueError(
                f"present must hold booleans of shape {shapes[0]} or {shapes[1]}, got {there.dtype} "
                f"{there.shape}. It says who is present, in all events or in each."
            )
        there = np.broadcast_to(there, shapes[1])
        takes_place &= np.take_along_axis(there, nodes, 1).all(1)
    if not takes_place.any():
        raise ValueError(
            "present and loss must leave at least one event, got none. Without events every node keeps "
            "what it starts with."
        )
    gaps = _gaps_between(np.asarray(stream.gaps, np.float64), nodes, gradient, takes_place)
    kept = np.flatnonzero(takes_place)
    return Stream(
        stream.number[kept],
        stream.time[kept],
        stream.gradient[kept],
        stream.nodes[kept],
        jnp.asarray(gaps[kept], stream.gaps.dtype),
        stream.law,
    )


def _gaps_between(
    gaps: np.ndarray, nodes: np.ndarray, gradient: np.ndarray, kept: np.ndarray
) -> np.ndarray:
    """Gaps since each node's last event that is kept, as sums of those that lie between, in float64."""
    who, since = nodes.reshape(-1), gaps.reshape(-1)
    counts = np.stack([np.ones(len(nodes), bool), ~gradient], axis=1).reshape(-1)
    taking = np.flatnonzero(counts)
    order = taking[np.argsort(who[taking], kind="stable")]
    clock = np.cumsum(since[order])
    first = np.diff(who[order], prepend=-1) != 0
    starts = (clock - since[order])[first][np.cumsum(first) - 1]
    remains = np.repeat(kept, 2)[order]
    place, own = order[remains], (clock - starts)[remains]
    again = np.diff(who[place], prepend=-1) == 0
    own[again] -= (clock - starts)[remains][np.flatnonzero(again) - 1]
    found = np.zeros_like(since)
    found[place] = own
    return found.reshape(gaps.shape)
