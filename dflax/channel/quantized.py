"""Compression by few bits a number: stochastic levels, and signs."""

import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from dflax import validation
from dflax.channel.channel import Channel, Messages
from dflax.channel.compression import compression, numbers


def qsgd(levels: int, *, contracting: bool = False) -> Channel:
    """Rounds every number at random to one of 2 levels + 1 values, leaf by leaf (QSGD).

    With s levels, a leaf x of d numbers becomes

        C(x)_j = |x|_2 sign(x_j) l_j / s,     l_j = s |x_j| / |x|_2 rounded down, or up with the
                                              probability that makes E C(x) = x

    and E |C(x) - x|^2 <= omega |x|^2 with omega = min(d / s^2, sqrt(d) / s). Encoded in
    ceil(log2(2 s + 1)) bits a number (fixed width) and a 32-bit norm a leaf.

    Args:
      levels: s >= 1; 1 is ternary.
      contracting: divide by 1 + omega, so that E |C(x) - x|^2 <= omega / (1 + omega) |x|^2: what
        `error_feedback` needs. What is sent then lags by about 1 + omega messages: choose s of the
        order of sqrt(d).

    Examples:
      >>> import jax, jax.numpy as jnp, dflax as dx
      >>> channel = dx.channel.qsgd(levels=4)
      >>> messages = jnp.array([[1.0, -5.0, 2.0, 0.0], [3.0, 1.0, 0.0, 4.0]])
      >>> sending = dx.channel.Sending(jax.random.key(0))
      >>> state = channel.init(messages[0])
      >>> arrived, weights, state, metrics = channel.apply(messages, jnp.ones(2), state, sending)
      >>> arrived.shape, bool(metrics["bytes_sent"] < metrics["bytes_uncompressed"])
      ((2, 4), True)

    References:
      Alistarh et al., QSGD, arXiv 1610.02132.
    """
    validation.integer("levels", levels, low=1)
    validation.flag("contracting", contracting)

    def rounded(leaf: Array, key: Key[Array, ""]) -> Array:
        norm = jnp.sqrt(jnp.sum(jnp.square(leaf)))
        exact = levels * jnp.abs(leaf) / jnp.where(norm > 0, norm, 1)
        up = jax.random.uniform(key, leaf.shape, leaf.dtype) < exact - jnp.floor(exact)
        omega = min(leaf.size / levels**2, math.sqrt(leaf.size) / levels) if contracting else 0.0
        size = norm / (levels * (1.0 + omega))
        return size * jnp.sign(leaf) * (jnp.floor(exact) + up)

    def compress(
        message: Messages, state: tuple[()], key: Key[Array, ""]
    ) -> tuple[Messages, tuple[()]]:
        leaves, structure = jax.tree.flatten(message)
        keys = jax.random.split(key, len(leaves))
        return jax.tree.unflatten(structure, map(rounded, leaves, keys)), state

    def bits(message: Messages) -> int:
        width = (2 * levels).bit_length()
        return width * numbers(message) + 32 * len(jax.tree.leaves(message))

    return compression(compress, bits)


def sign(*, scaled: bool = True) -> Channel:
    """Sends one bit a number: its sign, with 0 for positive.

    `C(x)_j = (|x|_1 / d) sign(x_j)` leaf by leaf, a contraction:
    |x - C(x)|^2 = (1 - |x|_1^2 / (d |x|_2^2)) |x|^2. Encoded in 1 bit a number and, scaled, a 32-bit
    scale a leaf.

    Args:
      scaled: False sends -1 and 1, for `dflax.aggregation.majority_vote`.

    References:
      Bernstein et al., signSGD, arXiv 1802.04434; Karimireddy et al., Error Feedback Fixes SignSGD,
      arXiv 1901.09847 (the scale).
    """
    validation.flag("scaled", scaled)

    def one_bit(leaf: Float[Array, "..."]) -> Float[Array, "..."]:
        size = jnp.mean(jnp.abs(leaf)) if scaled else jnp.ones((), leaf.dtype)
        return jnp.where(leaf >= 0, size, -size)

    def compress(
        message: Messages, state: tuple[()], key: Key[Array, ""]
    ) -> tuple[Messages, tuple[()]]:
        return jax.tree.map(one_bit, message), state

    def bits(message: Messages) -> int:
        return numbers(message) + (32 * len(jax.tree.leaves(message)) if scaled else 0)

    return compression(compress, bits)
