"""GPyTorch on series and fields: exact GPs with an RBF and with a spectral mixture, by likelihood."""

import time
from typing import Any

import gpytorch
import torch


class Model(gpytorch.models.ExactGP):
    """A zero mean and the given kernel."""

    def __init__(self, x: Any, y: Any, likelihood: Any, kernel: Any):
        super().__init__(x, y, likelihood)
        self.mean_module = gpytorch.means.ZeroMean()
        self.covar_module = kernel

    def forward(self, x: Any) -> Any:
        """The prior at some inputs."""
        return gpytorch.distributions.MultivariateNormal(self.mean_module(x), self.covar_module(x))


def fitted(kind: str, x: Any, y: Any, steps: int, seed: int) -> tuple[Any, Any, float]:
    """A model trained by Adam, its noise too, and its last loss."""
    torch.manual_seed(seed)
    likelihood = gpytorch.likelihoods.GaussianLikelihood().double()
    if kind == "SM":
        kernel = gpytorch.kernels.SpectralMixtureKernel(
            num_mixtures=6, ard_num_dims=x.shape[1]
        ).double()
        kernel.initialize_from_data(x, y)
    else:
        lengths = gpytorch.kernels.RBFKernel(ard_num_dims=x.shape[1])
        kernel = gpytorch.kernels.ScaleKernel(lengths).double()
    model = Model(x, y, likelihood, kernel).double()
    model.train()
    likelihood.train()
    descent = torch.optim.Adam(model.parameters(), lr=0.1)
    score = gpytorch.mlls.ExactMarginalLogLikelihood(likelihood, model)
    for _ in range(steps):
        descent.zero_grad()
        loss = -score(model(x), y)
        loss.backward()
        descent.step()
    return model, likelihood, float(loss)


def measure(splits: list[dict[str, Any]], steps: int, restarts: int) -> dict[str, Any]:
    """Mean squared errors of what is held out of each split, by kernel, and the time of all fits.

    Args:
      splits: `inputs [n, P]`, `values [n]`, `points [m, P]` and `held_out [m]` each.
      steps: of Adam.
      restarts: of the spectral mixture, of which the most likely counts.
    """
    began = time.perf_counter()
    errors: dict[str, list[float]] = {"RBF": [], "SM": []}
    for split in splits:
        x, y, points, held_out = (
            torch.tensor(split[name], dtype=torch.float64)
            for name in ("inputs", "values", "points", "held_out")
        )
        for kind, found in errors.items():
            starts = restarts if kind == "SM" else 1
            runs = [fitted(kind, x, y, steps, seed) for seed in range(starts)]
            model, likelihood, _ = min(runs, key=lambda run: run[2])
            model.eval()
            likelihood.eval()
            with torch.no_grad():
                mean = likelihood(model(points)).mean
            found.append(float(torch.mean((mean - held_out) ** 2)))
    return {"ms": 1e3 * (time.perf_counter() - began), "errors": errors}
