"""The benchmarks' tasks as NumPy arrays: the same for us and for every peer."""

import itertools
import math
from typing import NamedTuple

import numpy as np


class Task(NamedTuple):
    """A federated classification task.

    Attributes:
      clients: n; each owns as many examples as every other.
      cohort: m <= n, clients of a round.
      steps: K, local steps of a round.
      batch: B, examples of a local step.
      features: of an input, as a flat vector.
      classes: labels are below it.
      owned: examples of one client.
      hidden: width of the perceptron's hidden layer; 0 for a linear model.
      rate: learning rate of the local steps.
    """

    clients: int
    cohort: int
    steps: int
    batch: int
    features: int
    classes: int
    owned: int
    hidden: int = 0
    rate: float = 0.1

    def examples(self) -> tuple[np.ndarray, np.ndarray]:
        """Separable inputs `[n owned, features]` and labels; client i owns the i-th run of rows."""
        generator = np.random.default_rng(0)
        shape = (self.clients * self.owned, self.features)
        inputs = generator.normal(size=shape).astype(np.float32)
        labels = (inputs @ generator.normal(size=(self.features, self.classes))).argmax(1)
        return inputs, labels.astype(np.int32)

    def layers(self) -> list[tuple[np.ndarray, np.ndarray]]:
        """Weights `[in, out]` and biases `[out]` of the model at the start, by He's law."""
        generator = np.random.default_rng(1)
        widths = [self.features, *([self.hidden] if self.hidden else []), self.classes]
        return [
            (
                (generator.normal(size=(m, n)) * (2.0 / m) ** 0.5).astype(np.float32),
                np.zeros(n, np.float32),
            )
            for m, n in itertools.pairwise(widths)
        ]

    def dealt(self) -> list[np.ndarray]:
        """The row numbers of every client."""
        return np.array_split(np.arange(self.clients * self.owned), self.clients)

    def whole(self) -> "Task":
        """The task without chance, in smaller steps: four clients read all that they own in each."""
        return self._replace(clients=4, cohort=4, owned=self.batch, rate=self.rate / 10)

    def convolutional(self) -> list[tuple[np.ndarray, np.ndarray]]:
        """Kernels `[3, 3, in, out]`, weights `[in, out]` and biases of the CNN at the start."""
        generator = np.random.default_rng(1)
        shapes = ((3, 3, 1, 32), (3, 3, 32, 64), (7 * 7 * 64, 128), (128, self.classes))
        return [
            (
                (generator.normal(size=shape) * (2.0 / math.prod(shape[:-1])) ** 0.5).astype(
                    np.float32
                ),
                np.zeros(shape[-1], np.float32),
            )
            for shape in shapes
        ]


LOGISTIC = Task(clients=100, cohort=10, steps=5, batch=10, features=64, classes=10, owned=64)
MLP = Task(
    clients=1000, cohort=1000, steps=5, batch=10, features=784, classes=10, owned=50, hidden=100
)
# Images as flat vectors: 28x28x1 and 32x32x3.
CNN = Task(clients=16, cohort=16, steps=5, batch=20, features=784, classes=10, owned=100)
RESNET = Task(clients=8, cohort=8, steps=2, batch=8, features=3072, classes=10, owned=16, rate=0.01)


def unlike_messages(kind: str, rows: int, columns: int = 20) -> np.ndarray:
    """`[rows, columns]` in float64: "random", "tied" with many equal numbers, or "heavy-tailed"."""
    rng = np.random.default_rng(rows)
    if kind == "tied":
        return rng.integers(0, 4, (rows, columns)).astype(float)
    draw = {"random": rng.standard_normal, "heavy-tailed": rng.standard_cauchy}[kind]
    return draw((rows, columns))


def messages(rows: int, columns: int) -> np.ndarray:
    """The messages of some clients, one row each: standard normal, float32 `[n, d]`."""
    return np.random.default_rng(0).standard_normal((rows, columns), np.float32)


def step_seconds(clients: int, seed: int, *, random: bool) -> np.ndarray:
    """`[n, r]` seconds a local step, 0.02 + Exp(0.1) a client; or times exp(0.3 N(0, 1)) a piece."""
    generator = np.random.default_rng([clients, seed])
    speeds = 0.02 + generator.exponential(0.1, (clients, 1))
    return speeds * np.exp(0.3 * generator.normal(size=(clients, 500))) if random else speeds
