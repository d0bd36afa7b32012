"""P/D-Serve: forwarding, ratios, transfers, aggregated instances and tides.

Four seeds of 20,000 requests. On-demand forwarding keeps .998 of the first tokens within 0.5 s at load
.95 and .975 at 1.1. At load .8 it is .28 ahead of a scheduler with reports of 1 s, but .015 ahead of
plain round robin: that scheduler is a weak baseline, which the rule for ties makes. A gateway that
offers every 5 ms lets requests overtake and falls to .977 at load .95. Reports in tokens choose as
those in seconds do, since at every report some instance is idle.

Best splits of 12 are 5, 7 and 3; one's own split serves 25 to 133 % more than another scenario's, 62 %
in the mean (the paper: +60 %, against what is not stated). One pool for all three at its own best
split serves 14 % more than groups, by formula: it is the ratio that gains, not the separation. Groups
save 4 % of prefill by their caches. Block-free transfer saves 46 % by formula, for which the control
cost was chosen; over contended links 58 %.

With 99 % within 0.5 s and a TPOT of 1.15, 1.25 and 1.5 times a full batch's, disaggregated instances
serve 120, 36 and 8 times as much as aggregated ones, and from twice on no more (the paper: 6.7). The
largest rate tried, 12, is what both reach there; their slots can do 13.7 and 14.9.

Tides of the kind of traffic: adjustment beside a profile is .005 ahead of the best fixed split if it
starts there (one seed of three behind), .010 behind if it starts from 2, where staying costs .32. With
the averages at the last decision as its reference it stays .020 behind, and from 2, overloaded at once,
it never moves. Scaling to a utilisation of .65 runs 15 % fewer instances at .999 of success.
"""

import jax.numpy as jnp
import numpy as np

from dflax import inference as inf
from experiments.studies.inference import _pd_serve_runs as runs
from experiments.studies.inference._pd_serve_figures import forwarding_figure
from experiments.studies.inference._pd_serve_levels import levels_and_tides
from experiments.studies.inference._pd_serve_settings import BEFORE, PAPER, Config
from experiments.studies.inference._pd_serve_transfer import transfer
from experiments.tools.command import main
from experiments.tools.finished import Stage, in_memory
from experiments.tools.report import Report
from experiments.tools.study import Part, Picture, Study, Summary


def forwarding(config: Config, stage: Stage = in_memory) -> Summary:
    """Success within 0.5 s over loads, by who forwards how."""
    report = Report()
    answers = inf.decode_seconds(runs.COSTS, 32)
    policies = {
        "on demand": inf.on_demand(),
        "on demand, offered every 5 ms": inf.on_demand(retry=0.005),
        "reports of 0.1 s": inf.local_queue(inf.stale_reports(0.1)),
        "reports of 1 s": inf.local_queue(inf.stale_reports(1.0)),
        "reports of 1 s, in tokens": inf.local_queue(inf.stale_reports(1.0, unit="tokens")),
        "reports of 1 s, with own dispatches": inf.local_queue(
            inf.stale_reports(1.0, dispatches=True)
        ),
        "fewest connections": inf.local_queue(inf.fewest_connections(answers)),
        "round robin": inf.local_queue(inf.round_robin()),
        "shortest queue": inf.local_queue(inf.least_work()),
    }
    if config.few:
        policies = {key: policies[key] for key in ("on demand", "reports of 1 s", "round robin")}
    found = {}
    for name, policy in policies.items():

        def run(policy: inf.Forwarding = policy) -> dict[str, np.ndarray]:
            got = runs.forwarded(policy, config.loads, config.size, config.seed, config.seeds)
            kept = ("success", "ttft_p50", "ttft_p99", "wasted_seconds", "refusals", "decode_load")
            return {key: got[key] for key in kept}

        found[name] = stage(f"{name}, {len(config.loads)} loads, {config.seeds} seeds", run)
        success = found[name]["success"]
        report.row(
            "success within 0.5 s, by load",
            name,
            None,
            **{f"at {load}": row for load, row in zip(config.loads, success, strict=True)},
            spread=np.ptp(success, axis=1).max(),
        )
    near = config.loads.index(0.8)
    for name in ("on demand", "reports of 1 s", "round robin"):
        of = found[name]
        report.row(
            "at load 0.8",
            f"{name}, at 0.8",
            None,
            ttft_p50=of["ttft_p50"][near],
            ttft_p99=of["ttft_p99"][near],
            wasted_seconds=of["wasted_seconds"][near],
            refusals=of["refusals"][near],
        )
    ours, stale = found["on demand"]["success"], found["reports of 1 s"]["success"]
    turn = found["round robin"]["success"]
    until = [i for i, load in enumerate(config.loads) if load <= 0.95]
    report.claim(
        "on demand: success >= .99 up to load .95, every seed",
        ours[until].min() >= 0.99,
        ours[until].min(),
        0.99,
    )
    lead = ours[near] - stale[near]
    report.claim(
        "at load .8 it is > .2 ahead of reports of 1 s with random ties, every seed; round robin beside",
        lead.min() > 0.2,
        [lead.min(), lead.mean()],
        [0.2, (ours[near] - turn[near]).mean()],
    )
    report.claim(
        "plain round robin is ahead of these reports at every load, so they are a weak baseline",
        (turn > stale).all(),
        (turn - stale).min(),
        0.0,
    )
    if not config.few:
        off = {
            name: np.nanmax(np.abs(found[name]["success"].mean(1) - np.array(before)))
            for name, before in BEFORE.items()
        }
        report.claim(
            "mean success rates within .04 of those of another program (.06 for the shortest queue)",
            all(v <= (0.06 if name == "shortest queue" else 0.04) for name, v in off.items()),
            list(off.values()),
            list(off),
        )
    splits = ratios(config, report, stage)
    success = {name: own["success"] for name, own in found.items()}
    return report.summary({"pd_serve": forwarding_figure(config.loads, success, splits)})


def ratios(config: Config, report: Report, stage: Stage) -> np.ndarray:
    """Throughput an instance of every split: the formula's claims, and what runs give."""
    found = stage(
        f"33 splits, {config.split} requests",
        lambda: runs.split(config.split, config.seed + 1, min(config.seeds, 3)),
    )
    measured = found["per_instance"]
    names = list(runs.PROFILES)
    sides = np.arange(1, 12)
    phi = {
        name: np.asarray(inf.group_throughput(one, jnp.array(sides), jnp.array(12 - sides)))
        for name, one in runs.PROFILES.items()
    }
    best = {name: int(np.argmax(of)) for name, of in phi.items()}
    for number, name in enumerate(names):
        report.row(
            "12 instances: the best split, and requests a second and instance",
            f"scenario {name}",
            None,
            prefill=sides[best[name]],
            formula=phi[name][best[name]],
            measured=measured[number, best[name]],
            best_measured=sides[np.argmax(measured[number].mean(1))],
            real_ratio=float(inf.best_throughput(runs.PROFILES[name])),
            **{f"at {other}'s split": phi[name][best[other]] for other in names},
        )
    report.claim(
        "best prefill instances of A, B, C are 5, 7, 3; C at A's split loses 22 %, B at C's 57 %",
        [sides[best[name]] for name in names] == [5, 7, 3]
        and round(1 - phi["C"][best["A"]] / phi["C"][best["C"]], 2) == 0.22
        and round(1 - phi["B"][best["C"]] / phi["B"][best["B"]], 2) == 0.57,
        [sides[best[name]] for name in names],
        [5, 7, 3],
    )
    off = np.stack([measured[k].mean(1) / phi[name] for k, name in enumerate(names)])
    report.claim(
        "runs at 1.3 times the capacity reach .9 to 1.01 of the formula at every split",
        off.min() > 0.9 and off.max() < 1.01,
        [off.min(), off.max()],
        [0.9, 1.01],
    )
    wrong = [
        phi[one][best[one]] / phi[one][best[other]] - 1
        for one in names
        for other in names
        if one != other
    ]
    group = inf.organised([runs.PROFILES[name] for name in names], [1.0] * 3, 36)
    pool = inf.mixed_profile(list(runs.PROFILES.values()), [1.0] * 3)
    n_p = int(inf.best_split(pool, 36))
    pooled = 36 * float(inf.group_throughput(pool, n_p, 36 - n_p))
    grouped = 3 * min(
        float(inf.group_throughput(runs.PROFILES[name], p, d)) * (p + d)
        for name, p, d in zip(names, group.prefill, group.decode, strict=True)
    )
    report.row(
        "36 instances, as many requests of A, B and C: requests a second",
        "by formula",
        None,
        one_pool_at_its_best_split=pooled,
        groups_at_theirs=grouped,
        mean_gain_of_own_over_another_split=np.mean(wrong),
        least=min(wrong),
        most=max(wrong),
        paper=PAPER["throughput"],
    )
    report.claim(
        "one's own split serves more than another scenario's in every pair",
        min(wrong) > 0,
        [np.mean(wrong), min(wrong), max(wrong)],
        "paper: +60 % for ratio and organisation together, operating point not stated",
    )
    return measured


STUDY = Study(
    Config,
    (
        Part("forwarding and ratios", forwarding, needs=()),
        Part("transfer and decoding", transfer, needs=()),
        Part("service levels and tides", levels_and_tides, needs=()),
    ),
    quick=Config(seeds=1, size=1_000, others=400, split=200, periods=1, few=True),
    pictures=(
        Picture(
            name="pd_serve",
            file="pd_serve.png",
            claim=(
                "A gateway that offers requests to idle slots keeps .998 of first tokens "
                "in time at load .95, round robin .92, reports of 1 s .59; runs follow "
                "the formula of the best split within 9 %."
            ),
            data="{config.size:,} simulated requests to eight prefill instances",
            bands="bands: least to largest of {config.seeds} seeds",
            headed=False,
        ),
        Picture(
            name="pd_serve_tides",
            file="pd_serve_tides.png",
            claim=(
                "Disaggregated instances serve 8 times as much as aggregated ones where "
                "1.5 times a full batch's pace is promised and no more at twice; "
                "adjusting the split beside a profile is .005 ahead of the best fixed one"
                " it starts from, one seed of three behind."
            ),
            data="simulated requests, steady at the left and a tide at the right",
            bands="bands: least to largest of {config.seeds} seeds; at the right means",
            headed=False,
        ),
    ),
)


if __name__ == "__main__":
    main(STUDY, __file__)
