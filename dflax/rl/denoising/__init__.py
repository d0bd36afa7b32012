"""Diffusion models fine-tuned by rewards: their samplers as policies."""

from dflax.rl.denoising import baselines
from dflax.rl.denoising.methods import ddpo, loop, reinforce, rloo
from dflax.rl.denoising.policy import DenoisingPolicy, denoising_policy
from dflax.rl.denoising.rewards import black_box
from dflax.rl.denoising.tuning import fine_tuning

__all__ = [
    "DenoisingPolicy",
    "baselines",
    "black_box",
    "ddpo",
    "denoising_policy",
    "fine_tuning",
    "loop",
    "reinforce",
    "rloo",
]


def __dir__() -> list[str]:
    return __all__
