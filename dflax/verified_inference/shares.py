"""Linear layers on additive secret shares: integers modulo 2^32 that say nothing alone."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key, UInt32

from dflax import validation
from dflax.data.dataset import AnyArray
from dflax.verified_inference.proofs.quantised import Layers, require_layers


def shared(
    key: Key[Array, ""], values: Int[AnyArray, "..."], *, parties: int = 2
) -> UInt32[Array, "parties ..."]:
    """Integers as shares that add up to them modulo 2^32: any parties - 1 of them are uniform.

    Args:
      key: of the shares.
      values: integers of 32 bits.
      parties: >= 2.

    Raises:
      TypeError, ValueError: naming the argument.
    """
    validation.typed_key("key", key)
    given = validation.array("values", values, kind="integer", low=-(2**31), high=2**32 - 1)
    validation.integer("parties", parties, low=2)
    own = jnp.asarray(given).astype(jnp.uint32)
    drawn = jax.random.bits(key, (parties - 1, *own.shape), jnp.uint32)
    return jnp.concatenate([drawn, (own - drawn.sum(0, dtype=jnp.uint32))[None]])


def reconstructed(shares: UInt32[AnyArray, "parties ..."]) -> Int[Array, "..."]:
    """The integers whose shares these are, with sign, `[-2^31, 2^31)`.

    Raises:
      TypeError, ValueError: naming the argument.
    """
    given = validation.array("shares", shares, kind="integer")
    if given.ndim < 1 or given.shape[0] < 2:
        raise ValueError(f"shares must be of at least two parties, got shape {given.shape}.")
    return _added(jnp.asarray(given, jnp.uint32))


def shared_linear(
    key: Key[Array, ""],
    kernel: Float[AnyArray, "i o"],
    bias: Float[AnyArray, " o"],
    inputs: Float[AnyArray, "B i"],
    *,
    fraction: int = 10,
    local: bool = False,
) -> Float[Array, "B o"]:
    """`x W + b` by two parties of whom neither sees x, in fixed point modulo 2^32.

        x = x_1 + x_2,   y_p = x_p W   mod 2^32,   y = round(y_1 + y_2, fraction bits less) + b

    The weights are known to both parties. The key holder shares x, adds up what comes back, and
    takes off the bits that the product has too many: exact, up to the rounding of x, W and half a unit
    2^-fraction.

    With `local` each party truncates its own share, as where layers follow without a key holder between
    them. That is wrong by at most one unit more, but for the probability `|y| 2^(2 fraction) /
    2^32` of an entry to be off by 2^(32 - fraction) units: 32 bits have little place for it.

    Args:
      key: of the shares.
      kernel: `[i, o]`.
      bias: `[o]`.
      inputs: `[B, i]`.
      fraction: bits after the point, in [1, 15]: entries must stay below 2^(31 - 2 fraction).
      local: whether parties truncate.

    Raises:
      TypeError, ValueError: naming the argument; entries that may be too large.
    """
    validation.typed_key("key", key)
    given = validation.array("inputs", inputs, kind="real", shape=("B", "i"))
    shape = (given.shape[1], "o")
    fix = "A row for each column of inputs."
    weights = validation.array("kernel", kernel, kind="real", shape=shape, fix=fix)
    added = validation.array("bias", bias, kind="real", shape=(weights.shape[1],))
    validation.integer("fraction", fraction, low=1, high=15)
    validation.flag("local", local)
    traced = any(map(validation.is_traced, (given, weights)))
    if not traced:
        most = (np.abs(weights).sum(0) * np.abs(given).max()).max()
        if most >= 2.0 ** (31 - 2 * fraction):
            raise ValueError(
                f"fraction must leave place for entries up to {most:.3g}, below 2^(31 - 2 fraction), "
                f"got {fraction}. Use fewer bits after the point."
            )
    return _linear(
        key, jnp.asarray(weights), jnp.asarray(added), jnp.asarray(given), fraction, local
    )


def shared_forward(
    key: Key[Array, ""], layers: Layers, inputs: Float[AnyArray, "B i"], *, fraction: int = 10
) -> Float[Array, "B o"]:
    """Dense layers, each on fresh shares; the key holder does ReLU between them, and sees activations.

    Args:
      key: of the shares.
      layers: pairs (kernel `[d_in, d_out]`, bias `[d_out]`).
      inputs: `[B, i]`.
      fraction: as for `shared_linear`.

    Raises:
      TypeError, ValueError: as `shared_linear`.
    """
    validation.typed_key("key", key)
    validation.integer("fraction", fraction, low=1, high=15)
    kernels, biases = require_layers(layers)
    given = validation.array("inputs", inputs, kind="real", shape=("B", kernels[0].shape[0]))
    x: Any = jnp.asarray(given, jnp.float32)
    for place, (kernel, bias) in enumerate(zip(kernels, biases, strict=True)):
        own = jax.random.fold_in(key, place)
        x = shared_linear(own, kernel, bias, x, fraction=fraction)
        if place < len(kernels) - 1:
            x = jax.nn.relu(x)
    return x


def truncated(shares: UInt32[Array, "2 ..."], fraction: int) -> UInt32[Array, "2 ..."]:
    """Shares of `y 2^-fraction`, each party's from its own share alone."""
    places = jnp.uint32(fraction)
    return jnp.stack([shares[0] >> places, -((-shares[1]) >> places)])


@functools.partial(jax.jit, static_argnames=("fraction", "local"))
def _linear(
    key: Array, kernel: Array, bias: Array, inputs: Array, fraction: int, local: bool
) -> Array:
    unit = 2.0**fraction
    whole = jnp.round(inputs * unit).astype(jnp.int32)
    weights = jnp.round(kernel * unit).astype(jnp.int32).astype(jnp.uint32)
    shares = shared(key, whole)
    products = jnp.einsum("pbi,io->pbo", shares, weights, preferred_element_type=jnp.uint32)
    if local:
        found = _added(truncated(products, fraction))
    else:
        half = jnp.int32((1 << fraction) >> 1)
        found = jax.lax.shift_right_arithmetic(_added(products) + half, jnp.int32(fraction))
    return (found + jnp.round(bias * unit).astype(jnp.int32)).astype(jnp.float32) / unit


def _added(shares: Array) -> Array:
    return jax.lax.bitcast_convert_type(shares.sum(0, dtype=jnp.uint32), jnp.int32)
