"""`python -m experiments` lists the studies; `--all` runs them and tabulates claims and times."""

import ast
import json
import pathlib
import resource
import subprocess
import sys
import time
from typing import NamedTuple

from rich.console import Console
from rich.table import Table

from experiments.tools import results
from experiments.tools.study import Claim, lasting

STUDIES = pathlib.Path(__file__).parent / "studies"
USAGE = "usage: python -m experiments [--all [--quick]]"


class Listed(NamedTuple):
    """What the list says of a study.

    Attributes:
      line: the first line of what it says of itself.
      seconds: of one CPU core that it takes with the default settings.
    """

    line: str
    seconds: int | None


def studies() -> dict[str, dict[str, Listed]]:
    """Every study by family and name, read from its source without importing it.

    A study is what lies in `studies/FAMILY/`; files that begin with "_" are parts of one.
    """
    families: dict[str, dict[str, Listed]] = {}
    for file in sorted(STUDIES.glob("*/[!_]*.py")):
        tree = ast.parse(file.read_text())
        line = (ast.get_docstring(tree) or "").splitlines()[0]
        families.setdefault(file.parent.name, {})[file.stem] = Listed(line, _seconds(tree))
    return families


def _seconds(tree: ast.Module) -> int | None:
    """The number after `seconds=` in a study's `STUDY = Study(...)`, or None."""
    for node in tree.body:
        if not (isinstance(node, ast.Assign) and isinstance(node.value, ast.Call)):
            continue
        if getattr(node.targets[0], "id", "") == "STUDY":
            for given in node.value.keywords:
                if given.arg == "seconds":
                    return int(ast.literal_eval(given.value))
    return None


def run_all(names: list[str], flags: list[str]) -> int:
    """Runs the studies one after another, each in a process of its own; counts failures."""
    claims: dict[str, list[Claim]] = {}
    took: dict[str, tuple[float, float]] = {}
    failures = 0
    for name in names:
        before = time.perf_counter(), _processor_seconds()
        folder = results.RESULTS / "quick" / name if "--quick" in flags else results.RESULTS / name
        # The new summary must be this run's, also when the study dies on the way.
        (folder / "summary.json").unlink(missing_ok=True)
        status = subprocess.run(
            [sys.executable, "-m", f"experiments.{name}", *flags], check=False
        ).returncode
        took[name] = time.perf_counter() - before[0], _processor_seconds() - before[1]
        summary = folder / "summary.json"
        stated = json.loads(summary.read_text())["claims"] if summary.exists() else []
        claims[name] = [Claim(**claim) for claim in stated]
        if status and not any(claim.fails for claim in claims[name]):
            claims[name].append(Claim("runs to its end", False, f"status {status}", "status 0"))
        failures += status != 0
    console = Console(width=None if sys.stdout.isatty() else 110)
    console.print(results.claims_table(claims))
    times = Table("study", "seconds", "of a CPU core")
    for name, seconds in took.items():
        times.add_row(name, *(f"{one:.0f}" for one in seconds))
    console.print(times)
    return failures


def _processor_seconds() -> float:
    """What the processes that this one has waited for have used of the processor."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def main() -> None:
    """The command line."""
    families = studies()
    arguments = sys.argv[1:]
    if arguments and arguments[0] == "--all" and arguments[1:] in ([], ["--quick"]):
        names = [name for family in families.values() for name in family]
        sys.exit(min(run_all(names, arguments[1:]), 1))
    if arguments:
        sys.exit(f"{USAGE}; got {' '.join(arguments)}")
    table = Table(box=None)
    # A command is copied whole.
    table.add_column("study", no_wrap=True)
    table.add_column("takes about", no_wrap=True, justify="right")
    table.add_column("what it shows")
    for family, known in families.items():
        table.add_row(f"[bold]{family}[/bold]", "", "")
        for name, (line, seconds) in known.items():
            takes = "some min" if seconds is None else lasting(seconds)
            table.add_row(f"python -m experiments.{name}", takes, line)
    Console().print(table)
    Console().print(
        "Times are of one CPU core, settings as they are; --quick takes less than a minute."
    )


if __name__ == "__main__":
    main()
