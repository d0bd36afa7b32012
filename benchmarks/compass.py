"""`python -m benchmarks.compass`: FedCompass's decisions beside those of its authors' package, APPFL."""

import time

import numpy as np
from rich.console import Console
from rich.table import Table

from benchmarks import peers
from benchmarks.tasks import step_seconds
from dflax import asynchronous

HORIZON, LEAST, MOST, SLACK, MOMENTUM = 600.0, 20, 100, 1.2, 0.9
SETTINGS = {
    "min_local_steps": LEAST,
    "max_local_steps": MOST,
    "latest_time_factor": SLACK,
    "speed_momentum": MOMENTUM,
}


# Clients, seed, and whether each piece of work has a time of its own.
CASES = [(n, seed, random) for n in (5, 10, 20) for random in (False, True) for seed in range(4)]


def ours(seconds: np.ndarray) -> list:
    """All steps of the server: time and `[client, local steps, staleness]` of each change."""
    table = asynchronous.fedcompass(
        seconds, HORIZON, least=LEAST, most=MOST, slack=SLACK, momentum=MOMENTUM
    )
    kept, steps = dict[int, int](), []
    stale, applied = table.staleness, table.applied
    for number, time_of_step in enumerate(table.time):
        changes = []
        for place in range(table.first[number], table.first[number + 1]):
            client, own = int(table.clients[place]), int(table.steps[place])
            if not applied[place]:
                kept[client] = own
                continue
            # A change of no steps was kept before.
            changes.append([client, own or kept[client], int(stale[place])])
        if changes:
            steps.append([float(time_of_step), sorted(changes)])
    return steps


def main() -> None:
    """A row for each case: how many steps, how many changes, and whether all are the same."""
    began = time.perf_counter()
    own = [ours(step_seconds(n, seed, random=random)) for n, seed, random in CASES]
    took = 1e3 * (time.perf_counter() - began)
    answer = peers.run("appfl", "agreement_appfl", cases=CASES, horizon=HORIZON, settings=SETTINGS)
    if answer is None:
        return
    table = Table("case", "steps", "changes", "the same", title=answer["peer"])
    for (n, seed, random), mine, theirs in zip(CASES, own, answer["found"], strict=True):
        same = len(mine) == len(theirs) and all(
            a == c and abs(t - s) < 1e-6 for (t, a), (s, c) in zip(mine, theirs, strict=True)
        )
        changes = sum(len(entry[1]) for entry in mine)
        name = f"{n} clients, {'random durations' if random else 'fixed speeds'}, draw {seed}"
        table.add_row(name, str(len(mine)), str(changes), "yes" if same else "NO")
    console = Console()
    console.print(table)
    console.print(f"all cases: ours {took:.0f} ms, {answer['peer']} {answer['ms']:.0f} ms")


if __name__ == "__main__":
    main()
