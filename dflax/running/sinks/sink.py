"""What a sink is, and metrics as one flat dictionary."""

from collections.abc import Iterator
from typing import Any, Protocol

import jax
import numpy as np


class Sink(Protocol):
    """Receives the metrics of the rounds of one chunk."""

    def __call__(self, rounds: np.ndarray, metrics: Any) -> None:
        """Take `rounds` `[c]`, counted from 1, and metrics with leaves `[c, ...]`."""
        ...


def flatten(metrics: Any) -> dict[str, np.ndarray]:
    """A tree of arrays as one flat dict, nested names joined by "/"."""
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): np.asarray(leaf)
        for path, leaf in jax.tree_util.tree_leaves_with_path(metrics)
    }


def scalars(metrics: Any) -> dict[str, np.ndarray]:
    """Of a chunk's metrics those that are one number a round, `[c]`."""
    return {name: values for name, values in flatten(metrics).items() if values.ndim == 1}


def finite_rows(rounds: np.ndarray, metrics: Any) -> Iterator[tuple[int, dict[str, float]]]:
    """Round by round the single numbers that are finite, for boards that draw curves."""
    named = scalars(metrics)
    for row, number in enumerate(rounds):
        found = {name: float(values[row]) for name, values in named.items()}
        yield int(number), {name: value for name, value in found.items() if np.isfinite(value)}
