"""What Opacus makes of a perceptron's minibatch: its clipped gradients, and the scale of its noise."""

import warnings

import numpy as np
import torch
from opacus.grad_sample import GradSampleModule
from opacus.optimizers import DPOptimizer
from torch import nn
from torch.nn import functional

from benchmarks.tasks import Task

warnings.simplefilter("ignore")


def measure(task: list, norm: float, noise: float, draws: int) -> dict[str, list]:
    """The gradient without noise, weights `[in, out]`, and the deviation of that with noise."""
    work = Task(*task)
    inputs, labels = work.examples()
    layers = [nn.Linear(*weights.shape) for weights, _ in work.layers()]
    for layer, (weights, bias) in zip(layers, work.layers(), strict=True):
        layer.weight.data = torch.from_numpy(weights.T.copy())
        layer.bias.data = torch.from_numpy(bias.copy())
    model = GradSampleModule(nn.Sequential(layers[0], nn.ReLU(), layers[1]))
    examples = torch.from_numpy(inputs[: work.batch])
    targets = torch.from_numpy(labels[: work.batch]).long()

    def gradient(multiplier: float) -> list[np.ndarray]:
        optimizer = DPOptimizer(
            torch.optim.SGD(model.parameters(), lr=0.0),
            noise_multiplier=multiplier,
            max_grad_norm=norm,
            expected_batch_size=work.batch,
        )
        optimizer.zero_grad()
        functional.cross_entropy(model(examples), targets).backward()
        optimizer.pre_step()
        return [p.grad.detach().numpy().copy() for p in model.parameters()]

    still = gradient(0.0)
    noises = [
        np.concatenate([(n - s).reshape(-1) for n, s in zip(gradient(noise), still, strict=True)])
        for _ in range(draws)
    ]
    return {
        "gradient": [(g.T if g.ndim == 2 else g).tolist() for g in still],
        "deviation": [float(np.std(noises))],
    }
