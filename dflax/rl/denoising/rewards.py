"""Rewards of samples: functions in JAX, or of the host."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from dflax import validation

Reward = Callable[[Float[Array, "B ..."], Int[Array, " B"]], Float[Array, " B"]]


def black_box(function: Callable[[np.ndarray, np.ndarray], Any]) -> Reward:
    """A function of the host as a reward: a classifier, a compressor, a person's votes.

    A compiled program hands it samples and waits. It is not differentiated. Under `jax.vmap`, over
    clients or seeds, it is called once with the samples of all of them.

    Args:
      function: `(samples [B, ...], prompts [B]) -> [B]` of NumPy arrays, for any B. It must depend on
        its arguments alone: it may be called twice, or not at all. NaN says that a sample has no reward.

    Returns:
      A reward for `loop` and its kin.

    Raises:
      TypeError: naming the argument; from the program, what the function returned that is not `[B]`.
    """
    validation.function("function", function, "It gets samples and prompts.", takes=2)

    def asked(samples: Any, prompts: Any) -> np.ndarray:
        prompts, samples = np.asarray(prompts), np.asarray(samples)
        flat = samples.reshape(prompts.size, *samples.shape[prompts.ndim :])
        told = np.asarray(function(flat, prompts.reshape(-1)), samples.dtype)
        if told.shape != (prompts.size,):
            raise ValueError(
                f"function must return one reward for each of {prompts.size} samples, got the shape "
                f"{told.shape}."
            )
        return told.reshape(prompts.shape)

    def reward(samples: Float[Array, "B ..."], prompts: Int[Array, " B"]) -> Float[Array, " B"]:
        made = jax.ShapeDtypeStruct(prompts.shape, samples.dtype)
        return jax.pure_callback(asked, made, samples, prompts, vmap_method="broadcast_all")

    return reward


def rewarded(
    reward: Reward, samples: Float[Array, "B ..."], prompts: Int[Array, " B"]
) -> tuple[Float[Array, " B"], Float[Array, " B"]]:
    """Rewards, 0 where there is none, and 1 for each sample that has one."""
    told = jnp.asarray(reward(samples, prompts))
    if told.shape != prompts.shape or not jnp.issubdtype(told.dtype, jnp.floating):
        raise ValueError(
            f"reward must return real numbers of the shape {prompts.shape}, one for each sample, got "
            f"{told.dtype} of the shape {told.shape}."
        )
    told = jax.lax.stop_gradient(told.astype(jnp.promote_types(told.dtype, jnp.float32)))
    there = jnp.isfinite(told)
    return jnp.where(there, told, 0.0), there.astype(told.dtype)
