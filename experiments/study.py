"""What every study shares: its command line, its summary file, its table and its exit status."""

import contextlib
import copy
import dataclasses
import json
import os
import pathlib
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from dflax import Federation

RESULTS = pathlib.Path("results")


@dataclasses.dataclass(frozen=True)
class Claim:
    """A statement about what ran.

    Attributes:
      claim: the statement, in words.
      holds: whether the numbers bear it out; computed, never typed in.
      ours: the number or numbers it rests on.
      reference: what they are compared with.
    """

    claim: str
    holds: bool
    ours: Any
    reference: Any


@dataclasses.dataclass
class Summary:
    """What a study found.

    Attributes:
      methods: for each method its metrics, plain numbers.
      claims: what follows from them.
      figures: matplotlib figures by file name, without ending.
      tables: titles, and the methods that stand under each; none: all of them in one table.
    """

    methods: dict[str, dict[str, float]]
    claims: list[Claim] = dataclasses.field(default_factory=list)
    figures: dict[str, Any] = dataclasses.field(default_factory=dict)
    tables: dict[str, list[str]] = dataclasses.field(default_factory=dict)


def main(study: Callable[[Any], Summary], config: type, file: str) -> None:
    """Runs a study from the command line and ends the process: status 1 when a claim fails.

    Args:
      study: the study's function.
      config: its dataclass; tyro makes the command line from it.
      file: the study's `__file__`, which names it.
    """
    import tyro

    name = pathlib.Path(file).stem
    options: Any = tyro.cli(config, prog=f"python -m experiments.{name}")
    remember_compilations()
    began = time.perf_counter()
    summary = study(options)
    save(name, options, summary)
    show(name, summary, time.perf_counter() - began)
    sys.exit(0 if all(claim.holds for claim in summary.claims) else 1)


def remember_compilations() -> None:
    """Keeps compiled programs on disk, so that a second run starts at once.

    JAX_COMPILATION_CACHE_DIR says where, else it is `dflax/jax` in the user's cache.
    """
    if not os.environ.get("JAX_COMPILATION_CACHE_DIR"):
        home = pathlib.Path(os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache")
        jax.config.update("jax_compilation_cache_dir", str(home / "dflax" / "jax"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)


def save(name: str, config: Any, summary: Summary) -> pathlib.Path:
    """Writes `results/NAME/summary.json` and the figures beside it; returns the folder."""
    folder = RESULTS / name
    folder.mkdir(parents=True, exist_ok=True)
    content = {
        "experiment": name,
        "config": dataclasses.asdict(config),
        "methods": summary.methods,
        "claims": [dataclasses.asdict(claim) for claim in summary.claims],
    }
    unfinished = folder / "summary.json.tmp"
    text = json.dumps(_plain(content), indent=2, allow_nan=False)
    unfinished.write_text(text + "\n")
    unfinished.replace(folder / "summary.json")
    for stem, figure in summary.figures.items():
        figure.savefig(folder / f"{stem}.png", dpi=150, bbox_inches="tight")
    return folder


def show(name: str, summary: Summary, seconds: float) -> None:
    """Prints the methods' metrics, the claims, and where everything lies."""
    console = Console(width=None if sys.stdout.isatty() else 110)
    for title, methods in (summary.tables or {name: list(summary.methods)}).items():
        rows = {method: summary.methods[method] for method in methods}
        columns = list(dict.fromkeys(key for row in rows.values() for key in row))
        table = Table("method", title=title)
        for column in columns:
            table.add_column(column, justify="right")
        for method, row in rows.items():
            table.add_row(method, *(_shown(row.get(column)) for column in columns))
        console.print(table)
    if summary.claims:
        console.print(claims_table({name: summary.claims}))
    console.print(f"{seconds:.0f} s; summary and figures in {RESULTS / name}/", highlight=False)


def claims_table(claims: dict[str, list[Claim]]) -> Table:
    """The claims of one or several studies as a table."""
    table = Table("study", "claim", "holds", "ours", "reference")
    for study, stated in claims.items():
        for claim in stated:
            verdict = "[green]yes[/green]" if claim.holds else "[bold red]NO[/bold red]"
            numbers = _shown(claim.ours), _shown(claim.reference)
            table.add_row(study, escape(claim.claim), verdict, *map(escape, numbers))
    return table


def stacked(trees: list[Any]) -> Any:
    """Trees of the same shapes as one with a leading axis, to be vmapped: the data of several seeds."""
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *trees)


def each(run: Callable[..., Any], lanes: Any, *shared: Any) -> Any:
    """`run(lane, *shared)` of every lane, results stacked: side by side on an accelerator.

    A CPU takes them one after another, which is faster there, to compile and to run.

    Args:
      run: of one lane.
      lanes: a tree whose leaves have a leading axis of lanes.
      *shared: what all have in common.
    """
    if jax.default_backend() == "cpu":
        return jax.lax.map(lambda lane: run(lane, *shared), lanes)
    return jax.vmap(run, in_axes=(0, *(None for _ in shared)))(lanes, *shared)


def side_by_side(federations: list[Federation]) -> Federation:
    """Federations of the same shapes with a leading axis, to be vmapped: the splits of several seeds."""
    largest = max(federation.largest for federation in federations)
    alike = [copy.copy(federation) for federation in federations]
    for federation in alike:
        # It is static, the only thing that must be the same: no split has more at one client.
        federation.largest = largest
    return stacked(alike)


@contextlib.contextmanager
def figure(width: float = 6.4, height: float = 4.0, **options: Any) -> Iterator[tuple[Any, Any]]:
    """A matplotlib figure and its axes in the studies' common look, drawn without a display."""
    import matplotlib

    matplotlib.use("Agg", force=False)
    from matplotlib import pyplot as plt

    look: dict[Any, Any] = {
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.grid": True,
        "grid.alpha": 0.3,
        "legend.frameon": False,
        "font.size": 10,
    }
    with plt.rc_context(look):
        drawn, axes = plt.subplots(figsize=(width, height), layout="constrained", **options)
        yield drawn, axes


def _shown(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, (list, tuple)):
        return ", ".join(_shown(entry) for entry in value)
    if isinstance(value, (float, np.floating)):
        return f"{value:.4g}"
    return str(value)


def _plain(value: Any) -> Any:
    """The same in JSON's own types; numbers that are not finite become null."""
    if isinstance(value, dict):
        return {str(key): _plain(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(entry) for entry in value]
    if value is None or isinstance(value, (str, bool, int)):
        return value
    array = np.asarray(value)
    if array.dtype == object:
        raise TypeError(f"a summary holds numbers, text, lists and dicts, got {value!r}.")
    if array.ndim:
        return _plain(array.tolist())
    number = array.item()
    return None if isinstance(number, float) and not np.isfinite(number) else number
