"""Reinforcement learning as init/step: environments, advantages, objectives, agents as clients."""

from dflax.rl.advantages import Estimate, discounted_returns, gae, leave_one_out, standardised
from dflax.rl.distributions import Categorical, Distribution, Gaussian, Joint
from dflax.rl.surrogate import Surrogate, clipped

__all__ = [
    "Categorical",
    "Distribution",
    "Estimate",
    "Gaussian",
    "Joint",
    "Surrogate",
    "clipped",
    "discounted_returns",
    "gae",
    "leave_one_out",
    "standardised",
]


def __dir__() -> list[str]:
    return __all__
