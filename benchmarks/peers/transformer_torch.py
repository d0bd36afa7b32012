"""Federated averaging of a pre-norm transformer as a plain PyTorch loop over clients and steps."""

import torch

from benchmarks.peers.timing import milliseconds


class Classifier(torch.nn.Module):
    """Embedded tokens and positions, pre-norm blocks, the mean of the outputs classified."""

    def __init__(
        self, vocabulary: int, width: int, depth: int, heads: int, classes: int, length: int
    ):
        super().__init__()
        self.embedding = torch.nn.Embedding(vocabulary, width)
        self.positions = torch.nn.Parameter(0.02 * torch.randn(length, width))
        block = torch.nn.TransformerEncoderLayer(
            width, heads, 4 * width, 0.0, "gelu", batch_first=True, norm_first=True
        )
        self.blocks = torch.nn.TransformerEncoder(block, depth, enable_nested_tensor=False)
        self.norm = torch.nn.LayerNorm(width)
        self.head = torch.nn.Linear(width, classes)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """Logits."""
        outputs = self.blocks(self.embedding(tokens) + self.positions)
        return self.head(self.norm(outputs).mean(1))


def measure(
    cohort: int,
    steps: int,
    batch: int,
    rate: float,
    rounds: int,
    vocabulary: int,
    length: int,
    classes: int,
    **shape: int,
) -> dict[str, float]:
    """Milliseconds per round."""
    torch.manual_seed(0)
    model = Classifier(vocabulary, classes=classes, length=length, **shape)
    params = list(model.parameters())
    tokens = torch.randint(0, vocabulary, (cohort, steps, batch, length))
    labels = tokens[..., 0] % classes
    cross_entropy = torch.nn.CrossEntropyLoss()

    def one_round() -> None:
        server = [p.detach().clone() for p in params]
        total = [torch.zeros_like(p) for p in params]
        for client in range(cohort):
            with torch.no_grad():
                for p, s in zip(params, server, strict=True):
                    p.copy_(s)
            descent = torch.optim.SGD(params, lr=rate)
            for step in range(steps):
                descent.zero_grad()
                cross_entropy(model(tokens[client, step]), labels[client, step]).backward()
                descent.step()
            with torch.no_grad():
                for t, p in zip(total, params, strict=True):
                    t += p
        with torch.no_grad():
            for p, t in zip(params, total, strict=True):
                p.copy_(t / cohort)

    def train() -> None:
        for _ in range(rounds):
            one_round()

    return {"ms": milliseconds(train, repeats=3, units=rounds)}
