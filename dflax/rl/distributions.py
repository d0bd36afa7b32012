"""Distributions of actions: what a policy makes of an observation."""

import math
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key


class Distribution(Protocol):
    """What PPO asks of a policy's output; a pytree whose leaves lead with the batch's axes."""

    def draw(self, key: Key[Array, ""]) -> Array:
        """An action for each row."""

    def log_prob(self, action: Array) -> Float[Array, "..."]:
        """The logarithm of its probability, or density."""

    def entropy(self) -> Float[Array, "..."]:
        """In nats."""

    def mode(self) -> Array:
        """The most probable action."""


class Categorical(NamedTuple):
    """One of N actions, by logits.

    Several independent choices at a time are one more axis before the last; `log_prob` and `entropy`
    are then each choice's own, see `Joint`.

    Attributes:
      logits: `[..., N]`, not normalised.
    """

    logits: Float[Array, "... N"]

    def draw(self, key: Key[Array, ""]) -> Int[Array, "..."]:
        """`[...]` int32."""
        return jax.random.categorical(key, self.logits).astype(jnp.int32)

    def log_prob(self, action: Int[Array, "..."]) -> Float[Array, "..."]:
        """`[...]`."""
        chosen = jnp.take_along_axis(self.logits, action[..., None].astype(jnp.int32), axis=-1)
        return chosen[..., 0] - jax.nn.logsumexp(self.logits, axis=-1)

    def entropy(self) -> Float[Array, "..."]:
        """`[...]`."""
        logs = jax.nn.log_softmax(self.logits)
        return -jnp.sum(jnp.exp(logs) * logs, axis=-1)

    def mode(self) -> Int[Array, "..."]:
        """`[...]` int32."""
        return jnp.argmax(self.logits, axis=-1).astype(jnp.int32)


class Gaussian(NamedTuple):
    """Independent normal numbers along the last axis: one action of D numbers.

    Attributes:
      mean: `[..., D]`.
      log_deviation: `[..., D]`, or broadcast against it: `[D]` for one that no state changes.
    """

    mean: Float[Array, "... D"]
    log_deviation: Float[Array, "... D"]

    def draw(self, key: Key[Array, ""]) -> Float[Array, "... D"]:
        """`[..., D]`."""
        noise = jax.random.normal(key, self.mean.shape, self.mean.dtype)
        return self.mean + jnp.exp(self.log_deviation) * noise

    def log_prob(self, action: Float[Array, "... D"]) -> Float[Array, "..."]:
        """`[...]`, the sum over the D numbers."""
        z = (action - self.mean) * jnp.exp(-self.log_deviation)
        each = -0.5 * z**2 - self.log_deviation - 0.5 * math.log(2 * math.pi)
        return jnp.sum(each, axis=-1)

    def entropy(self) -> Float[Array, "..."]:
        """`[...]`, the sum over the D numbers."""
        each = self.log_deviation + 0.5 * math.log(2 * math.pi * math.e)
        return jnp.sum(jnp.broadcast_to(each, self.mean.shape), axis=-1)

    def mode(self) -> Float[Array, "... D"]:
        """The mean."""
        return self.mean


class Joint(NamedTuple):
    """Several independent choices as one: log-probabilities and entropies added over the last axis.

    Attributes:
      choices: a distribution with an axis of choices, such as `Categorical` of logits `[..., J, N]`.
    """

    choices: Any

    def draw(self, key: Key[Array, ""]) -> Array:
        """`[..., J]`."""
        return self.choices.draw(key)

    def log_prob(self, action: Array) -> Float[Array, "..."]:
        """`[...]`."""
        return jnp.sum(self.choices.log_prob(action), axis=-1)

    def entropy(self) -> Float[Array, "..."]:
        """`[...]`."""
        return jnp.sum(self.choices.entropy(), axis=-1)

    def mode(self) -> Array:
        """`[..., J]`."""
        return self.choices.mode()
