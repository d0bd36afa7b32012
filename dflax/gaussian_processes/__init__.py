"""Gaussian processes of agents that agree on a kernel and keep their observations."""

from dflax.gaussian_processes.agents import Agents, agents, observe, observing, starting_weights
from dflax.gaussian_processes.grid import BelowNyquist, Grid, spectral_grid
from dflax.gaussian_processes.gsmp import gsmp
from dflax.gaussian_processes.kernel import MultipleKernel
from dflax.gaussian_processes.likelihood import Evidence, Observations, evidence, objective
from dflax.gaussian_processes.noise import noise_variance
from dflax.gaussian_processes.prediction import Prediction, fused, predict
from dflax.gaussian_processes.slim_kl import joint_objective, local_weights, slim_kl
from dflax.gaussian_processes.solvers import Solver, dsca, mm, positive_root
from dflax.gaussian_processes.stationary import (
    Fitted,
    SpectralMixture,
    SquaredExponential,
    maximum_likelihood,
    posterior,
    spectral_mixture,
    squared_exponential,
)

__all__ = [
    "Agents",
    "BelowNyquist",
    "Evidence",
    "Fitted",
    "Grid",
    "MultipleKernel",
    "Observations",
    "Prediction",
    "Solver",
    "SpectralMixture",
    "SquaredExponential",
    "agents",
    "dsca",
    "evidence",
    "fused",
    "gsmp",
    "joint_objective",
    "local_weights",
    "maximum_likelihood",
    "mm",
    "noise_variance",
    "objective",
    "observe",
    "observing",
    "positive_root",
    "posterior",
    "predict",
    "slim_kl",
    "spectral_grid",
    "spectral_mixture",
    "squared_exponential",
    "starting_weights",
]


def __dir__() -> list[str]:
    return __all__
