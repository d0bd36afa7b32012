"""A progress bar on the terminal's error stream."""

import contextlib
import sys
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from dflax.running.sinks import flatten


@contextlib.contextmanager
def progress_bar(wanted: bool | None, title: str, rounds: int) -> Iterator[Callable[..., None]]:
    """A progress bar on the terminal's error stream, or nothing."""
    if not (sys.stderr.isatty() if wanted is None else wanted):
        yield lambda *_: None
        return
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
    )

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[speed]}"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[last]}"),
    )
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task(title or "rounds", total=rounds, speed="compiling", last="")
        latest: dict[str, str] = {}

        def show(done: int, seconds: float, rows: Any, evaluated: np.ndarray) -> None:
            metrics, evaluations = rows
            named = {name: leaf[-1] for name, leaf in flatten(metrics).items() if leaf.ndim == 1}
            if evaluated.any():
                last = np.flatnonzero(evaluated)[-1]
                for name, leaf in flatten(evaluations).items():
                    if leaf.ndim == 1:
                        named[f"test {name}"] = leaf[last]
            latest.update({name: f"{name} {value:.4g}" for name, value in named.items()})
            bar.update(
                task,
                completed=done,
                speed=f"{done / max(seconds, 1e-9):.1f} rounds/s",
                last="  ".join(list(latest.values())[:4]),
            )

        yield show
