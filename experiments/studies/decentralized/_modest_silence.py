"""What silence costs MoDeST: ageing views, crashes, nodes that never come, deaths within a round."""

from typing import Any

import numpy as np

from experiments.tasks.modest_runs import Found, Runs
from experiments.tools.finished import Stage
from experiments.tools.report import Report


def ageing(config: Any, there: dict[str, Found], report: Report) -> None:
    """How many nodes the aggregator's view still holds while everyone is on line."""
    times = np.array([21, 100, 150])
    times = times[times <= config.crash_rounds]
    for name, found in there.items():
        sizes = found["view_size"][:, times - 1]
        report.row(
            "nodes in the aggregator's view while everyone is there",
            f"everyone there, delta = {name}",
            found["test_accuracy"][:, -1],
            **{f"round_{t}": size for t, size in zip(times, sizes.T, strict=True)},
        )
        if name != "inf":
            law = _forgotten(config.nodes, config.sample, int(name), int(times.max()))[:, times - 1]
            spread = law.std(0) * np.sqrt(1 / len(sizes) + 1 / len(law))
            off = np.abs(sizes.mean(0) - law.mean(0)) / np.maximum(spread, 0.5)
            report.claim(
                f"delta = {name}: views lose living nodes as the law of the draws has it (at rounds "
                f"{', '.join(map(str, times))})",
                off.max() <= 4.0,
                sizes.mean(0).tolist(),
                law.mean(0).tolist(),
            )


def _forgotten(nodes: int, sample: int, delta: int, rounds: int) -> np.ndarray:
    """Sizes `[200, T]` of a view that forgets whoever was not drawn from it for delta rounds."""
    generator = np.random.default_rng(0)
    sizes = np.empty((200, rounds))
    for run in sizes:
        last = np.zeros(nodes, int)
        for number in range(1, rounds + 1):
            known = np.flatnonzero(last >= number - delta)
            run[number - 1] = len(known)
            last[generator.permutation(known)[:sample]] = number
    return sizes


def crashed(config: Any, crash: dict[str, Found], report: Report) -> None:
    """Four nodes in five fall silent, four at a time."""
    live = config.nodes // 5
    last = 50 + 5 * (-(-(config.nodes - live) // 4) - 1)
    expected = config.sample * (config.nodes - live) / (live + 1)
    for name, found in crash.items():
        accuracy, failed = found["test_accuracy"], found["failed_pings"]
        name = f"crash, delta = {name}"
        before, after = accuracy[:, 49], accuracy[:, -1]
        report.row(
            "80 of 100 fall silent in rounds 50 to 145: the model",
            name,
            after,
            accuracy_at_50=before,
            lost_rounds=found["lost"].sum(1),
            takeovers=found["takeovers"].sum(1),
            living_in_view=found["test_live_known"][:, -1],
        )
        report.row(
            "80 of 100 fall silent in rounds 50 to 145: failed pings per sample",
            f"{name}, pings",
            None,
            from_100_to_145=failed[:, 99:last],
            from_146_to_166=failed[:, last : last + 21],
            from_170_to_200=failed[:, last + 24 :],
            timeouts_170_on=found["waves"][:, last + 24 :],
        )
        drop = float((before - after).max())
        report.claim(
            f"{name}: accuracy does not fall by over 0.03 while 80% fall silent (largest drop)",
            drop <= 0.03,
            drop,
            0.03,
        )
        lost, split = int(found["lost"].sum()), int(found["disagreements"].sum())
        report.claim(
            f"{name}: no round is lost, nobody disagrees on the aggregator",
            lost == split == 0,
            [lost, split],
            [0, 0],
        )
    for delta in (20, 50):
        after = crash[str(delta)]["failed_pings"][:, last + delta :]
        report.claim(
            f"crash, delta = {delta}: no failed pings from delta rounds after the last crash",
            after.size > 0 and int(after.max()) == 0,
            int(after.max(initial=0)),
            0,
        )
    steady = crash["inf"]["failed_pings"][:, last + 24 :].mean(1)
    report.claim(
        "crash, delta = inf: failed pings per sample stay at s N_off / (N_live + 1)",
        ((steady >= 32) & (steady <= 44)).all(),
        steady.tolist(),
        expected,
    )


def mostly_absent(config: Any, rare: dict[str, Found], report: Report) -> None:
    """Only a fifth of the nodes that everyone knows is ever on line."""
    live = config.nodes // 5
    expected = config.sample * (config.nodes - live) / (live + 1)
    early, late = {}, {}
    for name, found in rare.items():
        failed = found["failed_pings"]
        early[name], late[name] = failed[:, :50].mean(1), failed[:, 50:]
        report.row(
            "20 of 100 ever on line: failed pings per sample",
            f"20 of 100, delta = {name}",
            found["test_accuracy"][:, -1],
            pings_to_50=early[name],
            pings_after=late[name],
            living_in_view=found["test_live_known"][:, -1],
            lost_rounds=found["lost"].sum(1),
        )
    steady = np.concatenate([early["50"], late["inf"].mean(1)])
    report.claim(
        "20 of 100: failed pings at s N_off / (N_live + 1): to round 50 (delta 50), after (inf)",
        ((steady >= 32) & (steady <= 44)).all(),
        steady.tolist(),
        expected,
    )
    report.claim(
        "20 of 100, delta = 50: no failed pings after round 50",
        late["50"].max() == 0,
        int(late["50"].max()),
        0,
    )


def deaths(config: Any, runs: Runs, report: Report, stage: Stage) -> None:
    """Nodes die between invitation and upload, and are back in the next round."""
    lost = []
    for name, options in {
        "deaths, all models or none": {"aggregation_timeout": None},
        "deaths, 8 of 10 models": {"aggregation_timeout": None, "success_fraction": 0.8},
        "deaths, all models or the time-out": {},
    }.items():
        make = lambda r, options=options: runs.modest(r, death=0.02, **options)  # noqa: E731
        found = stage(
            name, lambda make=make: runs.program(make, config.rounds, runs.at_server)()[1]
        )
        lost.append(float(found["lost"].mean()))
        report.row(
            "each node dies in a round with probability 0.02",
            name,
            found["test_accuracy"][:, -1],
            lost_rounds=found["lost"].sum(1),
            models_averaged=found["models"],
        )
    strict, some, patient = lost
    report.claim(
        "2% deaths a round: waiting for all models loses rounds, 8 of 10 or a time-out almost none",
        strict >= 0.1 and some <= 0.02 and patient == 0.0,
        lost,
        [0.1, 0.02, 0.0],
    )
