"""Sinks that write a row a round into a file: JSON lines and CSV."""

import bisect
import csv as tables
import io
import json
import os
import pathlib
from collections.abc import Sequence
from typing import Any, TypeVar

import numpy as np

from dflax import validation
from dflax.running.sinks.sink import Sink, flatten, scalars

Row = TypeVar("Row")
ROUND = "round"


def jsonl(path: str | pathlib.Path) -> Sink:
    """Writes one JSON object a round to a file: `{"round": 3, "loss": 0.5, ...}`.

    Scalars become numbers, arrays lists, numbers that are not finite null; nested names are joined
    by "/". Each chunk is written in one go, so a reader never sees half a line of an earlier one.

    A file that is there is appended to. Rounds that are done again, since a run was killed and is
    taken up, take the place of the file's last rows of these rounds, and so does half a line that the
    kill left. A run that begins anew is appended below the earlier one.

    Raises:
      TypeError, ValueError: `path` is no path, or that of a folder.
    """
    path = _file(path, "run.jsonl")
    last: int | None = None

    def write(rounds: np.ndarray, metrics: Any) -> None:
        nonlocal last
        named = flatten(metrics)
        lines = [
            json.dumps({ROUND: int(number)} | {k: _plain(v[row]) for k, v in named.items()}) + "\n"
            for row, number in enumerate(rounds)
        ]
        if not lines:
            return
        if last is None or rounds[0] <= last:
            found = _whole(path).splitlines(keepends=True)
            stays = kept(found, [_round_of(line) for line in found], lines[0], int(rounds[0]))
            if path.exists():
                _replace(path, "".join(found[:stays]))
        with path.open("a") as file:
            file.write("".join(lines))
        last = int(rounds[-1])

    return write


def csv(path: str | pathlib.Path) -> Sink:
    """Writes one line a round to a CSV file with a header: `round,loss,evaluation/accuracy`.

    Only single numbers: what is an array in every round is left out, `jsonl` has it. NaN, as that of an
    evaluation in a round without one, is an empty cell, and infinite numbers are inf and -inf, as pandas
    reads them.

    Columns may come late, when another algorithm writes to the same file: the file is then written
    anew with the new columns at its right end, and earlier rows have empty cells there. A column that
    is missing later has empty cells from then on. Rounds that are done again, and runs that begin anew,
    are treated as by `jsonl`.

    Raises:
      TypeError, ValueError: `path` is no path, or that of a folder; when written to, a file that begins
        with no such header, a metric called "round".
    """
    path = _file(path, "run.csv")
    header: list[str] = []
    last: int | None = None

    def write(rounds: np.ndarray, metrics: Any) -> None:
        nonlocal header, last
        named = scalars(metrics)
        if ROUND in named:
            raise ValueError('metrics must have names of their own, got "round", the first column.')
        again = last is None or (len(rounds) > 0 and rounds[0] <= last)
        added = [name for name in (ROUND, *named) if name not in header]
        if len(rounds) == 0 or not (again or added):
            earlier = None
        else:
            header, earlier = _table(path)
            header = header + [name for name in (ROUND, *named) if name not in header]
            earlier = [row + [""] * (len(header) - len(row)) for row in earlier]
        rows = [
            [str(int(number)), *(_cell(named, name, row) for name in header[1:])]
            for row, number in enumerate(rounds)
        ]
        if earlier is not None:
            numbers = [int(row[0]) if row[0].isdigit() else None for row in earlier]
            stays = kept(earlier, numbers, rows[0], int(rounds[0]))
            _replace(path, _lines([header, *earlier[:stays], *rows]))
        elif rows:
            with path.open("a", newline="") as file:
                file.write(_lines(rows))
        last = int(rounds[-1]) if rows else last

    return write


def kept(rows: Sequence[Row], numbers: Sequence[int | None], again: Row, first: int) -> int:
    """How many rows of a file stay when rounds from `first` on are written to it.

    The last run in the file is its last rows of rising rounds. Where it has rounds before `first`, the
    rounds that come are its own. Where it has none, they are if the file has the very row `again`;
    else another run begins.

    Args:
      rows: of the file.
      numbers: their rounds; None for what is no row of ours.
      again: the row of round `first`.
      first: the round that comes first.
    """
    begin = end = len(rows)
    rising: list[int] = []
    while begin:
        number = numbers[begin - 1]
        if number is None or (rising and number >= rising[0]):
            break
        rising.insert(0, number)
        begin -= 1
    place = begin + bisect.bisect_left(rising, first)
    return place if place > begin or (place < end and rows[place] == again) else end


def _file(path: Any, example: str) -> pathlib.Path:
    """The path of a file in a folder that is there."""
    validation.instance("path", path, (str, os.PathLike))
    path = pathlib.Path(path).expanduser()
    if path.is_dir():
        raise ValueError(
            f"path must be a file's, got the folder {str(path)!r}. Append a name, such as {example}."
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


def _whole(path: pathlib.Path) -> str:
    """The whole lines of a file, without half a line at its end; nothing where there is no file."""
    text = path.read_text() if path.exists() else ""
    return text[: text.rfind("\n") + 1]


def _round_of(line: str) -> int | None:
    """The round of a line; None of what is no line of ours."""
    try:
        number = json.loads(line)[ROUND]
    except (ValueError, KeyError, TypeError):
        return None
    return number if type(number) is int else None


def _table(path: pathlib.Path) -> tuple[list[str], list[list[str]]]:
    """The header of a file and its whole rows; nothing of a file that is not there."""
    rows = list(tables.reader(io.StringIO(_whole(path))))
    if not rows:
        return [], []
    if rows[0][:1] != [ROUND]:
        raise ValueError(
            f"path must be a file that dflax.sinks.csv wrote, or none, got {str(path)!r} with the first "
            f"line {validation.shown(','.join(rows[0]))}. Choose another name."
        )
    return rows[0], [row for row in rows[1:] if row]


def _lines(rows: Sequence[Sequence[str]]) -> str:
    text = io.StringIO()
    tables.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue()


def _replace(path: pathlib.Path, text: str) -> None:
    """Writes a file anew in one step: a reader sees all of the old one or all of the new one."""
    unfinished = path.with_name(f"{path.name}.unfinished")
    unfinished.write_text(text, newline="")
    unfinished.replace(path)


def _cell(named: dict[str, np.ndarray], name: str, row: int) -> str:
    value = named[name][row].item() if name in named else float("nan")
    return "" if value != value else str(value)


def _plain(value: np.ndarray) -> Any:
    if value.ndim:
        return [_plain(entry) for entry in value]
    number = value.item()
    return number if np.isfinite(number) else None
