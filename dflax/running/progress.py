"""A progress bar on the terminal's error stream."""

import contextlib
import sys
from collections.abc import Callable, Iterator

import numpy as np

from dflax.running.history import Rows
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

        def show(done: int, seconds: float, rows: Rows, evaluations: Rows) -> None:
            named = _last(rows) | {
                f"test {name}": last for name, last in _last(evaluations).items()
            }
            latest.update({name: f"{name} {value:.4g}" for name, value in named.items()})
            bar.update(
                task,
                completed=done,
                speed=f"{done / max(seconds, 1e-9):.1f} rounds/s",
                last="  ".join(list(latest.values())[:4]),
            )

        yield show


def _last(rows: Rows) -> dict[str, np.ndarray]:
    """The last value of every scalar, if there is one."""
    named = flatten(rows.values)
    return {name: leaf[-1] for name, leaf in named.items() if leaf.ndim == 1 and len(leaf)}
