"""Network planes: what a message takes, and what flows that share an endpoint get."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from dflax import validation
from dflax.inference.supernode.numbers import Real, numbers


class Plane(NamedTuple):
    """A network without contention but at its endpoints. From `plane`.

    Attributes:
      latency: s until the first byte is there.
      bandwidth: B/s of one endpoint, in each direction.
    """

    latency: Real
    bandwidth: Real


def plane(latency: Real, bandwidth: Real) -> Plane:
    """A plane; both numbers may be arrays.

    Args:
      latency: s, >= 0; traceable.
      bandwidth: B/s of one endpoint in each direction, > 0; traceable.

    Raises:
      TypeError, ValueError: naming the argument.
    """
    return Plane(
        numbers("latency", latency, low=0.0),
        numbers("bandwidth", bandwidth, low=0.0, low_open=True),
    )


class Planes(NamedTuple):
    """The planes of a CloudMatrix384. From `cloudmatrix_planes`.

    Attributes:
      within: unified bus between dies of one node.
      across: unified bus between dies of two nodes.
      memory: unified bus to the memory of the CPUs, of one NPU.
      scale_out: RDMA, of one NPU: from prefill to decoding.
      management: the data centre's network, of one node.
    """

    within: Plane
    across: Plane
    memory: Plane
    scale_out: Plane
    management: Plane


def cloudmatrix_planes() -> Planes:
    """The planes of a CloudMatrix384.

    196 GB/s of the unified bus for each die, 151 GB/s from an NPU to the CPUs' memory, 50 GB/s of RDMA
    for each NPU, 50 GB/s of the data centre's network for each node. The latencies of the last two are
    assumed to be 5 us.

    References:
      Zuo et al., Serving Large Language Models on Huawei CloudMatrix384, arXiv 2506.12708.
    """
    return Planes(
        Plane(1.2e-6, 196e9),
        Plane(1.9e-6, 196e9),
        Plane(1.0e-6, 151e9),
        Plane(5e-6, 50e9),
        Plane(5e-6, 50e9),
    )


def message(plane: Plane, size: Real, *, sharing: Real = 1.0) -> Float[Array, "..."]:
    """Seconds of one message: latency + size sharing / bandwidth.

    Args:
      plane: see `Plane`.
      size: B, >= 0; traceable.
      sharing: flows that share the endpoint evenly, >= 1; traceable.

    Raises:
      TypeError, ValueError: naming the argument.
    """
    validation.instance("plane", plane, Plane, "Make it with dflax.inference.supernode.plane.")
    size = numbers("size", size, low=0.0)
    sharing = numbers("sharing", sharing, low=1.0)
    return jnp.asarray(plane.latency + size * sharing / plane.bandwidth)


def fair_rates(
    plane: Plane, source: Int[Array, " f"], destination: Int[Array, " f"], *, endpoints: int
) -> Float[Array, " f"]:
    """Max-min fair rates of flows over a plane that only its endpoints bound.

    No flow can get more without one that has as little or less losing some. Rates rise together; where
    an endpoint's bandwidth is used up, its flows stay, and the others go on.

    Args:
      plane: see `Plane`.
      source: `[f]` endpoint that sends, in [0, endpoints).
      destination: `[f]` endpoint that receives, in [0, endpoints).
      endpoints: >= 1.

    Returns:
      `[f]` B/s.

    Raises:
      TypeError, ValueError: naming the argument.
    """
    validation.instance("plane", plane, Plane, "Make it with dflax.inference.supernode.plane.")
    validation.integer("endpoints", endpoints, low=1)
    last = endpoints - 1
    sends = validation.array("source", source, kind="integer", shape=("f",), low=0, high=last)
    gets = validation.array(
        "destination", destination, kind="integer", shape=sends.shape, low=0, high=last
    )
    # A link for what each endpoint sends, and one for what it receives.
    links = jnp.stack([jnp.asarray(sends), jnp.asarray(gets) + endpoints])

    def on_links(values: Array) -> Array:
        return jnp.zeros(2 * endpoints).at[links].add(values)

    def fill(_: int, state: tuple[Array, Array]) -> tuple[Array, Array]:
        rates, fixed = state
        left = plane.bandwidth - on_links(jnp.where(fixed, rates, 0.0))
        rising = on_links(jnp.where(fixed, 0.0, 1.0))
        share = jnp.where(rising > 0, left / jnp.maximum(rising, 1.0), jnp.inf)
        lowest = jnp.min(share)
        settles = ~fixed & (jnp.min(share[links], axis=0) <= lowest * (1.0 + 1e-6))
        return jnp.where(settles, lowest, rates), fixed | settles

    flows = links.shape[1]
    start = (jnp.zeros(flows), jnp.zeros(flows, bool))
    # Every pass settles the flows of one link at least.
    return jax.lax.fori_loop(0, min(2 * endpoints, flows), fill, start)[0]
