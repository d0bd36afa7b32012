"""Compression by leaving out most numbers: the largest stay, or random ones."""

import jax.numpy as jnp
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Key

from dflax import counter, validation
from dflax.channel.channel import Channel, Messages
from dflax.channel.compression import compression, kept, numbers
from dflax.channel.largest import largest


def top_k(share: float) -> Channel:
    """Keeps the k = max(1, round(share d)) numbers of largest magnitude of a message, else 0.

    |x - C(x)|^2 <= (1 - k/d) |x|^2: biased, a contraction; wrap it in `error_feedback`. Encoded as k
    pairs of a 32-bit value and a place of ceil(log2 d) bits.

    Args:
      share: of the message's d numbers, all leaves together, in (0, 1]; static.

    Examples:
      >>> import jax, jax.numpy as jnp, dflax as dx
      >>> channel = dx.channel.top_k(0.5)
      >>> messages = jnp.array([[1.0, -5.0, 2.0, 0.0], [3.0, 1.0, 0.0, 4.0]])
      >>> sending = dx.channel.Sending(jax.random.key(0))
      >>> state = channel.init(messages[0])
      >>> arrived, weights, state, metrics = channel.apply(messages, jnp.ones(2), state, sending)
      >>> arrived.tolist()
      [[0.0, -5.0, 2.0, 0.0], [3.0, 0.0, 0.0, 4.0]]

    References:
      Stich, Cordonnier and Jaggi, Sparsified SGD with Memory, arXiv 1809.07599.
    """
    validation.real("share", share, low=0.0, low_open=True, high=1.0, scalar=True)
    _static("share", share)

    def compress(
        message: Messages, state: tuple[()], key: Key[Array, ""]
    ) -> tuple[Messages, tuple[()]]:
        values, unravel = ravel_pytree(message)
        chosen = largest(values, kept(share, message))
        return unravel(jnp.where(chosen, values, 0)), state

    def bits(message: Messages) -> int:
        return kept(share, message) * (32 + (numbers(message) - 1).bit_length())

    return compression(compress, bits)


def random_k(share: float, *, unbiased: bool = True) -> Channel:
    """Keeps k = max(1, round(share d)) numbers of a message at random places, else 0.

    Every sender draws its own places, anew in every round. Encoded as k 32-bit values and a 32-bit
    seed, from which the receiver draws the same places.

    Args:
      share: of the message's d numbers, all leaves together, in (0, 1]; static.
      unbiased: multiply what is kept by d / k, so that E C(x) = x, with variance (d/k - 1) |x|^2.
        Without it E |x - C(x)|^2 = (1 - k/d) |x|^2: a contraction, which `error_feedback` needs.

    References:
      Stich, Cordonnier and Jaggi, Sparsified SGD with Memory, arXiv 1809.07599.
    """
    validation.real("share", share, low=0.0, low_open=True, high=1.0, scalar=True)
    _static("share", share)
    validation.flag("unbiased", unbiased)

    def compress(
        message: Messages, state: tuple[()], key: Key[Array, ""]
    ) -> tuple[Messages, tuple[()]]:
        values, unravel = ravel_pytree(message)
        count = kept(share, message)
        chosen = largest(counter.bits(key, values.shape[0]), count)
        factor = values.shape[0] / count if unbiased else 1.0
        return unravel(jnp.where(chosen, values * factor, 0)), state

    def bits(message: Messages) -> int:
        return 32 * kept(share, message) + 32

    return compression(compress, bits)


def _static(name: str, value: object) -> None:
    if validation.is_traced(value):
        raise TypeError(
            f"{name} must be known when the program is traced, got a traced value: it decides how many "
            "numbers are sent. Sweep it with a Python loop."
        )
