"""Which experts are asked for a sample's velocity, and how much each counts."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from dflax import validation
from dflax.data.dataset import AnyArray


class Rule(NamedTuple):
    """A rule of inference.

    Attributes:
      weigh: `(key, probabilities [B, K]) -> weights [B, K]`, rows that sum to 1.
      active: how many experts of a sample have a weight, at most; None where that is not known before.
      routed: whether probabilities are looked at.
    """

    weigh: Callable[[Key[Array, ""], Float[Array, "B K"]], Float[Array, "B K"]]
    active: int | None = None
    routed: bool = True


def full() -> Rule:
    """Every expert, by the router's probability: exact for exact experts and routers."""
    return Rule(lambda key, probabilities: probabilities)


def top(k: int = 1) -> Rule:
    """The k most likely experts, their probabilities scaled to 1.

    Args:
      k: in [1, K]; K is `full`.

    Raises:
      TypeError, ValueError: naming the argument; when traced, a k above K.
    """
    validation.integer("k", k, low=1)

    def weigh(key: Key[Array, ""], probabilities: Float[Array, "B K"]) -> Float[Array, "B K"]:
        if k > probabilities.shape[1]:
            raise ValueError(f"k must be at most the {probabilities.shape[1]} experts, got {k}.")
        return _kept(probabilities, _ranks(probabilities) < k)

    return Rule(weigh, active=k)


def threshold(tau: float | Float[Array, ""]) -> Rule:
    """All experts of a probability of at least tau, and always the most likely one; scaled to 1.

    Args:
      tau: in [0, 1]; 0 is `full`, 1 is `top(1)`; traceable.

    Raises:
      TypeError, ValueError: naming the argument.
    """
    validation.probability("tau", tau)

    def weigh(key: Key[Array, ""], probabilities: Float[Array, "B K"]) -> Float[Array, "B K"]:
        return _kept(probabilities, (probabilities >= tau) | (_ranks(probabilities) == 0))

    return Rule(weigh)


def nucleus(p: float | Float[Array, ""]) -> Rule:
    """The fewest of the most likely experts whose probabilities add up to at least p; scaled to 1.

    Args:
      p: in [0, 1]; 1 is `full`, 0 is `top(1)`; traceable.

    Raises:
      TypeError, ValueError: naming the argument.
    """
    validation.probability("p", p)

    def weigh(key: Key[Array, ""], probabilities: Float[Array, "B K"]) -> Float[Array, "B K"]:
        ranks = _ranks(probabilities)
        above = ranks[:, None, :] < ranks[:, :, None]
        before = jnp.sum(jnp.where(above, probabilities[:, None, :], 0.0), axis=2)
        return _kept(probabilities, (before < p) | (ranks == 0))

    return Rule(weigh)


def sampled() -> Rule:
    """One expert, drawn by the router's probabilities afresh at every step.

    Its mean is `full`; a step of length h adds the variance h^2 Var_w(v_k).
    """

    def weigh(key: Key[Array, ""], probabilities: Float[Array, "B K"]) -> Float[Array, "B K"]:
        chosen = jax.random.categorical(key, jnp.log(probabilities), axis=1)
        return jax.nn.one_hot(chosen, probabilities.shape[1], dtype=probabilities.dtype)

    return Rule(weigh, active=1)


def oracle(labels: Int[AnyArray, " B"]) -> Rule:
    """The expert of each sample's true cluster, the whole trajectory long; no router is asked.

    Args:
      labels: `[B]` cluster numbers.

    Raises:
      TypeError, ValueError: naming the argument.
    """
    given = validation.array("labels", labels, kind="integer", shape=("B",), low=0)

    def weigh(key: Key[Array, ""], probabilities: Float[Array, "B K"]) -> Float[Array, "B K"]:
        if given.shape != probabilities.shape[:1]:
            raise ValueError(
                f"labels must be one for each of the {probabilities.shape[0]} samples, got "
                f"{given.shape[0]}."
            )
        return jax.nn.one_hot(jnp.asarray(given), probabilities.shape[1], dtype=probabilities.dtype)

    return Rule(weigh, active=1, routed=False)


def _ranks(probabilities: Float[Array, "B K"]) -> Int[Array, "B K"]:
    """How many experts come before each: the more likely ones, of equal ones the first."""
    theirs, own = probabilities[:, None, :], probabilities[:, :, None]
    first = jnp.tri(probabilities.shape[1], k=-1, dtype=bool)
    return jnp.sum((theirs > own) | ((theirs == own) & first), axis=2)


def _kept(probabilities: Float[Array, "B K"], keep: Array) -> Float[Array, "B K"]:
    weights = jnp.where(keep, probabilities, 0.0)
    return weights / weights.sum(1, keepdims=True)
