"""PPO of the coarse action: one episode, one batch."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Key

from dflax.algorithm import Metrics, Params
from dflax.rl.advantages import gae, standardised
from dflax.rl.airllm.networks import CoarsePolicy
from dflax.rl.distributions import Gaussian
from dflax.rl.surrogate import clipped


class Episode(NamedTuple):
    """What PPO learns from, leaves `[H, ...]`.

    Attributes:
      observed: `[H, D]`.
      raw: actions before the tanh, `[H, m]`.
      log_prob: of them when they were taken, without the tanh's term, which every ratio lacks.
      value: V of the observations.
      reward: of the steps.
    """

    observed: Float[Array, "H D"]
    raw: Float[Array, "H m"]
    log_prob: Float[Array, " H"]
    value: Float[Array, " H"]
    reward: Float[Array, " H"]


class Lesson(NamedTuple):
    """Constants of PPO; all but `epochs` are traceable.

    Attributes:
      discount: gamma.
      decay: lambda of the advantages.
      clip: of the ratios.
      value_weight: c_v.
      entropy_weight: c_e.
      epochs: E, static.
    """

    discount: Float[Array, ""] | float
    decay: Float[Array, ""] | float
    clip: Float[Array, ""] | float
    value_weight: Float[Array, ""] | float
    entropy_weight: Float[Array, ""] | float
    epochs: int


def said(
    policy: CoarsePolicy, params: Params, observed: Float[Array, "... D"]
) -> tuple[Gaussian, Float[Array, "..."]]:
    """The distribution of raw actions, and the value."""
    answer: Any = policy.apply({"params": params}, observed)
    return answer


def acted(
    policy: CoarsePolicy, params: Params, observed: Float[Array, " D"], key: Key[Array, ""]
) -> tuple[Float[Array, " m"], Float[Array, ""], Float[Array, ""]]:
    """A raw action, its log-probability, and the value."""
    law, value = said(policy, params, observed)
    raw = law.draw(key)
    return raw, law.log_prob(raw), value


def ppo_loss(policy: CoarsePolicy, lesson: Lesson) -> Callable[..., tuple[Array, Metrics]]:
    """`(params, episode, advantages [H], returns [H]) -> (loss, metrics)`.

    - mean min(rho A, clip(rho) A) + c_v mean (V - G)^2 - c_e entropy
    """

    def loss(
        params: Params, episode: Episode, advantages: Array, returns: Array
    ) -> tuple[Array, Metrics]:
        law, value = said(policy, params, episode.observed)
        log_ratio = law.log_prob(episode.raw) - episode.log_prob
        found = clipped(log_ratio, advantages, lesson.clip)
        policy_loss = -jnp.mean(found.objective)
        value_loss = jnp.mean(jnp.square(value - returns))
        entropy = jnp.mean(law.entropy())
        total = policy_loss + lesson.value_weight * value_loss - lesson.entropy_weight * entropy
        return total, {
            "policy_loss": policy_loss,
            "value_loss": value_loss,
            "entropy": entropy,
            "clip_fraction": found.metrics["clip_fraction"],
        }

    return loss


def estimated(episode: Episode, lesson: Lesson) -> tuple[Float[Array, " H"], Float[Array, " H"]]:
    """Advantages with mean 0 and deviation 1, and returns. The last step ends the episode."""
    ends = jnp.zeros_like(episode.reward).at[-1].set(1.0)
    # Where the last step led counts for nothing.
    found = gae(episode.reward, episode.value, ends, 0.0, lesson.discount, lesson.decay)
    return standardised(found.advantages, least=1e-6), found.returns


def learned(
    policy: CoarsePolicy,
    lesson: Lesson,
    optimizer: optax.GradientTransformation,
    params: Params,
    state: Any,
    episode: Episode,
) -> tuple[Params, Any, Metrics]:
    """E steps on the whole episode; the metrics are those of the last."""
    loss = jax.value_and_grad(ppo_loss(policy, lesson), has_aux=True)
    advantages, returns = estimated(episode, lesson)

    def one(carry: Any, _: None) -> tuple[Any, Metrics]:
        params, state = carry
        (_, metrics), slope = loss(params, episode, advantages, returns)
        changes, state = optimizer.update(slope, state, params)
        return (optax.apply_updates(params, changes), state), metrics

    after, metrics = jax.lax.scan(one, (params, state), None, length=lesson.epochs)
    return *after, jax.tree.map(lambda leaf: leaf[-1], metrics)
