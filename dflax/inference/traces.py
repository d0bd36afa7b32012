"""Traces in files: Vidur's columns, and the names that public traces have."""

import csv
import datetime
import os
import pathlib
from typing import Any

import numpy as np

from dflax import validation
from dflax.inference.requests import OPTIONAL, Requests, trace

# Who names time, prompt and output how. The first is what is written.
COLUMNS = {
    "Vidur": ("arrived_at", "num_prefill_tokens", "num_decode_tokens"),
    "Azure": ("TIMESTAMP", "ContextTokens", "GeneratedTokens"),
    "BurstGPT": ("Timestamp", "Request tokens", "Response tokens"),
}


def read_trace(path: str | os.PathLike) -> Requests:
    """Reads requests from a CSV file with a header.

    Known are the columns of Vidur (`arrived_at`, `num_prefill_tokens`, `num_decode_tokens`), of the
    public Azure traces (`TIMESTAMP`, `ContextTokens`, `GeneratedTokens`) and of BurstGPT (`Timestamp`,
    `Request tokens`, `Response tokens`). `scenario`, `prefix` and `shared` are read where they are
    there, others are left alone. Times are seconds or dates; they count from the first of them.
    Requests without a token of prompt or answer, which BurstGPT writes for failures, are refused.

    Args:
      path: of the file.

    Returns:
      A trace on the host.

    Raises:
      TypeError, ValueError: naming the argument; other columns, no rows, a value that is no number.
      FileNotFoundError: there is no such file.
    """
    validation.path("path", path)
    with open(path, newline="", encoding="utf-8-sig") as file:
        reader = csv.DictReader(file)
        rows, header = list(reader), reader.fieldnames or []
    named = [names for names in COLUMNS.values() if set(names) <= set(header)]
    if not named:
        known = "; ".join(", ".join(names) for names in COLUMNS.values())
        raise ValueError(f"path must be a CSV file with the columns {known}, got {header}.")
    if not rows:
        raise ValueError(f"path must be a CSV file with rows, got none in {os.fspath(path)!r}.")
    time, prompt, output = named[0]
    seconds = np.array([_seconds(row[time], line) for line, row in enumerate(rows, 2)])
    others: dict[str, Any] = {name: _counts(rows, name) for name in OPTIONAL if name in header}
    return trace(seconds - seconds[0], _counts(rows, prompt), _counts(rows, output), **others)


def write_trace(path: str | os.PathLike, requests: Requests) -> None:
    """Writes requests as a CSV file in Vidur's columns and ours; times to the microsecond.

    Args:
      path: of the file; what is there is replaced.
      requests: see `trace`.

    Raises:
      TypeError, ValueError: naming the argument.
    """
    validation.path("path", path)
    validation.instance("requests", requests, Requests, "Make them with dflax.inference.trace.")
    columns = [requests.arrived, requests.prompt, requests.output]
    columns += [getattr(requests, name) for name in OPTIONAL]
    with pathlib.Path(path).open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(COLUMNS["Vidur"] + OPTIONAL)
        for row in zip(*map(np.asarray, columns), strict=True):
            writer.writerow([f"{float(row[0]):.6f}", *map(int, row[1:])])


def _seconds(text: str, line: int) -> float:
    try:
        return float(text)
    except (TypeError, ValueError):
        pass
    try:
        # Azure writes seven digits of a second; Python reads six.
        whole, _, rest = text.partition(".")
        digits = "".join(c for c in rest if c.isdigit())[:6] if rest else ""
        moment = datetime.datetime.fromisoformat(whole)
        return (moment - datetime.datetime(1970, 1, 1)).total_seconds() + float(f"0.{digits or 0}")
    except (TypeError, ValueError):
        raise ValueError(
            f"path must hold times as seconds or dates, got {text!r} in line {line}."
        ) from None


def _counts(rows: list[dict[str, str]], name: str) -> np.ndarray:
    found = np.empty(len(rows), np.int64)
    for line, row in enumerate(rows):
        try:
            value = float(row[name])
            found[line] = int(value)
        except (TypeError, ValueError, OverflowError):
            value = float("nan")
        if value != found[line]:
            raise ValueError(
                f"path must hold whole numbers as {name}, got {row[name]!r} in line {line + 2}."
            )
    return found
