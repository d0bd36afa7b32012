"""Measured performance tables in CSV files, so that measurements of real servers can be read."""

import csv
import os
import pathlib
from typing import Any, NamedTuple

import numpy as np

from dflax import validation
from dflax.inference.hardware import accelerator, network
from dflax.inference.selection.performance import Performance, check_table, performance
from dflax.inference.selection.tasks import Tasks, check_tasks, workload

NAMES = ("model", "device")
NETWORK = ("parameters", "layers", "cache_bytes", "parameter_bytes")
ACCELERATOR = ("flops", "bandwidth", "memory", "price")
WORKLOAD = ("batch", "prompt", "output", "shared", "variation")
SECONDS = "seconds: "


class Measurements(NamedTuple):
    """What was measured.

    Attributes:
      tasks: n tasks.
      table: `[n, K]` their times.
      methods: K names, in the order of the columns.
      models: names, which `tasks.model` counts.
      devices: names, which `tasks.device` counts.
    """

    tasks: Tasks
    table: Performance
    methods: tuple[str, ...]
    models: tuple[str, ...]
    devices: tuple[str, ...]


def read_measurements(path: str | os.PathLike) -> Measurements:
    """Reads a performance table: a line for each task, a column of seconds for each method.

    Columns, in any order: `model` and `device` are names; `parameters`, `layers`, `cache_bytes` (of a
    token), `parameter_bytes`; `flops` (peak FLOP/s), `bandwidth` (B/s), `memory` (B), `price` (of an
    hour); `batch`, `prompt`, `output` (tokens on average), `shared` (share of the prompt), `variation`
    (of the outputs' lengths); and `seconds: NAME` for each method, the first of them the one without
    acceleration. A time that was not measured is left empty. Other columns are left alone.

    Args:
      path: of the file.

    Raises:
      TypeError, ValueError: naming the argument, the column and the line: columns that are missing, no
        lines, numbers that are none or out of range.
      FileNotFoundError: there is no such file.
    """
    validation.path("path", path)
    with open(path, newline="", encoding="utf-8-sig") as file:
        reader = csv.DictReader(file)
        rows, header = list(reader), list(reader.fieldnames or [])
    missing = sorted({*NAMES, *NETWORK, *ACCELERATOR, *WORKLOAD} - set(header))
    methods = [name for name in header if name.startswith(SECONDS)]
    if missing or not methods:
        wanted = ", ".join(missing) or f"{SECONDS}NAME of at least one method"
        raise ValueError(f"path must be a CSV file with the columns {wanted}, got {header[:30]}.")
    if not rows:
        raise ValueError(f"path must be a CSV file with lines, got none in {os.fspath(path)!r}.")

    def numbers(names: tuple[str, ...]) -> dict[str, Any]:
        return {name: _numbers(rows, name) for name in names}

    models, model = _numbered(rows, "model")
    devices, device = _numbered(rows, "device")
    columns = [_numbers(rows, name, gaps=True) for name in methods]
    return Measurements(
        Tasks(
            model,
            device,
            network(**numbers(NETWORK)),
            accelerator(**numbers(ACCELERATOR)),
            workload(**numbers(WORKLOAD)),
        ),
        performance(np.stack(columns, -1)),
        tuple(name.removeprefix(SECONDS) for name in methods),
        models,
        devices,
    )


def write_measurements(path: str | os.PathLike, measured: Measurements) -> None:
    """Writes a performance table in the columns of `read_measurements`, to six digits.

    Args:
      path: of the file; what is there is replaced.
      measured: what to write.

    Raises:
      TypeError: naming the argument.
    """
    validation.path("path", path)
    validation.instance("measured", measured, Measurements)
    tasks, table = measured.tasks, measured.table
    check_tasks(tasks)
    check_table(table)
    count = len(np.asarray(tasks.model))
    parts = ((tasks.network, NETWORK), (tasks.accelerator, ACCELERATOR), (tasks.workload, WORKLOAD))
    columns: list[Any] = [
        np.broadcast_to(getattr(of, n), count) for of, names in parts for n in names
    ]
    seconds = np.where(table.observed, table.seconds, np.nan)
    with pathlib.Path(path).open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        times = [SECONDS + name for name in measured.methods]
        writer.writerow([*NAMES, *NETWORK, *ACCELERATOR, *WORKLOAD, *times])
        for row in range(count):
            names = measured.models[int(tasks.model[row])], measured.devices[int(tasks.device[row])]
            known = [f"{float(column[row]):.6g}" for column in columns]
            found = ["" if np.isnan(value) else f"{value:.6g}" for value in seconds[row]]
            writer.writerow([*names, *known, *found])


def _numbered(rows: list[dict[str, str]], name: str) -> tuple[tuple[str, ...], Any]:
    """The names in the order of their first lines, and each line's number among them."""
    known: dict[str, int] = {}
    for line, row in enumerate(rows, 2):
        if not row[name]:
            raise ValueError(f"path must hold names as {name}, got an empty one in line {line}.")
        known.setdefault(row[name], len(known))
    return tuple(known), np.array([known[row[name]] for row in rows], np.int32)


def _numbers(rows: list[dict[str, str]], name: str, *, gaps: bool = False) -> np.ndarray:
    """A column; empty entries are NaN where gaps are allowed."""
    found = np.empty(len(rows), np.float32)
    for at, row in enumerate(rows):
        text = (row[name] or "").strip()
        try:
            found[at] = np.nan if gaps and not text else float(text)
        except ValueError:
            found[at] = np.inf
        if np.isinf(found[at]) or (np.isnan(found[at]) and (text or not gaps)):
            raise ValueError(
                f"path must hold numbers as {name}, got {row[name]!r} in line {at + 2}."
            )
    return found
