"""Reinforcement learning as init/step: environments, advantages, objectives, agents as clients."""

from dflax.rl.advantages import Estimate, discounted_returns, gae, leave_one_out, standardised
from dflax.rl.denoising import (
    DenoisingPolicy,
    baselines,
    black_box,
    ddpo,
    denoising_policy,
    fine_tuning,
    loop,
    reinforce,
    rloo,
)
from dflax.rl.distributions import Categorical, Distribution, Gaussian, Joint
from dflax.rl.surrogate import Surrogate, clipped

__all__ = [
    "Categorical",
    "DenoisingPolicy",
    "Distribution",
    "Estimate",
    "Gaussian",
    "Joint",
    "Surrogate",
    "baselines",
    "black_box",
    "clipped",
    "ddpo",
    "denoising_policy",
    "discounted_returns",
    "fine_tuning",
    "gae",
    "leave_one_out",
    "loop",
    "reinforce",
    "rloo",
    "standardised",
]


def __dir__() -> list[str]:
    return __all__
