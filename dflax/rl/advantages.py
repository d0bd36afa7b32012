"""From rewards to advantages: returns, generalised advantage estimation, leave-one-out baselines."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from dflax import validation
from dflax.data.dataset import AnyArray


class Estimate(NamedTuple):
    """What `gae` makes of a rollout.

    Attributes:
      advantages: `[T, ...]`.
      returns: `[T, ...]`, advantages plus values: what the critic is to learn.
    """

    advantages: Float[Array, "T ..."]
    returns: Float[Array, "T ..."]


def discounted_returns(
    rewards: Float[AnyArray, "T ..."],
    ends: Float[AnyArray, "T ..."],
    discount: float | Float[Array, ""],
    *,
    beyond: float | Float[Array, "..."] = 0.0,
) -> Float[Array, "T ..."]:
    """Discounted sums of what comes: `G_t = r_t + gamma (1 - end_t) G_{t+1}`.

    Args:
      rewards: `[T, ...]`.
      ends: `[T, ...]`, whether an episode ends with this step; booleans, or numbers in [0, 1].
      discount: gamma in [0, 1]; traceable.
      beyond: `[...]`, `G_T`: the value of where the last step led.

    Raises:
      TypeError, ValueError: naming the argument.
    """
    steps, done = _steps(rewards, ends=ends)
    validation.probability("discount", discount)

    def one(later: Array, row: Any) -> tuple[Array, Array]:
        now = row[0] + discount * (1.0 - row[1]) * later
        return now, now

    return jax.lax.scan(one, _beyond(beyond, steps), (steps, done), reverse=True)[1]


def gae(
    rewards: Float[AnyArray, "T ..."],
    values: Float[AnyArray, "T ..."],
    ends: Float[AnyArray, "T ..."],
    beyond: float | Float[AnyArray, "..."],
    discount: float | Float[Array, ""],
    decay: float | Float[Array, ""],
) -> Estimate:
    """Generalised advantage estimation.

        delta_t = r_t + gamma (1 - end_t) V_{t+1} - V_t
        A_t     = delta_t + gamma lambda (1 - end_t) A_{t+1}

    Args:
      rewards: `[T, ...]`. Where a time limit ended an episode, add `gamma V` of where it led to.
      values: `[T, ...]`, V of the states that the steps started from.
      ends: `[T, ...]`, whether an episode ends with this step; booleans, or numbers in [0, 1].
      beyond: `[...]`, V of where the last step led.
      discount: gamma in [0, 1]; traceable.
      decay: lambda in [0, 1]; traceable. 0: one step; 1: returns minus values.

    Raises:
      TypeError, ValueError: naming the argument.

    References:
      Schulman et al., High-Dimensional Continuous Control Using Generalized Advantage Estimation,
      arXiv 1506.02438.
    """
    steps, done, baseline = _steps(rewards, ends=ends, values=values)
    validation.probability("discount", discount)
    validation.probability("decay", decay)
    last = _beyond(beyond, baseline)

    def one(carry: Any, row: Any) -> tuple[Any, Array]:
        later, following = carry
        reward, end, value = row
        kept = discount * (1.0 - end)
        advantage = reward + kept * following - value + kept * decay * later
        return (advantage, value), advantage

    rows: Any = (steps, done, baseline)
    start: Any = (jnp.zeros_like(last), last)
    _, advantages = jax.lax.scan(one, start, rows, reverse=True)
    return Estimate(advantages, advantages + baseline)


def leave_one_out(
    rewards: Float[AnyArray, "... K"], weights: Float[AnyArray, "... K"] | None = None
) -> Float[Array, "... K"]:
    """How much better each member of a group did than the mean of the others.

        A_k = r_k - sum_{j != k} w_j r_j / sum_{j != k} w_j
            = K/(K - 1) (r_k - mean r)                        where all count alike

    Args:
      rewards: `[..., K]`, the last axis a group that started alike, such as answers to one prompt.
      weights: w, of the same shape, >= 0: 0 for members that are missing; None: all alike. Who has no
        others gets 0.

    Raises:
      TypeError, ValueError: naming the argument; a group of one, which leaves no baseline.
    """
    validation.array("rewards", rewards, kind="real")
    if not jnp.ndim(rewards) or jnp.shape(rewards)[-1] < 2:
        raise ValueError(
            f"rewards must have groups of at least 2 along their last axis, got the shape "
            f"{jnp.shape(rewards)}: leaving one out of a group of one leaves no baseline. Draw "
            "several samples of each prompt."
        )
    rewards = floating(rewards)
    size = rewards.shape[-1]
    if weights is None:
        return size / (size - 1) * (rewards - jnp.mean(rewards, axis=-1, keepdims=True))
    counted = weights_like("weights", weights, rewards)
    # Sums over the others, not differences of sums: nothing cancels.
    others = counted[..., None, :] * (1.0 - jnp.eye(size, dtype=counted.dtype))
    total = jnp.sum(others, axis=-1)
    baseline = jnp.sum(others * rewards[..., None, :], axis=-1) / jnp.maximum(total, 1e-30)
    return jnp.where(total > 0, rewards - baseline, 0.0)


def standardised(
    advantages: Float[AnyArray, "..."],
    weights: Float[AnyArray, "..."] | None = None,
    *,
    least: float = 1e-8,
) -> Float[Array, "..."]:
    """Advantages with mean 0 and deviation 1: `(A - mean) / (deviation + least)`, over all axes.

    Args:
      advantages: of any shape.
      weights: of the same shape, >= 0: how much each step counts; None: all alike.
      least: added to the deviation, > 0.

    Raises:
      TypeError, ValueError: naming the argument.
    """
    validation.real("advantages", advantages)
    validation.real("least", least, low=0.0, low_open=True, scalar=True)
    values = floating(advantages)
    counted = weights_like("weights", weights, values)
    total = jnp.maximum(jnp.sum(counted), 1e-30)
    centred = values - jnp.sum(counted * values) / total
    variance = jnp.sum(counted * centred**2) / total
    return centred / (jnp.sqrt(variance) + least)


def weights_like(name: str, weights: Any, values: Array) -> Array:
    """Weights >= 0 of the shape of the values; ones for None."""
    if weights is None:
        return jnp.ones_like(values)
    validation.real(name, weights, low=0.0)
    if jnp.shape(weights) != values.shape:
        raise ValueError(
            f"{name} must have the shape {values.shape}, one number for each sample, got "
            f"{jnp.shape(weights)}."
        )
    return floating(weights)


def floating(value: Any) -> Array:
    """As an array in float32 or wider."""
    array = jnp.asarray(value)
    return array.astype(jnp.promote_types(array.dtype, jnp.float32))


def _steps(rewards: Any, **others: Any) -> list[Any]:
    """Steps as arrays in floating point, all of the shape of the rewards."""
    validation.array("rewards", rewards, kind="real")
    shape = jnp.shape(rewards)
    if not shape or not shape[0]:
        raise ValueError(f"rewards must have the shape [T, ...] with T >= 1 steps, got {shape}.")
    for name, value in others.items():
        boolean = getattr(value, "dtype", None) is np.dtype(bool)
        validation.array(name, value, kind="boolean" if boolean else "real")
        if jnp.shape(value) != shape:
            raise ValueError(
                f"{name} must have the shape of rewards, {shape}, got {jnp.shape(value)}."
            )
    return [floating(value) for value in (rewards, *others.values())]


def _beyond(value: Any, steps: Array) -> Array:
    """The value of where the last step led, for each row of steps."""
    validation.real("beyond", value)
    if jnp.shape(value) not in ((), steps.shape[1:]):
        raise ValueError(
            f"beyond must be one number or have the shape {steps.shape[1:]}, got {jnp.shape(value)}."
        )
    return jnp.broadcast_to(jnp.asarray(value, steps.dtype), steps.shape[1:])
