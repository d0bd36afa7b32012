"""Federated averaging of an image model as a plain PyTorch loop, in the layout it runs fastest."""

import torch
from torch.nn import functional

from benchmarks.peers.networks import NETWORKS, SHAPES
from benchmarks.peers.timing import milliseconds
from benchmarks.tasks import Task


def measure(task: list, network: str, rounds: int) -> dict[str, float]:
    """Milliseconds per round: the better of channels first and channels last."""
    formats = (torch.contiguous_format, torch.channels_last)
    return {"ms": min(_milliseconds(Task(*task), network, rounds, form) for form in formats)}


def _milliseconds(work: Task, network: str, rounds: int, form: torch.memory_format) -> float:
    inputs, labels = work.examples()
    examples = torch.from_numpy(inputs).reshape(-1, *SHAPES[network]).contiguous(memory_format=form)
    targets = torch.from_numpy(labels).long()
    owned = [torch.from_numpy(rows) for rows in work.dealt()]
    model = NETWORKS[network](work.classes).to(memory_format=form)
    params = list(model.parameters())

    def one_round() -> None:
        server = [p.detach().clone() for p in params]
        total = [torch.zeros_like(p) for p in params]
        for rows in owned:
            with torch.no_grad():
                torch._foreach_copy_(params, server)
            drawn = rows[torch.randperm(work.owned)[: work.steps * work.batch]]
            for minibatch in drawn.split(work.batch):
                scores = model(examples[minibatch].contiguous(memory_format=form))
                loss = functional.cross_entropy(scores, targets[minibatch])
                gradients = torch.autograd.grad(loss, params)
                with torch.no_grad():
                    torch._foreach_add_(params, gradients, alpha=-work.rate)
            with torch.no_grad():
                torch._foreach_add_(total, params, alpha=1.0 / work.cohort)
        with torch.no_grad():
            torch._foreach_copy_(params, total)

    def train() -> None:
        for _ in range(rounds):
            one_round()

    return milliseconds(train, repeats=5, units=rounds)
