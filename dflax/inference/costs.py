"""How long prefill and decoding take: fitted and roofline models of one instance."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float

from dflax import validation
from dflax.inference.hardware import Accelerator, Network

Tokens = Float[Array, "..."]
Seconds = Float[Array, "..."]


class Costs(NamedTuple):
    """Times of one instance, as pure functions.

    Attributes:
      prefill: `(tokens, squares) -> s` of one batch of prompts: `tokens` is the sum of their lengths
        that are still to be computed, `squares` the sum of their squares.
      decode: `(batch, context) -> s` of one iteration, in which each of `batch` sequences gets one
        token: `context` is the sum of their lengths so far. At one batch it is affine in the context.
    """

    prefill: Callable[[Tokens, Tokens], Seconds]
    decode: Callable[[Tokens, Tokens], Seconds]


def affine_costs(
    prefill: Sequence[float],
    decode: Sequence[float],
    *,
    large_decode: Sequence[float] | None = None,
    large: int | None = None,
) -> Costs:
    """Costs with fitted coefficients, in seconds.

        prefill(l)   = a + b sum l + c sum l^2
        decode(B, C) = u + v C + w B,     with coefficients of their own where B >= `large`

    Args:
      prefill: (a, b, c), >= 0 each; traceable.
      decode: (u, v, w), >= 0 each; traceable.
      large_decode: the same for large batches; default none.
      large: from which batch on, >= 1; goes with `large_decode`.

    Raises:
      TypeError, ValueError: naming the argument.
    """
    a, b, c = _three("prefill", prefill)
    small = _three("decode", decode)
    if (large is None) != (large_decode is None):
        raise ValueError("large and large_decode must be given together, or neither.")
    big = small if large_decode is None else _three("large_decode", large_decode)
    if large is not None:
        validation.integer("large", large, low=1)

    def of_decode(batch: Tokens, context: Tokens) -> Seconds:
        few = small[0] + small[1] * context + small[2] * batch
        if large is None:
            return jnp.asarray(few)
        return jnp.where(batch < large, few, big[0] + big[1] * context + big[2] * batch)

    return Costs(lambda tokens, squares: jnp.asarray(a + b * tokens + c * squares), of_decode)


# Fitted by DistServe for OPT-13B on A100s, in milliseconds, by degree of tensor parallelism.
_OPT_13B = {
    1: (
        (18.1025, 0.101912, 7.1223e-6),
        (19.9347, 6.2694e-4, 0.038507),
        (7.1662, 5.798e-4, 0.158311),
    ),
    4: (
        (12.0623, 0.0380814, 5.2262e-7),
        (10.2562, 1.8787e-4, 0.032693),
        (10.4835, 1.7121e-4, 0.045667),
    ),
}


def opt_13b_costs(tensor_parallel: int = 1) -> Costs:
    """OPT-13B on A100s, as DistServe fitted it; batches of 95 and more count as large.

    Args:
      tensor_parallel: GPUs of an instance, 1 or 4.

    Raises:
      TypeError, ValueError: another number.

    References:
      Zhong et al., DistServe, arXiv 2401.09670, and its simulator's profile.
    """
    validation.integer("tensor_parallel", tensor_parallel, low=1, high=4)
    if tensor_parallel not in _OPT_13B:
        raise ValueError(f"tensor_parallel must be 1 or 4, got {tensor_parallel}.")
    prefill, decode, large = (
        tuple(value * 1e-3 for value in part) for part in _OPT_13B[tensor_parallel]
    )
    return affine_costs(prefill, decode, large_decode=large, large=95)


def roofline_costs(network: Network, accelerator: Accelerator) -> Costs:
    """Costs bounded by arithmetic and by memory.

    With F and W the reached FLOP/s and B/s:

        prefill      = max(2 active tokens / F, weights / W) + 2 layers width squares / F
        decode(B, C) = max(2 active B / F, active weights / W) + cache_bytes C / W

    The second term of `prefill` is causal attention. Experts count as if all sequences chose the same.

    Args:
      network: see `Network`.
      accelerator: see `Accelerator`.

    Raises:
      TypeError: naming the argument.
    """
    validation.instance("network", network, Network, "Make it with dflax.inference.network.")
    validation.instance(
        "accelerator", accelerator, Accelerator, "Make it with dflax.inference.accelerator."
    )
    flops, bandwidth = accelerator.reached_flops, accelerator.reached_bandwidth

    def prefill(tokens: Tokens, squares: Tokens) -> Seconds:
        products = jnp.maximum(
            2.0 * network.active * tokens / flops, network.weight_bytes / bandwidth
        )
        return products + 2.0 * network.layers * network.width * squares / flops

    def decode(batch: Tokens, context: Tokens) -> Seconds:
        products = jnp.maximum(
            2.0 * network.active * batch / flops, network.active_bytes / bandwidth
        )
        return products + network.cache_bytes * context / bandwidth

    return Costs(prefill, decode)


def _three(name: str, value: Sequence[float]) -> list:
    coefficients = validation.sequence(name, value, "coefficients", least=3)
    if len(coefficients) != 3:
        raise ValueError(f"{name} must have three coefficients, got {len(coefficients)}.")
    for each in coefficients:
        validation.real(name, each, low=0.0, scalar=True)
    return coefficients
