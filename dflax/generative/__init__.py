"""Diffusion and flow models: paths to noise, training losses, samplers, exact fields."""

from dflax.generative import targets
from dflax.generative.averaged import Averaging, average_of, averaging
from dflax.generative.denoising import denoising
from dflax.generative.fields import field, guided
from dflax.generative.mixtures import Mixture, exact, log_responsibilities, mixture
from dflax.generative.path import (
    Path,
    cosine,
    discrete,
    noised,
    rectified,
    variance_preserving,
)
from dflax.generative.sampling import Trajectory, grid, log_probs, sample, trajectory
from dflax.generative.steps import Gaussian, Step, ddim, euler, heun
from dflax.generative.times import logit_normal, on_grid, uniform
from dflax.models.diffusion.noised import Noised

__all__ = [
    "Averaging",
    "Gaussian",
    "Mixture",
    "Noised",
    "Path",
    "Step",
    "Trajectory",
    "average_of",
    "averaging",
    "cosine",
    "ddim",
    "denoising",
    "discrete",
    "euler",
    "exact",
    "field",
    "grid",
    "guided",
    "heun",
    "log_probs",
    "log_responsibilities",
    "logit_normal",
    "mixture",
    "noised",
    "on_grid",
    "rectified",
    "sample",
    "targets",
    "trajectory",
    "uniform",
    "variance_preserving",
]


def __dir__() -> list[str]:
    return __all__
