"""What a study leaves behind: its summary file, its figures, and the tables that it prints."""

import dataclasses
import json
import pathlib
import sys
from typing import Any

import numpy as np
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from experiments.tools.study import Claim, Summary

RESULTS = pathlib.Path("results")
VERDICTS = {
    True: "[green]yes[/green]",
    False: "[bold red]NO[/bold red]",
    None: "[yellow]not run[/yellow]",
}


def save(folder: pathlib.Path, config: Any, summary: Summary) -> None:
    """Writes `FOLDER/summary.json`, and the figures beside it.

    Args:
      folder: of the study, which is named like it.
      config: its dataclass.
      summary: what it found; figures that are paths have been drawn before.
    """
    folder.mkdir(parents=True, exist_ok=True)
    content = {
        "experiment": folder.name,
        "config": dataclasses.asdict(config),
        "methods": summary.methods,
        "claims": [dataclasses.asdict(claim) for claim in summary.claims],
    }
    unfinished = folder / "summary.json.tmp"
    text = json.dumps(_finite(plain(content)), indent=2, allow_nan=False)
    unfinished.write_text(text + "\n")
    unfinished.replace(folder / "summary.json")
    draw(folder, summary)


def draw(folder: pathlib.Path, summary: Summary) -> dict[str, pathlib.Path]:
    """Saves the figures that are not saved yet; returns where each lies."""
    folder.mkdir(parents=True, exist_ok=True)
    drawn = {}
    for stem, figure in summary.figures.items():
        drawn[stem] = folder / f"{stem}.png"
        if not isinstance(figure, pathlib.Path):
            figure.savefig(drawn[stem], dpi=150, bbox_inches="tight")
    return drawn


def show(
    folder: pathlib.Path, summary: Summary, seconds: float, of_a_core: float | None = None
) -> None:
    """Prints the methods' metrics, the claims, what it took, and where everything lies."""
    console = Console(width=None if sys.stdout.isatty() else 110)
    for title, methods in (summary.tables or {folder.name: list(summary.methods)}).items():
        rows = {method: summary.methods[method] for method in methods}
        columns = list(dict.fromkeys(key for row in rows.values() for key in row))
        table = Table("method", title=title)
        for column in columns:
            table.add_column(column, justify="right")
        for method, row in rows.items():
            table.add_row(method, *(_shown(row.get(column)) for column in columns))
        console.print(table)
    if summary.claims:
        console.print(claims_table({folder.name: summary.claims}))
    cores = "" if of_a_core is None else f", {of_a_core:.0f} s of a CPU core"
    console.print(f"{seconds:.0f} s{cores}; summary and figures in {folder}/", highlight=False)


def claims_table(claims: dict[str, list[Claim]]) -> Table:
    """The claims of one or several studies as a table."""
    table = Table("study", "claim", "holds", "ours", "reference")
    for study, stated in claims.items():
        for claim in stated:
            verdict = VERDICTS[None if claim.holds is None else bool(claim.holds)]
            numbers = _shown(claim.ours), _shown(claim.reference)
            table.add_row(study, escape(claim.claim), verdict, *map(escape, numbers))
    return table


def _shown(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, (list, tuple)):
        return ", ".join(_shown(entry) for entry in value)
    if isinstance(value, (float, np.floating)):
        return f"{value:.4g}"
    return str(value)


def plain(value: Any) -> Any:
    """The same in Python's own numbers, text, lists and dictionaries, for JSON."""
    if isinstance(value, dict):
        return {str(key): plain(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(entry) for entry in value]
    if value is None or isinstance(value, (str, bool, int)):
        return value
    array = np.asarray(value)
    if array.dtype == object:
        raise TypeError(f"a summary holds numbers, text, lists and dicts, got {value!r}.")
    return plain(array.tolist()) if array.ndim else array.item()


def _finite(value: Any) -> Any:
    """The same with null for numbers that are not finite, which JSON does not know."""
    if isinstance(value, dict):
        return {key: _finite(entry) for key, entry in value.items()}
    if isinstance(value, list):
        return [_finite(entry) for entry in value]
    return None if isinstance(value, float) and not np.isfinite(value) else value
