"""The server of ADMM without duals: it sends out 2 z - z_before."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool

from dflax.algorithm import Metrics, Params
from dflax.server.framework.protocol import Received, Server


class Extrapolated(NamedTuple):
    """What the server remembers.

    Attributes:
      broadcast: s = 2 z - z_before, like the model.
      started: `[]`, whether a round has been aggregated: before that there is nothing to send.
    """

    broadcast: Params
    started: Bool[Array, ""]


def not_started(params: Params) -> Extrapolated:
    """Before the first round s is z_0, and is not sent."""
    return Extrapolated(params, jnp.bool_(False))


def publish(server: Server) -> tuple[Params, Bool[Array, ""]]:
    """The server sends s, once there is one."""
    return server.memory.broadcast, server.memory.started


def extrapolate(server: Server, received: Received) -> tuple[Params, Extrapolated, Metrics]:
    """Z is the combined message, and s = 2 z - z_before."""
    z = jax.tree.map(lambda new, old: new.astype(old.dtype), received.message, server.params)
    s = jax.tree.map(lambda new, old: 2 * new - old, z, server.params)
    return z, Extrapolated(s, jnp.bool_(True)), {}
