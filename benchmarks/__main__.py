"""`python -m benchmarks [--quick] [NAMES]`: one table on the terminal and results/benchmarks.json."""

import argparse
import dataclasses
import functools
import importlib
import json
import pathlib
import sys

import jax
from rich.console import Console
from rich.table import Table

from benchmarks.load import KEPT, OTHERS, Load, under_watch
from benchmarks.measure import Row

NAMES = (
    "logistic",
    "mlp",
    "cnn",
    "resnet",
    "server",
    "decentralized",
    "privacy",
    "robust_peers",
    "robust_rounds",
    "merging",
    "reductions",
    "robust",
    "mixing",
    "roles",
    "transformer",
    "compilation",
    "population",
    "sweeping",
    "collectives",
    "startup",
    "events",
    "asynchronous",
    "compression",
    "secure_aggregation",
    "robots",
    "planning",
    "policies",
    "heavy_hitters",
    "gaussian_processes",
    "experts",
    "generation",
    "denoising_rewards",
    "imaging",
    "sparse_coding",
    "agents",
    "serving",
    "verified",
    "p2p",
    "swarm",
    "pd_serve",
)
RESULTS = pathlib.Path("results")

# The processor as so many devices, for rows on a mesh; the others run on the first, with all cores.
DEVICES = 2


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(NAMES)}")
    parser.add_argument("--quick", action="store_true", help="fewer rounds and repetitions")
    options = parser.parse_args()
    unknown = set(options.names) - set(NAMES)
    if unknown:
        parser.error(f"unknown NAME {sorted(unknown)}: choose from {', '.join(NAMES)}")
    jax.config.update("jax_num_cpu_devices", DEVICES)
    found: list[tuple[list[Row], Load]] = []
    for name in options.names or NAMES:
        print(f"measuring {name} ...", file=sys.stderr, flush=True)
        module = importlib.import_module(f"benchmarks.{name}")
        found.append(under_watch(functools.partial(module.rows, options.quick)))
    rows = marked(found)
    RESULTS.mkdir(exist_ok=True)
    content = json.dumps([row.as_json() for row in rows], indent=2)
    (RESULTS / "benchmarks.json").write_text(content + "\n")
    table = Table(
        *("what", "ours ms", "peer", "peer ms", "times faster", "limit ms", "of limit"),
        *("compiled ms", "peak MB", "MFLOP", "MB moved"),
    )
    for row in rows:
        table.add_row(
            f"* {row.name}" if row.beside_load else row.name,
            f"{row.ours_ms:.3g}",
            row.peer or "",
            _number(row.peer_ms),
            _number(row.ratio),
            _number(row.limit_ms),
            _number(row.share_of_limit),
            _number(row.compile_ms),
            _number(row.peak_bytes, 1e6),
            _number(row.flops, 1e6),
            _number(row.bytes, 1e6),
        )
    console = Console(width=None if sys.stdout.isatty() else 160)
    console.print(table)
    if any(row.beside_load for row in rows):
        console.print(
            f"* beside other load: other processes took more than {OTHERS:.0%} of the cores, or the "
            f"matrix ceiling fell below {KEPT:.0%} of its best in this run. Measure these again."
        )


def marked(found: list[tuple[list[Row], Load]]) -> list[Row]:
    """All rows, each with the load that it met; what a ceiling should be is known at the end."""
    best = max(load.ceiling for _, load in found)
    return [
        dataclasses.replace(
            row, ceiling=load.ceiling, others=load.others, beside_load=load.beside(best)
        )
        for rows, load in found
        for row in rows
    ]


def _number(value: float | None, unit: float = 1.0) -> str:
    return "" if value is None else f"{value / unit:.3g}"


if __name__ == "__main__":
    main()
