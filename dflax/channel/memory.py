"""What a sender remembers, so that nothing that was left out is lost for good."""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from dflax import validation
from dflax.algorithm import Metrics
from dflax.channel.channel import Channel, Messages, Sending


def error_feedback(channel: Channel) -> Channel:
    """What a message loses on the way is added to the sender's next one.

    With the sender's memory e, 0 at first, of a message x:

        sent = C(x + e),     e = x + e - sent

    so that after any number of messages `sum sent + e = sum x`: everything arrives in the end, if C is
    a contraction, |y - C(y)| <= (1 - delta) |y|. Memories of those who do not send stay as they are.

    Args:
      channel: C, for example `top_k(0.01)`, `sign()` or `powersgd(2)`; of unbiased compressors the
        contracting form. A message that it drops is sent again with the next.

    Returns:
      A channel with memory, so algorithms with a server need `clients`. Messages must be changes
      that add up; for models, as gossip sends them, see `differences`.

    Raises:
      TypeError: `channel` is no `Channel`.

    Examples:
      >>> import jax, jax.numpy as jnp, dflax as dx
      >>> channel = dx.channel.error_feedback(dx.channel.top_k(0.5))
      >>> messages, sending = jnp.array([[3.0, 1.0]]), dx.channel.Sending(jax.random.key(0))
      >>> state = jax.vmap(channel.init)(messages)
      >>> first, _, state, _ = channel.apply(messages, jnp.ones(1), state, sending)
      >>> second, _, state, _ = channel.apply(jnp.zeros((1, 2)), jnp.ones(1), state, sending)
      >>> first.tolist(), second.tolist()  # what was left out comes next
      ([[3.0, 0.0]], [[0.0, 1.0]])

    References:
      Seide et al., 1-bit SGD, Interspeech 2014; Karimireddy et al., Error Feedback Fixes SignSGD,
      arXiv 1901.09847; Stich et al., Sparsified SGD with Memory, arXiv 1809.07599.
    """
    _require(channel)

    def init(message: Messages) -> tuple[Messages, Any]:
        return jax.tree.map(jnp.zeros_like, message), channel.init(message)

    def apply(
        messages: Messages, weights: Float[Array, " m"], state: Any, sending: Sending
    ) -> tuple[Messages, Float[Array, " m"], Any, Metrics]:
        errors, inner = state
        owed = jax.tree.map(jnp.add, messages, errors)
        sent, weights, inner, metrics = channel.apply(owed, weights, inner, sending)
        return sent, weights, (jax.tree.map(jnp.subtract, owed, sent), inner), metrics

    return Channel(init, apply)


def differences(channel: Channel, *, known_start: bool = False) -> Channel:
    """Sends only how a message differs from what the receivers already know of its sender.

    With h, the copy of the sender's message that everyone holds, 0 at first:

        h = h + C(x - h),     what arrives is h

    If messages settle, so do the copies, with nothing left out in the end: for models in gossip, and
    for changes the error feedback known as EF21.

    Args:
      channel: C, a contraction, for example `top_k(0.1)`.
      known_start: take the copies for the message that the state was made with: right for gossip from
        one common model, which all clients know. Algorithms with a server make it with the model
        where messages are changes: leave it False there.

    Returns:
      A channel with memory.

    Raises:
      TypeError: naming the argument.

    References:
      Richtarik, Sokolov and Fatkhullin, EF21, arXiv 2106.05203; Koloskova, Stich and Jaggi,
      Decentralized Stochastic Optimization and Gossip with Compressed Communication, arXiv 1902.00340.
    """
    _require(channel)
    validation.flag("known_start", known_start)

    def init(message: Messages) -> tuple[Messages, Any]:
        begin = jnp.asarray if known_start else jnp.zeros_like
        return jax.tree.map(begin, message), channel.init(message)

    def apply(
        messages: Messages, weights: Float[Array, " m"], state: Any, sending: Sending
    ) -> tuple[Messages, Float[Array, " m"], Any, Metrics]:
        copies, inner = state
        news = jax.tree.map(jnp.subtract, messages, copies)
        heard, weights, inner, metrics = channel.apply(news, weights, inner, sending)
        copies = jax.tree.map(jnp.add, copies, heard)
        return copies, weights, (copies, inner), metrics

    return Channel(init, apply)


def _require(channel: Channel) -> None:
    validation.instance("channel", channel, Channel, "For example dflax.channel.top_k(0.01).")
