"""Replicas of the experts that get most tokens."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from dflax import validation


def routed_loads(chosen: Int[Array, "..."], experts: int) -> Float[Array, " E"]:
    """How many pairs of a token and an expert each expert has.

    Args:
      chosen: numbers of experts, of any shape.
      experts: E >= 1.

    Raises:
      TypeError, ValueError: naming the argument.
    """
    validation.integer("experts", experts, low=1, high=1 << 20)
    given = validation.array("chosen", chosen, kind="integer", low=0, high=experts - 1)
    numbers = jnp.ravel(jnp.asarray(given, jnp.int32))
    return jax.ops.segment_sum(jnp.ones(numbers.shape), numbers, experts)


def balanced(loads: Float[Array, " E"], spares: int) -> Int[Array, " E"]:
    """Copies of each expert: the one with the largest load a copy gets another, `spares` times.

    Args:
      loads: `[E]` tokens of each expert, >= 0.
      spares: slots beside one for each expert, >= 0.

    Returns:
      `[E]` int32, >= 1, of sum E + spares. The busiest copy's load is the least that any copies of
      that number can have.

    Raises:
      TypeError, ValueError: naming the argument.
    """
    given = jnp.asarray(validation.array("loads", loads, kind="real", shape=("E",), low=0.0))
    validation.integer("spares", spares, low=0, high=1 << 20)

    def one(_: int, copies: Int[Array, " E"]) -> Int[Array, " E"]:
        return copies.at[jnp.argmax(given / copies)].add(1)

    return jax.lax.fori_loop(0, spares, one, jnp.ones(given.shape, jnp.int32))


def imbalance(loads: Float[Array, " E"], copies: Int[Array, " E"]) -> Float[Array, ""]:
    """Lambda, by which the busiest slot prolongs a step: its load over the mean of all slots, >= 1.

        lambda = max_e (load_e / copies_e) / (sum_e load_e / sum_e copies_e)

    1 is a perfect balance; without a token it is 1.

    Args:
      loads: `[E]` tokens of each expert, >= 0.
      copies: `[E]` slots that share them, >= 1.

    Raises:
      TypeError, ValueError: naming the argument.
    """
    given = jnp.asarray(validation.array("loads", loads, kind="real", shape=("E",), low=0.0))
    slots = jnp.asarray(
        validation.array("copies", copies, kind="integer", shape=given.shape, low=1)
    )
    mean = jnp.sum(given) / jnp.sum(slots)
    return jnp.where(mean > 0, jnp.max(given / slots) / jnp.where(mean > 0, mean, 1.0), 1.0)
