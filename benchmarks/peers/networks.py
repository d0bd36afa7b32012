"""The image models of `dflax.models` in PyTorch."""

import itertools

import torch
from torch import nn
from torch.nn import functional

SHAPES = {"cnn": (1, 28, 28), "resnet": (3, 32, 32)}


def cnn(classes: int) -> nn.Module:
    """Convolutions 32 and 64, a hidden layer of 128: 421,642 parameters with ten classes."""
    return nn.Sequential(
        nn.Conv2d(1, 32, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(32, 64, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(64 * 49, 128),
        nn.ReLU(),
        nn.Linear(128, classes),
    )


class Block(nn.Module):
    """relu(x + norm(conv(relu(norm(conv(x)))))), with a projection of x where shapes differ."""

    def __init__(self, channels: int, features: int, stride: int):
        super().__init__()
        self.first = nn.Conv2d(channels, features, 3, stride, 1, bias=False)
        self.second = nn.Conv2d(features, features, 3, 1, 1, bias=False)
        self.norms = nn.ModuleList(nn.GroupNorm(32, features) for _ in range(2))
        self.project = None
        if stride != 1 or channels != features:
            self.project = nn.Sequential(
                nn.Conv2d(channels, features, 1, stride, bias=False), nn.GroupNorm(32, features)
            )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """The block's output."""
        y = functional.relu(self.norms[0](self.first(x)))
        y = self.norms[1](self.second(y))
        return functional.relu(y + (x if self.project is None else self.project(x)))


def resnet(classes: int) -> nn.Module:
    """ResNet-18 for small images, group normalisation of 32 groups."""
    layers: list[nn.Module] = [
        nn.Conv2d(3, 64, 3, 1, 1, bias=False),
        nn.GroupNorm(32, 64),
        nn.ReLU(),
    ]
    channels = 64
    for stage in range(4):
        for block in range(2):
            features = 64 * 2**stage
            layers.append(Block(channels, features, 2 if stage > 0 and block == 0 else 1))
            channels = features
    return nn.Sequential(
        *layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, classes)
    )


NETWORKS = {"cnn": cnn, "resnet": resnet}


def perceptron(widths: list[int]) -> nn.Module:
    """Linear layers of these widths with ReLU between them."""
    layers: list[nn.Module] = []
    for into, out in itertools.pairwise(widths):
        layers += [nn.Linear(into, out), nn.ReLU()]
    return nn.Sequential(*layers[:-1])
