"""How long models travel between nodes: latencies, and links that several transfers share."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key


class Network(NamedTuple):
    """How long things take; everything in seconds and bytes.

    Attributes:
      latency: `[n, n]`, of a message.
      seconds_per_step: `[n]`, of a local step.
      uplink: `[n]` bytes per second, shared by what a node sends at once.
      downlink: `[n]` bytes per second.
    """

    latency: Float[Array, "n n"]
    seconds_per_step: Float[Array, " n"]
    uplink: Float[Array, " n"]
    downlink: Float[Array, " n"]


def downloads(
    network: Network | None, holders: Int[Array, " a"], people: Int[Array, " s"], size: float
) -> Float[Array, "a s"]:
    """Seconds until each holder's model of `size` bytes is with each participant."""
    if network is None:
        return jnp.zeros((holders.shape[0], people.shape[0]))
    up = network.uplink[holders][:, None] / people.shape[0]
    speed = jnp.minimum(up, network.downlink[people][None, :])
    return network.latency[holders][:, people] + size / speed


def uploads(
    network: Network | None,
    start: Float[Array, " s"],
    steps: Int[Array, " s"],
    people: Int[Array, " s"],
    chosen: Int[Array, " a"],
    size: float,
    key: Key[Array, ""],
) -> Float[Array, "s a"]:
    """When each participant's model is with each aggregator; without a network in random order.

    Args:
      network: or None.
      start: when each began to train.
      steps: local steps of each.
      people: ids of the participants.
      chosen: ids of the aggregators.
      size: of a model, in bytes.
      key: of the order.
    """
    shape = people.shape[0], chosen.shape[0]
    if network is None:
        return jax.random.uniform(key, shape) * 1e-6
    trained = start + steps * network.seconds_per_step[people]
    speed = jnp.minimum(network.uplink[people][:, None] / shape[1], network.downlink[chosen][None])
    upload = network.latency[people][:, chosen] + size / speed
    return trained[:, None] + upload
