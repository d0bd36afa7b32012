"""DP-SGD by Opacus: a loop over clients, gradients by its hooks, its optimiser's clip and noise."""

import warnings

import torch
from opacus.grad_sample import GradSampleModule
from opacus.optimizers import DPOptimizer
from torch.nn import functional

from benchmarks.peers.networks import SHAPES, cnn
from benchmarks.peers.timing import milliseconds
from benchmarks.tasks import Task

warnings.simplefilter("ignore")


def measure(task: list, rounds: int, norm: float, noise: float) -> dict[str, float]:
    """Milliseconds per round of federated averaging whose local steps are Opacus's."""
    work = Task(*task)
    inputs, labels = work.examples()
    examples = torch.from_numpy(inputs).reshape(-1, *SHAPES["cnn"])
    targets = torch.from_numpy(labels).long()
    owned = [torch.from_numpy(rows) for rows in work.dealt()]
    model = GradSampleModule(cnn(work.classes))
    params = list(model.parameters())
    optimizer = DPOptimizer(
        torch.optim.SGD(params, lr=work.rate),
        noise_multiplier=noise,
        max_grad_norm=norm,
        expected_batch_size=work.batch,
    )

    def one_round() -> None:
        server = [p.detach().clone() for p in params]
        total = [torch.zeros_like(p) for p in params]
        for rows in owned:
            with torch.no_grad():
                torch._foreach_copy_(params, server)
            drawn = rows[torch.randperm(work.owned)[: work.steps * work.batch]]
            for minibatch in drawn.split(work.batch):
                optimizer.zero_grad()
                loss = functional.cross_entropy(model(examples[minibatch]), targets[minibatch])
                loss.backward()
                optimizer.step()
            with torch.no_grad():
                torch._foreach_add_(total, params, alpha=1.0 / work.cohort)
        with torch.no_grad():
            torch._foreach_copy_(params, total)

    def train() -> None:
        for _ in range(rounds):
            one_round()

    return {"ms": milliseconds(train, repeats=5, units=rounds)}
