"""LOOP and what it is compared with: REINFORCE, RLOO, and DDPO's PPO."""

from typing import Any

from jaxtyping import Array, Float

from dflax import validation
from dflax.algorithm import Algorithm
from dflax.local.solver import Optimizer
from dflax.rl.denoising import baselines
from dflax.rl.denoising.policy import DenoisingPolicy
from dflax.rl.denoising.rewards import Reward
from dflax.rl.denoising.tuning import fine_tuning


def reinforce(
    policy: DenoisingPolicy,
    reward: Reward,
    optimizer: Optimizer | None = None,
    *,
    prompts: int = 256,
    samples: int = 1,
    baseline: bool = False,
    **options: Any,
) -> Algorithm:
    """REINFORCE on a sampler, one step a round along the mean of `r grad log p(x_{t-1} | x_t, c)`.

    Args:
      policy: see `denoising_policy`.
      reward: see `fine_tuning`.
      optimizer: see `fine_tuning`.
      prompts: M >= 1.
      samples: K >= 1.
      baseline: whether the mean reward of the batch is taken off, REINFORCE+BC.
      **options: of `fine_tuning`: `scaled`, `bound`, `trained_steps`, `steps_at_once`, `clients`,
        `aggregator`, `channel`, `at_once`.

    Returns:
      As `fine_tuning`.

    Raises:
      TypeError, ValueError: naming the argument.
    """
    validation.flag("baseline", baseline)
    rule = baselines.batch_mean() if baseline else baselines.nothing()
    return fine_tuning(policy, reward, rule, optimizer, prompts=prompts, samples=samples, **options)


def rloo(
    policy: DenoisingPolicy,
    reward: Reward,
    optimizer: Optimizer | None = None,
    *,
    prompts: int = 64,
    samples: int = 4,
    **options: Any,
) -> Algorithm:
    """REINFORCE whose baseline is the mean of the prompt's other samples, one step a round.

        A_k = r_k - 1/(K - 1) sum_{j != k} r_j

    Args:
      policy: see `denoising_policy`.
      reward: see `fine_tuning`.
      optimizer: see `fine_tuning`.
      prompts: M >= 1.
      samples: K >= 2.
      **options: of `fine_tuning`, as for `reinforce`.

    Returns:
      As `fine_tuning`.

    Raises:
      TypeError, ValueError: naming the argument; one sample a prompt.

    References:
      Kool et al., Buy 4 REINFORCE Samples, Get a Baseline for Free, 2019.
    """
    rule = baselines.others()
    return fine_tuning(policy, reward, rule, optimizer, prompts=prompts, samples=samples, **options)


def ddpo(
    policy: DenoisingPolicy,
    reward: Reward,
    optimizer: Optimizer | None = None,
    *,
    prompts: int = 256,
    samples: int = 1,
    clip: float | Float[Array, ""] = 0.2,
    statistics: baselines.Baseline | None = None,
    bound: float | Float[Array, ""] | None = 5.0,
    minibatches: int = 2,
    **options: Any,
) -> Algorithm:
    """PPO on a sampler (DDPO-IS): normalised rewards in the clipped objective of each denoising step.

    Args:
      policy: see `denoising_policy`.
      reward: see `fine_tuning`.
      optimizer: see `fine_tuning`.
      prompts: M >= 1.
      samples: K >= 1.
      clip: eps > 0; DDPO's code takes 1e-4 with log-probabilities that are means; traceable.
      statistics: how rewards are normalised: by default `dflax.rl.baselines.batch_statistics()`;
        `prompt_statistics()` is by each prompt's history.
      bound: of |A|, > 0; None for none; traceable.
      minibatches: optimiser steps an epoch.
      **options: of `fine_tuning`, as for `reinforce`, with `epochs` and `pessimistic`.

    Returns:
      As `fine_tuning`.

    Raises:
      TypeError, ValueError: naming the argument.

    References:
      Black et al., Training Diffusion Models with Reinforcement Learning, arXiv 2305.13301.
    """
    if statistics is not None:
        fix = "For example dflax.rl.baselines.prompt_statistics()."
        validation.instance("statistics", statistics, baselines.Baseline, fix)
    _require_clip(clip)
    return fine_tuning(
        policy,
        reward,
        baselines.batch_statistics() if statistics is None else statistics,
        optimizer,
        prompts=prompts,
        samples=samples,
        clip=clip,
        bound=bound,
        minibatches=minibatches,
        **options,
    )


def loop(
    policy: DenoisingPolicy,
    reward: Reward,
    optimizer: Optimizer | None = None,
    *,
    prompts: int = 64,
    samples: int = 4,
    clip: float | Float[Array, ""] = 0.2,
    pessimistic: bool = True,
    minibatches: int = 4,
    epochs: int = 1,
    **options: Any,
) -> Algorithm:
    """Leave-one-out PPO (LOOP): RLOO's advantages in PPO's objective: samples serve several steps.

        max  1/(M K T) sum_{c, k, t} min(q_t^k A_k, clip(q_t^k, 1 - eps, 1 + eps) A_k)
        q_t^k = p_theta(x_{t-1}^k | x_t^k, c) / p_theta_old(...)
        A_k = r_k - 1/(K - 1) sum_{j != k} r_j

    What is added to all rewards of a prompt changes nothing: prompts may be of unequal difficulty. The
    ratio is that of one denoising step. Advantages are not divided by the deviation within a prompt, as
    GRPO does.

    Args:
      policy: see `denoising_policy`.
      reward: see `fine_tuning`.
      optimizer: see `fine_tuning`.
      prompts: M >= 1.
      samples: K >= 2; the paper takes 2 to 4.
      clip: eps > 0: about 0.2 in few dimensions, 1e-4 with means over images; traceable.
      pessimistic: whether the smaller of the two counts; without, only the clipped term.
      minibatches: optimiser steps an epoch.
      epochs: passes over the trajectories.
      **options: of `fine_tuning`, as for `reinforce`.

    Returns:
      As `fine_tuning`.

    Raises:
      TypeError, ValueError: naming the argument; one sample a prompt.

    References:
      Gupta et al., A Simple and Effective Reinforcement Learning Method for Text-to-Image Diffusion
      Fine-tuning, arXiv 2503.00897.
    """
    _require_clip(clip)
    return fine_tuning(
        policy,
        reward,
        baselines.others(),
        optimizer,
        prompts=prompts,
        samples=samples,
        clip=clip,
        pessimistic=pessimistic,
        minibatches=minibatches,
        epochs=epochs,
        **options,
    )


def _require_clip(clip: Any) -> None:
    validation.real("clip", clip, low=0.0, low_open=True, scalar=True)
