"""What a reward is compared with: nothing, its batch, the other samples of its prompt, a history."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp
from jaxtyping import Array

from dflax import validation
from dflax.rl.advantages import leave_one_out, standardised
from dflax.rl.denoising.history import History, statistics, written


class Baseline(NamedTuple):
    """From the rewards of M prompts with K samples each to advantages.

    Attributes:
      init: `P -> memory`, for P prompts.
      apply: `(memory, rewards [M, K], counted [M, K], prompts [M]) -> (advantages [M, K],
        counted [M, K], memory)`. A sample without a reward comes with reward 0 and counted 0; one that
        has nothing to be compared with leaves with counted 0.
      least: the smallest K that it takes (static).
    """

    init: Callable[[int], Any]
    apply: Callable[[Any, Array, Array, Array], tuple[Array, Array, Any]]
    least: int = 1


def nothing() -> Baseline:
    """REINFORCE's: A = r."""
    return _plain(lambda rewards, counted: rewards)


def batch_mean() -> Baseline:
    """A = r - mean of the batch: REINFORCE with a baseline."""
    return _plain(lambda rewards, counted: rewards - statistics(rewards, counted)[0])


def batch_statistics() -> Baseline:
    """A = (r - mean) / deviation, of the batch."""
    return _plain(lambda rewards, counted: standardised(rewards, counted))


def others() -> Baseline:
    """RLOO's: A_k = r_k - mean of the prompt's other samples, see `dflax.rl.leave_one_out`.

    References:
      Kool et al., Buy 4 REINFORCE Samples, Get a Baseline for Free, 2019; Ahmadian et al., Back to
      Basics, arXiv 2402.14740.
    """

    def apply(memory: Any, rewards: Array, counted: Array, prompts: Array) -> Any:
        beside = jnp.sum(counted, axis=1, keepdims=True) - counted
        return leave_one_out(rewards, counted), counted * (beside > 0), memory

    return Baseline(lambda prompts: (), apply, least=2)


def prompt_statistics(size: int = 16, least: int = 16) -> Baseline:
    """DDPO's per-prompt statistics: A = (r - mean) / (deviation + 1e-6), of the prompt's last rewards.

    The rewards of the round come into the history first. A prompt of fewer than `least` rewards is
    compared with the batch.

    Args:
      size: rewards that are kept for each prompt, >= 1.
      least: in [1, size].

    Raises:
      TypeError, ValueError: naming the argument.

    References:
      Black et al., Training Diffusion Models with Reinforcement Learning, arXiv 2305.13301.
    """
    validation.integer("size", size, low=1)
    validation.integer("least", least, low=1, high=size, fix="No prompt ever has more than size.")

    def init(prompts: int) -> History:
        return History(jnp.zeros((prompts, size)), jnp.zeros(prompts, jnp.int32))

    def apply(memory: History, rewards: Array, counted: Array, prompts: Array) -> Any:
        of_each = jnp.repeat(prompts, rewards.shape[1])
        memory = written(memory, rewards.reshape(-1), counted.reshape(-1) > 0, of_each)
        kept = jnp.minimum(memory.written, size)[prompts]
        present = (jnp.arange(size) < kept[:, None]).astype(rewards.dtype)
        mean, deviation = statistics(memory.rewards[prompts], present, axis=1)
        known = kept[:, None] >= least
        batch_mean, batch_deviation = statistics(rewards, counted)
        mean = jnp.where(known, mean, batch_mean)
        deviation = jnp.where(known, deviation, batch_deviation)
        return (rewards - mean) / (deviation + 1e-6), counted, memory

    return Baseline(init, apply)


def _plain(rule: Callable[[Array, Array], Array]) -> Baseline:
    """A baseline without memory."""

    def apply(memory: Any, rewards: Array, counted: Array, prompts: Array) -> Any:
        return rule(rewards, counted), counted, memory

    return Baseline(lambda prompts: (), apply)


__all__ = [
    "Baseline",
    "batch_mean",
    "batch_statistics",
    "nothing",
    "others",
    "prompt_statistics",
]


def __dir__() -> list[str]:
    return __all__
