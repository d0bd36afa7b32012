"""`python -m experiments` lists the studies; `--all` runs them all and tabulates their claims."""

import ast
import json
import pathlib
import subprocess
import sys

from rich.console import Console
from rich.table import Table

from experiments.study import RESULTS, Claim, claims_table

FOLDER = pathlib.Path(__file__).parent


def studies() -> dict[str, str]:
    """Every study's name and the first line of what it says of itself, without importing it."""
    found = {}
    for file in sorted(FOLDER.glob("*.py")):
        tree = ast.parse(file.read_text())
        classes = {node.name for node in tree.body if isinstance(node, ast.ClassDef)}
        if "Config" in classes:
            found[file.stem] = (ast.get_docstring(tree) or "").splitlines()[0]
    return found


def run_all(names: list[str]) -> int:
    """Runs the studies one after another, each in a process of its own; counts failures."""
    claims: dict[str, list[Claim]] = {}
    failures = 0
    for name in names:
        print(f"== {name}", flush=True)
        # The new summary must be this run's, also when the study dies on the way.
        (RESULTS / name / "summary.json").unlink(missing_ok=True)
        status = subprocess.run(
            [sys.executable, "-m", f"experiments.{name}"], check=False
        ).returncode
        summary = RESULTS / name / "summary.json"
        stated = json.loads(summary.read_text())["claims"] if summary.exists() else []
        claims[name] = [Claim(**claim) for claim in stated]
        if not stated and status:
            claims[name] = [Claim("runs to its end", False, f"status {status}", "status 0")]
        failures += status != 0
    Console(width=None if sys.stdout.isatty() else 110).print(claims_table(claims))
    return failures


def main() -> None:
    """The command line."""
    known = studies()
    if sys.argv[1:] == ["--all"]:
        sys.exit(min(run_all(list(known)), 1))
    if sys.argv[1:]:
        sys.exit(f"usage: python -m experiments [--all]; got {' '.join(sys.argv[1:])}")
    table = Table("study", "what it shows", box=None)
    for name, line in known.items():
        table.add_row(f"python -m experiments.{name}", line)
    Console().print(table)


if __name__ == "__main__":
    main()
