"""The methods that LOOP's study holds against each other, at equally many rewards a round."""

from collections.abc import Callable
from typing import Any

import optax

import dflax as dx
from dflax import rl
from experiments.tasks.denoisers import Denoiser


def adamw(rate: float) -> optax.GradientTransformation:
    """Gradients of norm at most 1, AdamW."""
    return optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(rate, weight_decay=1e-4))


Make = Callable[[Denoiser, Any, int], dx.Algorithm]
PER_PROMPT = "PPO, statistics per prompt"


def _leave_one_out(make: Any, k: int, **options: Any) -> Make:
    return lambda task, reward, calls: make(
        task.policy,
        reward,
        adamw(1e-3),
        **{"prompts": calls // k, "samples": k, "scaled": True, "steps_at_once": 10},
        **options,
    )


def _alone(make: Any, **options: Any) -> Make:
    return lambda task, reward, calls: make(
        task.policy, reward, adamw(1e-3), prompts=calls, steps_at_once=10, **options
    )


METHODS: dict[str, Make] = {
    "REINFORCE": _alone(rl.reinforce, scaled=True),
    "REINFORCE+BC": _alone(rl.reinforce, scaled=True, baseline=True),
    "RLOO, K = 4": _leave_one_out(rl.rloo, 4),
    "PPO, statistics of the batch": _alone(rl.ddpo, minibatches=4),
    PER_PROMPT: lambda *given: _alone(
        rl.ddpo, minibatches=4, statistics=rl.baselines.prompt_statistics(32, 16)
    )(*given),
    "LOOP, K = 2": _leave_one_out(rl.loop, 2),
    "LOOP, K = 4": _leave_one_out(rl.loop, 4),
    "LOOP, K = 8": _leave_one_out(rl.loop, 8),
}
PPO = "PPO, statistics of the batch"
CONTROL = (PPO, PER_PROMPT, "RLOO, K = 4", "LOOP, K = 4")
