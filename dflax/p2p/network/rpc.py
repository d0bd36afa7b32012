"""What a call over a link costs, and how many of them go through in a second."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from dflax import validation
from dflax.p2p.network.connect import Network

# The least size in bytes that a codec is used for; None for never.
LEAST_BYTES = {"none": None, "lz4": 256, "zstd": 512, "gzip": 512, "brotli": 1024}


class Rpc(NamedTuple):
    """A cost model of calls.

    Attributes:
      time: `time(rtt, size, bandwidth) -> seconds` of one call: T = rtt + size / bandwidth + overhead.
      rate: `rate(concurrency, rtt, size, bandwidth) -> calls a second` with m calls under way:
        min(m / T, bandwidth / size, the server's rate).
    """

    time: Callable[..., Float[Array, "..."]]
    rate: Callable[..., Float[Array, "..."]]


def rpc(
    *,
    overhead: float | Float[Array, ""] = 0.0,
    server_rate: float | Float[Array, ""] | None = None,
    codec: str = "none",
    ratio: float | Float[Array, ""] = 1.0,
) -> Rpc:
    """Calls that wait for a round trip, share a link, and may be compressed.

    Args:
      overhead: seconds >= 0 that a call takes beside the way; traceable.
      server_rate: calls a second that the server answers at most, > 0; None for any number; traceable.
      codec: "none", "lz4" (from 256 bytes on), "zstd" and "gzip" (512) or "brotli" (1,024).
      ratio: of compressed to plain size in (0, 1], of what is compressed; traceable.

    Returns:
      `Rpc`, of arguments that broadcast: round trips in seconds, sizes in bytes, bandwidths in bytes
      a second.

    Raises:
      TypeError, ValueError: naming the argument.
    """
    validation.real("overhead", overhead, low=0.0, scalar=True)
    if server_rate is not None:
        validation.real("server_rate", server_rate, low=0.0, low_open=True, scalar=True)
    validation.choice("codec", codec, tuple(LEAST_BYTES))
    validation.probability("ratio", ratio, low_open=True)
    least, most = LEAST_BYTES[codec], jnp.inf if server_rate is None else server_rate

    def sent(size: Float[Array, "..."]) -> Float[Array, "..."]:
        size = jnp.asarray(size, jnp.float32)
        return size if least is None else jnp.where(size >= least, size * ratio, size)

    def time(
        rtt: Float[Array, "..."], size: Float[Array, "..."], bandwidth: Float[Array, "..."]
    ) -> Float[Array, "..."]:
        return rtt + sent(size) / bandwidth + overhead

    def rate(
        concurrency: Float[Array, "..."],
        rtt: Float[Array, "..."],
        size: Float[Array, "..."],
        bandwidth: Float[Array, "..."],
    ) -> Float[Array, "..."]:
        one = concurrency / time(rtt, size, bandwidth)
        return jnp.minimum(jnp.minimum(one, bandwidth / sent(size)), most)

    return Rpc(time, rate)


def link_bandwidth(
    network: Network,
    up: Float[Array, " n"],
    down: Float[Array, " n"],
    relay: Float[Array, " R"] | None = None,
) -> Float[Array, "n n"]:
    """Bytes a second from i to j: min(up_i, down_j), of relayed links also an equal share of the relay.

    Args:
      network: from `connected`.
      up: `[n]` bytes a second, > 0.
      down: `[n]` bytes a second, > 0.
      relay: `[R]` bytes a second of each relay, > 0, shared by all circuits over it; None: no limit.

    Returns:
      `[n, n]`; 0 without a link.

    Raises:
      TypeError, ValueError: naming the argument.
    """
    validation.instance("network", network, Network, "dflax.p2p.connected makes one.")
    peers = network.state.shape[0]
    tiny = 1e-30
    sends = jnp.asarray(validation.array("up", up, kind="real", shape=(peers,), low=tiny))
    hears = jnp.asarray(validation.array("down", down, kind="real", shape=(peers,), low=tiny))
    most = jnp.minimum(sends[:, None], hears)
    if relay is not None:
        limits = jnp.asarray(validation.array("relay", relay, kind="real", shape=("R",), low=tiny))
        over = network.relay.reshape(-1)
        used = jnp.where(over >= 0, over, limits.shape[0])
        # Every pair stands there twice.
        circuits = jax.ops.segment_sum(jnp.ones_like(used), used, limits.shape[0] + 1) // 2
        share = limits / jnp.maximum(circuits[:-1], 1)
        shared = jnp.minimum(most, share[jnp.maximum(network.relay, 0)])
        most = jnp.where(network.relay >= 0, shared, most)
    return jnp.where(network.link, most, 0.0)
