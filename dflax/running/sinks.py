"""Where a run's numbers go while it runs: JSON lines, TensorBoard, or any function of this shape."""

import json
import os
import pathlib
from typing import Any, Protocol

import jax
import numpy as np

from dflax import validation


class Sink(Protocol):
    """Receives the metrics of the rounds of one chunk."""

    def __call__(self, rounds: np.ndarray, metrics: Any) -> None:
        """Take `rounds` `[c]`, counted from 1, and metrics with leaves `[c, ...]`."""
        ...


def jsonl(path: str | pathlib.Path) -> Sink:
    """Appends one JSON object a round to a file: `{"round": 3, "loss": 0.5, ...}`.

    Scalars become numbers, arrays lists, numbers that are not finite null; nested names are joined
    by "/". Each chunk is written in one go, so a reader never sees half a line of an earlier one.

    Raises:
      TypeError, ValueError: `path` is no path, or that of a folder.
    """
    validation.instance("path", path, (str, os.PathLike))
    path = pathlib.Path(path).expanduser()
    if path.is_dir():
        raise ValueError(
            f"path must be a file's, got the folder {str(path)!r}. Append a name, such as run.jsonl."
        )
    path.parent.mkdir(parents=True, exist_ok=True)

    def write(rounds: np.ndarray, metrics: Any) -> None:
        named = flatten(metrics)
        lines = [
            json.dumps({"round": int(number)} | {k: _plain(v[row]) for k, v in named.items()})
            for row, number in enumerate(rounds)
        ]
        with path.open("a") as file:
            file.write("".join(line + "\n" for line in lines))

    return write


def tensorboard(folder: str | pathlib.Path) -> Sink:
    """Writes every scalar metric as a TensorBoard curve (needs the extra `tensorboard`).

    What is not finite is left out of the curve: evaluations of rounds that were not evaluated, and
    means over clients of rounds in which none reported. `jsonl` has them all.

    Raises:
      TypeError: `folder` is no path.
      ImportError: tensorboardX is not installed.
    """
    validation.instance("folder", folder, (str, os.PathLike))
    try:
        from tensorboardX import SummaryWriter
    except ImportError as error:
        raise ImportError(
            "sinks.tensorboard needs tensorboardX: pip install 'dflax[tensorboard]'."
        ) from error
    writer = SummaryWriter(str(pathlib.Path(folder).expanduser()))

    def write(rounds: np.ndarray, metrics: Any) -> None:
        for name, values in flatten(metrics).items():
            if values.ndim == 1:
                finite = np.isfinite(values)
                for number, value in zip(rounds[finite], values[finite], strict=True):
                    writer.add_scalar(name, float(value), int(number))
        writer.flush()

    return write


def flatten(metrics: Any) -> dict[str, np.ndarray]:
    """A tree of arrays as one flat dict, nested names joined by "/"."""
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): np.asarray(leaf)
        for path, leaf in jax.tree_util.tree_leaves_with_path(metrics)
    }


def _plain(value: np.ndarray) -> Any:
    if value.ndim:
        return [_plain(entry) for entry in value]
    number = value.item()
    return number if np.isfinite(number) else None


__all__ = [
    "Sink",
    "flatten",
    "jsonl",
    "tensorboard",
]


def __dir__() -> list[str]:
    return __all__
