"""Ways in which the owner of a task learns that it is done."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from dflax import validation

Real = float | Float[Array, ""]


class Learnt(NamedTuple):
    """How a result came.

    Attributes:
      delay: `[]` between the end of the work and the owner's knowing.
      messages: `[]` beside those of the submission.
      failed: `[]` whether it never came.
    """

    delay: Float[Array, ""]
    messages: Float[Array, ""]
    failed: Array


# `(duration since the submission [], latency [], key) -> Learnt`.
Learning = Callable[[Array, Array, Key[Array, ""]], Learnt]


def reply(timeout: Real = jnp.inf) -> Learning:
    """The result is the reply to the submission, if it comes within `timeout`.

    Args:
      timeout: > 0; traceable.

    Raises:
      TypeError, ValueError: naming the argument.
    """
    if timeout is not jnp.inf:
        validation.real("timeout", timeout, low=0.0, low_open=True, scalar=True)

    def learn(duration: Array, latency: Array, key: Key[Array, ""]) -> Learnt:
        return Learnt(jnp.asarray(latency), jnp.zeros(()), duration > timeout)

    return learn


def polling(period: Real) -> Learning:
    """The owner asks every `period`: the first poll after the end has the answer.

    Args:
      period: P > 0; traceable.

    Raises:
      TypeError, ValueError: naming the argument.
    """
    validation.real("period", period, low=0.0, low_open=True, scalar=True)

    def learn(duration: Array, latency: Array, key: Key[Array, ""]) -> Learnt:
        polls = jnp.maximum(jnp.ceil(duration / period), 1.0)
        return Learnt(polls * period - duration + 2 * latency, 2 * polls, jnp.bool_(False))

    return learn


def stream(events: int = 5) -> Learning:
    """The worker streams its progress: one message opens, one for each event, one ends.

    Args:
      events: E >= 0.

    Raises:
      TypeError, ValueError: naming the argument.
    """
    validation.integer("events", events, low=0)

    def learn(duration: Array, latency: Array, key: Key[Array, ""]) -> Learnt:
        return Learnt(jnp.asarray(latency), jnp.asarray(events + 2.0), jnp.bool_(False))

    return learn


def push(loss: Real = 0.05, *, fallback: Real = 10.0) -> Learning:
    """The worker calls back: registration, call, acknowledgement; a lost call waits for a late poll.

    Args:
      loss: probability that the owner is not there, in [0, 1]; traceable.
      fallback: period of that poll, > 0; traceable.

    Raises:
      TypeError, ValueError: naming the argument.
    """
    validation.probability("loss", loss)
    validation.real("fallback", fallback, low=0.0, low_open=True, scalar=True)
    late = polling(fallback)

    def learn(duration: Array, latency: Array, key: Key[Array, ""]) -> Learnt:
        lost = jax.random.uniform(key) < loss
        after = late(duration, latency, key)
        return Learnt(
            jnp.where(lost, after.delay, latency),
            3.0 + jnp.where(lost, 2.0, 0.0),
            jnp.bool_(False),
        )

    return learn
