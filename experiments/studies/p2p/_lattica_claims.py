"""What Lattica's protocols have to show: rows and claims."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from experiments.studies.p2p import _lattica_protocols as protocols
from experiments.tools.report import Report

# The sheet's means: hops with k = 20, messages and rounds of full lookups.
HOPS = {64: 1.2, 256: 1.6, 1024: 1.9, 4096: 2.3}
MESSAGES = {64: 20.0, 256: 20.3, 1024: 21.7}
ROUNDS = {64: 7.0, 256: 7.1, 1024: 7.6}


def of_links(
    report: Report, links: dict[str, Any], lower: dict[str, Any], rates: Sequence[float]
) -> None:
    """Direct shares and what relays add."""
    for place, rate in enumerate(rates):
        report.row(
            "links",
            f"p = {rate:g}",
            None,
            direct=links["share"][:, place],
            least=links["share"][:, place].min(),
            most=links["share"][:, place].max(),
            largest_z=np.abs(links["z"][:, place]).max(),
            reachable=links["reachable"][:, place],
            first_try=links["first"][:, place],
        )
    report.row(
        "links",
        "pairs that can be joined less often",
        None,
        direct=lower["share"],
        first_try=lower["first"],
    )
    z = np.concatenate([links["z"].ravel(), links["z, reversal"].ravel()])
    report.claim(
        "the direct share is within 3 sigma of the closed form of the drawn types",
        np.abs(z).max() <= 3,
        [float(z.min()), float(z.max())],
        3,
    )
    report.claim(
        "with relays everybody reaches everybody",
        np.all(links["reachable"] == 1),
        float(links["reachable"].min()),
        1,
    )
    possible = links["possible"][:, 0]
    report.claim(
        "the share of pairs that can be joined is 0.8725 on the mean over draws of types",
        abs(possible.mean() - protocols.EXPECTED) < 0.03,
        possible.tolist(),
        protocols.EXPECTED,
    )
    report.claim(
        "with pairs joined 0.80 times as often, 0.70 are direct and 0.976 of them at the first try",
        np.all(np.abs(lower["share"] - 0.7) < 0.04)
        and np.all(np.abs(lower["first"] - 0.976) < 0.01),
        [float(lower["share"].mean()), float(lower["first"].mean())],
        [0.70, 0.976],
    )


def of_lookups(report: Report, lookups: dict[int, dict[str, np.ndarray]]) -> None:
    """Hops, messages and rounds."""
    for peers, found in lookups.items():
        report.row(
            "lookups", f"{peers} peers", None, **{k.replace(" ", "_"): v for k, v in found.items()}
        )
    for k in (1, 20):
        wanted = {n: 0.5 * math.log2(n) if k == 1 else HOPS.get(n, np.nan) for n in lookups}
        means = {n: lookups[n][f"hops, k = {k}"] for n in lookups}
        report.claim(
            f"greedy lookups with k = {k} take "
            + ("0.5 log2 n hops within 0.4" if k == 1 else "the sheet's hops within 0.2")
            + ", mean of each seed",
            all(np.all(np.abs(means[n] - wanted[n]) <= (0.4 if k == 1 else 0.2)) for n in lookups),
            {n: float(means[n].mean()) for n in lookups},
            wanted,
        )
    further = {
        k: [
            float(np.mean(found[f"hops to a peer, k = {k}"] - found[f"hops, k = {k}"]))
            for found in lookups.values()
        ]
        for k in (1, 20)
    }
    report.claim(
        "a peer's own id takes at most 0.3 hops more than a random key with k = 1, and 0.1 with 20",
        np.mean(further[1]) > 0 and np.max(further[1]) < 0.3 and np.max(np.abs(further[20])) < 0.1,
        further,
        [0.3, 0.1],
    )
    for name, wanted, margin in (("messages", MESSAGES, 0.3), ("rounds", ROUNDS, 0.1)):
        known = {n: lookups[n][name] for n in lookups if n in wanted}
        report.claim(
            f"full lookups take the sheet's {name} within {margin}, mean of each seed",
            all(np.all(np.abs(known[n] - wanted[n]) <= margin) for n in known),
            {n: float(known[n].mean()) for n in known},
            wanted,
        )
    report.claim(
        "full lookups find the 20 closest peers, every time",
        all(np.all(found["exact"] == 1) for found in lookups.values()),
        [float(found["exact"].min()) for found in lookups.values()],
        1,
    )


def of_gossip(
    report: Report,
    gossip: dict[str, dict[int, dict[str, np.ndarray]]],
    islands: dict[str, np.ndarray],
) -> None:
    """Rounds until replicas are equal, islands, and what is sent."""
    for schedule, sizes in gossip.items():
        for peers, found in sizes.items():
            whole = found["by_state"]
            report.row(
                "replicas",
                f"{schedule}, {peers} peers",
                None,
                rounds=found["rounds"],
                least=found["rounds"].min(),
                most=found["rounds"].max(),
                sent_by_digest=found["by_digest"] / whole,
                sent_by_entry=found["by_entry"] / whole,
            )
    ours = {n: found["rounds"] for n, found in gossip["push-pull"].items()}
    report.claim(
        "push-pull makes all replicas equal in log2 n + 1 rounds, within 1.5 on every seed",
        all(np.all(np.abs(rounds - math.log2(n) - 1) <= 1.5) for n, rounds in ours.items()),
        {n: [int(r.min()), int(r.max())] for n, r in ours.items()},
        {n: math.log2(n) + 1 for n in ours},
    )
    slower = [{s: float(gossip[s][n]["rounds"].mean()) for s in gossip} for n in gossip["pull"]]
    report.claim(
        "one by one is faster than at once, and disjoint pairs and pulls are slower, mean of seeds",
        all(row["one by one"] < row["push-pull"] < row["matching"] < row["pull"] for row in slower),
        slower,
        "order",
    )
    report.row(
        "islands",
        "set, 16 peers",
        None,
        members=islands["set: members"],
        by_version=islands["set: by_version"] / islands["set: by_state"],
        by_entry=islands["set: by_entry"] / islands["set: by_state"],
        by_digest=islands["set: by_digest"] / islands["set: by_state"],
    )
    report.row("islands", "index, 16 peers", None, members=islands["index: members"])
    report.claim(
        "two islands end as two replicas, and as one after they meet, on every seed",
        np.all(islands["set: apart"] == 2) and np.all(islands["set: together"] == 1),
        [islands["set: apart"].tolist(), islands["set: together"].tolist()],
        [2, 1],
    )
    report.claim(
        "the set keeps all of 16 concurrent additions, and the index that is written back loses some",
        np.all(islands["set: members"] == 16) and np.all(islands["index: members"] < 16),
        [islands["set: members"].tolist(), islands["index: members"].tolist()],
        16,
    )


def of_swarms(
    report: Report, swarms: dict[int, dict[str, np.ndarray]], spoilt: dict[str, np.ndarray]
) -> None:
    """Rounds until everybody has everything, and corrupted blocks."""
    bounds = {n: 16 + math.ceil(math.log2(n)) - 1 for n in swarms}
    for peers, found in swarms.items():
        for name, rounds in found.items():
            report.row(
                "exchange of 16 blocks",
                f"{name}, {peers} peers",
                None,
                rounds=rounds,
                least=rounds.min(),
                most=rounds.max(),
                bound=bounds[peers],
            )
    report.claim(
        "coordinated swarms take at least 16 + ceil(log2 n) - 1 rounds and at most 4 more",
        all(
            np.all((found["coordinated"] >= bounds[n]) & (found["coordinated"] <= bounds[n] + 4))
            for n, found in swarms.items()
        ),
        {n: [int(f["coordinated"].min()), int(f["coordinated"].max())] for n, f in swarms.items()},
        bounds,
    )
    report.claim(
        "a star takes 16 (n - 1) rounds, and blind swarms of 8 and more fewer",
        all(
            np.all(found["star"] == 16 * (n - 1)) and (n < 8 or found["blind"].max() < 16 * (n - 1))
            for n, found in swarms.items()
        ),
        {n: [float(f["star"].mean()), float(f["blind"].mean())] for n, f in swarms.items()},
        {n: 16 * (n - 1) for n in swarms},
    )
    for how in ("by scores", "at random"):
        report.row(
            "4 of 16 peers corrupt what they send",
            f"asked {how}",
            None,
            rounds=spoilt[f"rounds, {how}"],
            dropped=spoilt[f"dropped, {how}"],
        )
    report.claim(
        "peers that rate each other drop fewer corrupted blocks, mean of seeds",
        spoilt["dropped, by scores"].mean() < spoilt["dropped, at random"].mean(),
        float(spoilt["dropped, by scores"].mean()),
        float(spoilt["dropped, at random"].mean()),
    )
