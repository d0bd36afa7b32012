"""Federated averaging of a perceptron as a plain PyTorch loop over clients and steps."""

import numpy as np
import torch

from benchmarks.peers.timing import milliseconds
from benchmarks.tasks import Task


def measure(task: list, rounds: int) -> dict[str, float]:
    """Milliseconds per round."""
    work = Task(*task)
    inputs, labels = work.examples()
    examples = torch.from_numpy(inputs), torch.from_numpy(labels).long()
    owned = [torch.from_numpy(rows) for rows in work.dealt()]
    layers = work.layers()
    parts: list[torch.nn.Module] = []
    for weight, bias in layers:
        linear = torch.nn.Linear(*weight.shape)
        linear.weight.data = torch.from_numpy(weight.T.copy())
        linear.bias.data = torch.from_numpy(bias)
        parts += [linear, torch.nn.ReLU()]
    model = torch.nn.Sequential(*parts[:-1])
    params = list(model.parameters())
    cross_entropy = torch.nn.CrossEntropyLoss()
    generator = np.random.default_rng(0)

    def one_round() -> None:
        server = [p.detach().clone() for p in params]
        total = [torch.zeros_like(p) for p in params]
        for client in generator.choice(work.clients, work.cohort, replace=False):
            with torch.no_grad():
                for p, s in zip(params, server, strict=True):
                    p.copy_(s)
            descent = torch.optim.SGD(params, lr=work.rate)
            rows = owned[client][torch.randperm(work.owned)[: work.steps * work.batch]]
            for minibatch in rows.split(work.batch):
                descent.zero_grad()
                cross_entropy(model(examples[0][minibatch]), examples[1][minibatch]).backward()
                descent.step()
            with torch.no_grad():
                for t, p in zip(total, params, strict=True):
                    t += p
        with torch.no_grad():
            for p, t in zip(params, total, strict=True):
                p.copy_(t / work.cohort)

    def train() -> None:
        for _ in range(rounds):
            one_round()

    return {"ms": milliseconds(train, repeats=3, units=rounds)}
