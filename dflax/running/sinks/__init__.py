"""Where a run's numbers go while it runs: files, boards, or any function of this shape.

A run that is taken up again does the rounds since its last checkpoint once more. The sinks here do not
write them twice; each says how it knows.
"""

from dflax.running.sinks.boards import mlflow, tensorboard, wandb
from dflax.running.sinks.files import csv, jsonl
from dflax.running.sinks.sink import Sink, flatten

__all__ = [
    "Sink",
    "csv",
    "flatten",
    "jsonl",
    "mlflow",
    "tensorboard",
    "wandb",
]


def __dir__() -> list[str]:
    return __all__
