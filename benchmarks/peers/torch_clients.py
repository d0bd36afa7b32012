"""The tasks' models and data in PyTorch, as a client of a federated package wants them."""

import functools
from typing import Literal

import torch
from torch import nn
from torch.nn import functional

from benchmarks.peers import networks
from benchmarks.tasks import Task

Network = Literal["perceptron", "cnn"]


def begun(work: Task, network: Network) -> nn.Module:
    """The model with the task's weights at the start."""
    if network == "perceptron":
        layers = work.layers()
        model = networks.perceptron([len(layers[0][0]), *(len(bias) for _, bias in layers)])
    else:
        layers, model = work.convolutional(), networks.cnn(work.classes)
    parts = [part for part in model if isinstance(part, (nn.Linear, nn.Conv2d))]
    for part, (weight, bias) in zip(parts, layers, strict=True):
        if weight.ndim == 4:
            weight = weight.transpose(3, 2, 0, 1)
        elif network == "cnn" and len(weight) == 7 * 7 * 64:
            # PyTorch's images have their channels first.
            weight = weight.reshape(7, 7, 64, -1).transpose(3, 2, 0, 1).reshape(-1, 7 * 7 * 64)
        else:
            weight = weight.T
        part.weight.data = torch.from_numpy(weight.copy())
        part.bias.data = torch.from_numpy(bias)
    return model


@functools.cache
def examples(work: Task, network: Network) -> tuple[torch.Tensor, torch.Tensor]:
    """All inputs and labels; client i owns the i-th run of `work.owned` rows."""
    inputs, labels = work.examples()
    tensor = torch.from_numpy(inputs)
    if network == "cnn":
        tensor = tensor.reshape(-1, *networks.SHAPES["cnn"])
    return tensor, torch.from_numpy(labels).long()


def drawn(work: Task) -> list[torch.Tensor]:
    """The places of K minibatches among what a client owns, gone over as often as that takes."""
    passes = -(-work.steps * work.batch // work.owned)
    order = torch.cat([torch.randperm(work.owned) for _ in range(passes)])
    return list(order[: work.steps * work.batch].split(work.batch))


def mean_loss(model: nn.Module, work: Task, network: Network) -> float:
    """The mean loss of all examples."""
    inputs, labels = examples(work, network)
    with torch.no_grad():
        return float(functional.cross_entropy(model(inputs), labels))
