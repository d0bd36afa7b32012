"""Accelerators and networks by the few numbers that bound their speed, energy and price."""

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float

from dflax import validation

Real = float | Float[Array, "..."]


class Accelerator(NamedTuple):
    """What one device can do at most, and what it reaches. From `accelerator`.

    Attributes:
      flops: peak, FLOP/s.
      bandwidth: of its memory, B/s.
      memory: B.
      price: $ an hour.
      idle_watts: W when nothing runs.
      peak_watts: W when all of it is busy.
      compute_efficiency: share of the peak FLOP/s that a product reaches, in (0, 1].
      memory_efficiency: share of the bandwidth that a read reaches, in (0, 1].
    """

    flops: Real
    bandwidth: Real
    memory: Real
    price: Real
    idle_watts: Real
    peak_watts: Real
    compute_efficiency: Real
    memory_efficiency: Real

    @property
    def reached_flops(self) -> Real:
        """FLOP/s that products reach."""
        return self.compute_efficiency * self.flops

    @property
    def reached_bandwidth(self) -> Real:
        """B/s that reads reach."""
        return self.memory_efficiency * self.bandwidth


def accelerator(
    flops: Real,
    bandwidth: Real,
    memory: Real,
    *,
    price: Real = 0.0,
    idle_watts: Real = 0.0,
    peak_watts: Real = 0.0,
    compute_efficiency: Real = 0.45,
    memory_efficiency: Real = 0.7,
) -> Accelerator:
    """An accelerator; every number may be an array, so that many designs are one.

    Args:
      flops: peak, FLOP/s, > 0; traceable, as all others.
      bandwidth: of its memory, B/s, > 0.
      memory: B, > 0.
      price: $ an hour, >= 0.
      idle_watts: W when nothing runs, >= 0.
      peak_watts: W when all of it is busy, >= 0.
      compute_efficiency: share of the peak FLOP/s that a product reaches, in (0, 1].
      memory_efficiency: share of the bandwidth that a read reaches, in (0, 1].

    Raises:
      TypeError, ValueError: naming the argument.
    """
    for name, value in (("flops", flops), ("bandwidth", bandwidth), ("memory", memory)):
        validation.real(name, value, low=0.0, low_open=True)
    for name, value in (("price", price), ("idle_watts", idle_watts), ("peak_watts", peak_watts)):
        validation.real(name, value, low=0.0)
    validation.real("compute_efficiency", compute_efficiency, low=0.0, high=1.0, low_open=True)
    validation.real("memory_efficiency", memory_efficiency, low=0.0, high=1.0, low_open=True)
    return Accelerator(
        flops,
        bandwidth,
        memory,
        price,
        idle_watts,
        peak_watts,
        compute_efficiency,
        memory_efficiency,
    )


class Network(NamedTuple):
    """A decoder-only language model by its sizes. From `network`.

    Attributes:
      parameters: how many it holds.
      active: how many of them a token passes.
      layers: transformer blocks.
      width: of the residual stream.
      cache_bytes: B of keys and values of one token, over all layers.
      parameter_bytes: B of one parameter.
    """

    parameters: Real
    active: Real
    layers: Real
    width: Real
    cache_bytes: Real
    parameter_bytes: Real

    @property
    def weight_bytes(self) -> Real:
        """B of all parameters."""
        return self.parameter_bytes * self.parameters

    @property
    def active_bytes(self) -> Real:
        """B of the parameters that a token passes."""
        return self.parameter_bytes * self.active


def network(
    parameters: Real,
    cache_bytes: Real,
    *,
    active: Real | None = None,
    layers: Real = 0.0,
    width: Real = 0.0,
    parameter_bytes: Real = 2.0,
) -> Network:
    """A network; every number may be an array, so that many designs are one.

    Args:
      parameters: > 0; traceable, as all others.
      cache_bytes: B of keys and values of one token, over all layers, >= 0.
      active: parameters that a token passes, > 0; default all.
      layers: transformer blocks, >= 0. With `width` they count the attention of prefill, which is
        left out where either is 0.
      width: of the residual stream, >= 0.
      parameter_bytes: B of one parameter, > 0.

    Raises:
      TypeError, ValueError: naming the argument.
    """
    validation.real("parameters", parameters, low=0.0, low_open=True)
    validation.real("cache_bytes", cache_bytes, low=0.0)
    if active is not None:
        validation.real("active", active, low=0.0, low_open=True)
    validation.real("layers", layers, low=0.0)
    validation.real("width", width, low=0.0)
    validation.real("parameter_bytes", parameter_bytes, low=0.0, low_open=True)
    passed = parameters if active is None else active
    return Network(parameters, passed, layers, width, cache_bytes, parameter_bytes)


def cache_tokens(network: Network, accelerator: Accelerator) -> Float[Array, "..."]:
    """How many tokens' keys and values fit beside the weights: (memory - weights) / cache_bytes, >= 0.

    Raises:
      TypeError: naming the argument.
    """
    validation.instance("network", network, Network)
    validation.instance("accelerator", accelerator, Accelerator)
    left = jnp.maximum(accelerator.memory - network.weight_bytes, 0.0)
    return jnp.where(
        network.cache_bytes > 0, left / jnp.maximum(network.cache_bytes, 1e-30), jnp.inf
    )


def power(accelerator: Accelerator, utilisation: Real) -> Float[Array, "..."]:
    """W at a utilisation: idle + (peak - idle) utilisation.

    Args:
      accelerator: see `Accelerator`.
      utilisation: share of the time that it is busy, in [0, 1]; traceable.

    Raises:
      TypeError, ValueError: naming the argument.
    """
    validation.instance("accelerator", accelerator, Accelerator)
    validation.real("utilisation", utilisation, low=0.0, high=1.0)
    spread = accelerator.peak_watts - accelerator.idle_watts
    return jnp.asarray(accelerator.idle_watts + spread * jnp.asarray(utilisation))


class Spent(NamedTuple):
    """What a span of time cost.

    Attributes:
      joules: energy.
      dollars: price.
    """

    joules: Float[Array, "..."]
    dollars: Float[Array, "..."]


def spent(accelerator: Accelerator, busy: Real, span: Real) -> Spent:
    """Energy and price of `span` seconds of which `busy` were busy: P(busy / span) span.

    Args:
      accelerator: see `Accelerator`.
      busy: s, >= 0; what exceeds `span` counts as `span`; traceable.
      span: s, > 0; traceable.

    Raises:
      TypeError, ValueError: naming the argument.
    """
    validation.instance("accelerator", accelerator, Accelerator)
    validation.real("busy", busy, low=0.0)
    validation.real("span", span, low=0.0, low_open=True)
    seconds = jnp.asarray(span)
    watts = power(accelerator, jnp.clip(jnp.asarray(busy) / seconds, 0.0, 1.0))
    return Spent(watts * seconds, accelerator.price * seconds / 3600.0)
