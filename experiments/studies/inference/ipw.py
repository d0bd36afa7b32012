"""Intelligence per watt: accuracy per watt and per joule, coverage, routing, and what a meter says.

Three seeds. Perceptrons of 1k to 472k weights on digits: on a 15 W device the smallest distilled one has
the most accuracy per watt, and the most accurate has 9 to 97 times its weights. All 18 local models
together cover 0.978 to 0.989 of the images, the best alone 0.956 to 0.969. From one of few steps on
60 W to a smaller distilled one on 15 W accuracy per watt grows 7.4 times: 2.2 x 3.3 in one order, 4.0 x
1.9 in the other. Routers that err towards the cloud save a times what the oracle saves (0.98); quality
falls only where errors flip. A router that hears the smallest model's own doubts saves 0.7 of the energy
at qualities of 0.992 to 0.997; one at random keeps 0.982 to 0.985.

There was no counter of energy on the machine of these numbers: its watts are modelled, of 5 W idle and
25 W busy assumed, while other programs ran beside. codecarbon assumes 4 W a thread of a processor that
it does not know, and told a seventh to a ninth of that. By rooflines at batch 1 a laptop has 11 times
the accuracy per watt of a data centre's accelerator, and 0.76 times its accuracy per joule: the paper's
inequality, local at least 1.4 times lower, comes out per joule alone. Its coverages are quoted.
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from dflax import inference
from dflax.inference import efficiency as ipw
from experiments.studies.inference import _ipw_figures as figures
from experiments.studies.inference import _ipw_runs as runs
from experiments.tasks import digit_sizes as sizes
from experiments.tools.command import main
from experiments.tools.finished import Stage, in_memory
from experiments.tools.report import Report
from experiments.tools.study import Input, Part, Picture, Study, Summary

OLD, NEW = sizes.NAMES.index("97k, few steps"), sizes.NAMES.index("9k, distilled")
# Who is asked at home when queries are routed: small enough that some of them nobody answers.
LOCAL = np.array([sizes.NAMES.index(f"{size}, distilled") for size in ("1k", "4k", "9k")])
SHARES, EXACT, AT_LEAST = np.linspace(0.0, 1.0, 6), 1e-4, 0.7


@dataclasses.dataclass(frozen=True)
class Config:
    """Settings.

    Attributes:
      seeds: splits, weights, measurements and draws of their own.
      seed: the first.
      few: steps of the first generation.
      steps: of the later ones.
      seconds: how long each program is measured.
      draws: of imperfect routers.
      router_steps: of the learned router.
      queries: of the stream that is profiled.
      carbon_seconds: how long codecarbon watches each program.
    """

    seeds: int = 3
    seed: int = 70
    few: int = 25
    steps: int = 250
    seconds: float = 0.3
    draws: int = 200
    router_steps: int = 300
    queries: int = 30
    carbon_seconds: float = 4.0


def digits(config: Config, stage: Stage = in_memory) -> Summary:
    """Six sizes of three generations on digits: rankings, coverage, factors and routers."""
    report, by = Report(), runs.meter()
    seeds = range(config.seed, config.seed + config.seeds)
    found = stage(
        f"18 models and an ensemble, {config.seeds} seeds",
        lambda: sizes.answers(seeds, few=config.few, steps=config.steps)._asdict(),
    )
    queries = found["right"].shape[-1]
    here = stage(
        f"their latency here, by the meter: {by.name}",
        lambda: [runs.measured(config.seconds, queries, by) for _ in seeds],
    )
    tables = [runs.table(found["right"][s], here[s]) for s in range(config.seeds)]
    routed = stage(
        f"routers: {config.draws} draws, and a learned one",
        lambda: [_routed(config, found, tables[s], here[s], s) for s in range(config.seeds)],
    )
    efficiency = [ipw.efficiency(table) for table in tables]
    _rows(report, efficiency, by.name)
    _rankings(report, efficiency)
    _coverage(report, found)
    _factors(report, tables)
    _routers(report, routed)
    interval = jax.jit(
        lambda table: ipw.bootstrap(
            jax.random.key(config.seed), lambda w: ipw.efficiency(table, weights=w).apw, queries
        )
    )(tables[0])
    drawn = figures.overview(efficiency[0], interval, routed, by.name)
    return report.summary({"ipw": drawn})


def _rows(report: Report, efficiency: list[ipw.Efficiency], meter: str) -> None:
    for m, name in enumerate(sizes.NAMES):
        columns: dict[str, Any] = {}
        for h, hardware in enumerate(runs.HARDWARE):
            columns[f"1/W {hardware}"] = [float(one.apw[m, h]) for one in efficiency]
            columns[f"1/J {hardware}"] = [float(one.apj[m, h]) for one in efficiency]
        accuracy = np.array([float(one.accuracy[m, 0]) for one in efficiency])
        title = (
            f"accuracy per watt and per joule (this machine by: {meter}; the others by rooflines)"
        )
        report.row(title, name, accuracy, **columns)


def _rankings(report: Report, efficiency: list[ipw.Efficiency]) -> None:
    def differ(one: ipw.Efficiency, h: int) -> bool:
        return int(jnp.argmax(one.apw[:, h])) != int(jnp.argmax(one.accuracy[:, h]))

    places = [[differ(one, h) for h in range(len(runs.HARDWARE))] for one in efficiency]
    report.claim(
        "(i) on the 15 W device the most accurate model is not the one of most accuracy per watt, every "
        "seed",
        np.all([one[runs.PHONE] for one in places]),
        [
            [sizes.NAMES[int(jnp.argmax(v[:, runs.PHONE]))] for v in (one.apw, one.accuracy)]
            for one in efficiency
        ],
        "two different models",
    )
    ranks = [np.argsort(np.ravel(value)) for one in efficiency for value in (one.apw, one.accuracy)]
    report.claim(
        "(i) over all pairs of model and hardware the ranking by accuracy per watt is another than that "
        "by accuracy, every seed",
        all(not np.array_equal(a, b) for a, b in zip(ranks[::2], ranks[1::2], strict=True)),
        [int(np.sum(a != b)) for a, b in zip(ranks[::2], ranks[1::2], strict=True)],
        "0 places that differ",
    )
    ratio = [np.asarray(one.apw[:, runs.LAPTOP] / one.apw[:, runs.CLOUD]) for one in efficiency]
    joule = [np.asarray(one.apj[:, runs.LAPTOP] / one.apj[:, runs.CLOUD]) for one in efficiency]
    report.row(
        "the 60 W device beside the one of 700 W, the same models",
        "ratio of efficiency",
        None,
        per_watt=np.mean(ratio),
        per_joule=np.mean(joule),
    )


def _coverage(report: Report, found: dict[str, np.ndarray]) -> None:
    together = [float(ipw.coverage(right)) for right in found["right"]]
    best = found["right"].mean(-1).max(-1)
    report.claim(
        "(ii) the best of the local models covers more queries than the best single one, every seed",
        np.all(np.array(together) > best),
        np.round(together, 4).tolist(),
        np.round(best, 4).tolist(),
    )
    years = np.arange(len(sizes.NAMES)) % len(sizes.GENERATIONS)
    for year, generation in enumerate(sizes.GENERATIONS):
        own = [right[years == year] for right in found["right"]]
        domains = [
            ipw.segment_mean(ipw.covered(right), labels, 10)
            for right, labels in zip(own, found["labels"], strict=True)
        ]
        report.row(
            "coverage by generation, six models each",
            generation,
            None,
            coverage=[float(ipw.coverage(right)) for right in own],
            best_single=[right.mean(-1).max() for right in own],
            hardest_class=[float(jnp.min(each)) for each in domains],
        )
    grown = [
        [float(ipw.coverage(right, among=jnp.asarray(years <= year))) for year in range(3)]
        for right in found["right"]
    ]
    report.claim(
        "coverage does not fall as generations are added, every seed",
        np.all(np.diff(grown, axis=1) >= 0),
        np.round(grown, 4).tolist(),
        "not falling",
    )


def _factors(report: Report, tables: list[ipw.Measurements]) -> None:
    at = np.array([OLD, NEW])[:, None], np.array([runs.LAPTOP, runs.PHONE])
    found = [ipw.decomposition(ipw.efficiency(table).apw[at]) for table in tables]
    apart = max(float(jnp.max(jnp.abs(one.model * one.hardware / one.total - 1))) for one in found)
    report.claim(
        "(iii) model times hardware is the total, in both orders and for the geometric means",
        apart < EXACT,
        apart,
        EXACT,
    )
    for place, path in enumerate(("model first", "hardware first", "geometric mean")):
        report.row(
            "97k, few steps, on 60 W to 9k, distilled, on 15 W: accuracy per watt",
            path,
            None,
            model=[float(one.model[place]) for one in found],
            hardware=[float(one.hardware[place]) for one in found],
            total=[float(one.total) for one in found],
        )


@functools.partial(jax.jit, static_argnames=("error", "retry"))
def _erring(
    best: ipw.Route, keys: Any, tied: Any, local: Any, cloud: Any, *, error: Any, retry: bool
) -> dict[str, Any]:
    """Savings `[3, shares, draws]` and quality `[shares, draws]` of routers with errors."""

    def one(share: Any, key: Any) -> ipw.Outcome:
        route = ipw.drawn(key, ipw.imperfect(best, share, error=error))
        return ipw.outcome(route, tied, local, cloud, retry=retry)

    many = jax.vmap(jax.vmap(one, (None, 0)), (0, None))(SHARES, keys)
    savings = jnp.stack([many.savings[kind] for kind in runs.KINDS])
    return {"savings": savings, "quality": many.quality}


@functools.partial(jax.jit, static_argnames=("steps",))
def _learning(
    key: Any, seen: Any, known: Any, clues: Any, tied: Any, local: Any, cloud: Any, *, steps: int
) -> ipw.Outcome:
    """The frontier of a router that learns from images that no local model learned from."""
    router = ipw.learned(key, seen, known, steps=steps, penalty=0.01)
    thresholds = 1.005 - jnp.geomspace(1.0, 0.004, 60)
    sure = ipw.confidence(router, clues)
    return ipw.frontier(sure, tied, local, cloud, thresholds, by="energy")


def _routed(
    config: Config, found: dict[str, np.ndarray], table: ipw.Measurements, here: Any, s: int
) -> dict[str, Any]:
    """Savings and qualities of all routers of one seed, answers compared with the ensemble's."""
    tied, known = (
        np.maximum(found[name][s][LOCAL], 1 - found[frontier][s])
        for name, frontier in (("right", "frontier"), ("known", "known_frontier"))
    )
    local, cloud = runs.costs(table, here, runs.PHONE)
    local = {kind: jnp.asarray(cost[LOCAL], jnp.float32) for kind, cost in local.items()}
    cloud = {kind: jnp.asarray(cost, jnp.float32) for kind, cost in cloud.items()}
    keys = jax.random.split(jax.random.key(1000 + config.seed + s), config.draws)
    best = ipw.oracle(tied, local["energy"])
    outcomes = {
        f"{error}{' retry' * retry}": _erring(
            best, keys, tied, local, cloud, error=error, retry=retry
        )
        for error, retry in (("cloud", False), ("flip", False), ("flip", True))
    }
    whole = ipw.outcome(best, tied, local, cloud)
    # Clues are the smallest model's own, which is asked first and charged whoever answers then.
    asked = {kind: cost.at[1:].add(cost[0]) for kind, cost in local.items()}
    charged = {kind: cost + local[kind][0] for kind, cost in cloud.items()}
    given = found["known_clues"][s], known, found["clues"][s], tied, asked, charged
    frontier = _learning(keys[0], *given, steps=config.router_steps)
    # A router without a clue asks the model that was best on known images in a share of the queries.
    single = int(np.argmax(known.mean(-1)))
    always = ipw.outcome(
        ipw.Route(jnp.ones(tied.shape[1]), jnp.full(tied.shape[1], single)), tied, local, cloud
    )
    return {
        "draws": outcomes,
        "oracle": jnp.stack([whole.savings[kind] for kind in runs.KINDS]),
        "oracle_quality": whole.quality,
        "local": whole.local,
        "frontier": {
            "savings": frontier.savings["energy"],
            "quality": frontier.quality,
            "local": frontier.local,
        },
        "single": {"savings": always.savings["energy"], "quality": always.quality},
    }


def _routers(report: Report, routed: list[dict[str, Any]]) -> None:
    savings = np.array([one["draws"]["cloud"]["savings"].mean(-1) for one in routed])
    oracle = np.array([one["oracle"] for one in routed])
    slopes = np.array([[np.polyfit(SHARES, line, 1)[0] for line in one] for one in savings])
    bends = np.abs(savings - oracle[..., None] * SHARES).max()
    report.claim(
        "(iv) a router that errs towards the cloud saves a times what the oracle saves (energy, FLOPs, "
        "dollars): slopes within 1 %, no point further off than 0.01, every seed",
        np.all(np.abs(slopes / oracle - 1) < 0.01) and bends < 0.01,
        np.round(slopes, 4).tolist(),
        np.round(oracle, 4).tolist(),
    )
    quality = {
        error: np.array([one["draws"][error]["quality"] for one in routed])
        for error in routed[0]["draws"]
    }
    least = {error: float(values.min()) for error, values in quality.items()}
    report.claim(
        "(iv) quality is 1 in every draw with errors towards the cloud, and below 1 at every a < 1 on "
        "the mean with flips; a retry brings it back to 1",
        least["cloud"] > 1 - EXACT
        and least["flip retry"] > 1 - EXACT
        and np.all(quality["flip"].mean(-1)[:, :-1] < 1 - EXACT),
        least,
        1.0,
    )
    for place, kind in enumerate(runs.KINDS):
        report.row(
            "savings beside the ensemble on 700 W, three distilled models on 15 W",
            kind,
            None,
            asked_at_home=[one["local"] for one in routed],
            oracle=oracle[:, place],
            a_80=savings[:, place, 4],
            flips_80=[one["draws"]["flip"]["savings"][place, 4].mean() for one in routed],
            flips_and_retries_80=[
                one["draws"]["flip retry"]["savings"][place, 4].mean() for one in routed
            ],
        )
    gains = [_at_savings(one, AT_LEAST) for one in routed]
    report.claim(
        f"at the most careful threshold that saves {AT_LEAST} of the energy a learned router keeps more "
        "quality than one that saves as much by asking the best single local model at random, every "
        "seed",
        all(ours > theirs for ours, theirs in gains),
        [round(ours, 4) for ours, _ in gains],
        [round(theirs, 4) for _, theirs in gains],
    )


def _at_savings(one: dict[str, Any], least: float) -> tuple[float, float]:
    """The learned router's best quality at that saving or more, and that of chance there."""
    savings, quality = (np.asarray(one["frontier"][name]) for name in ("savings", "quality"))
    best = int(np.argmax(np.where(savings >= least, quality, -1.0)))
    share = savings[best] / float(one["single"]["savings"])
    return float(quality[best]), 1.0 - float(share) * (1.0 - float(one["single"]["quality"]))


def stream(config: Config, stage: Stage = in_memory) -> Summary:
    """Programs on this machine as a stream of telemetry."""
    report, by = Report(), runs.meter()
    found = {}
    for number, size in enumerate(("1k", "97k")):
        own = found[size] = stage(
            f"a stream of {size}, by the meter: {by.name}",
            lambda size=size, number=number: runs.streamed(
                size, by, config.queries, config.seed + number
            ),
        )
        report.row(
            f"streams of {config.queries} queries (meter: {by.name})",
            f"{size}, streamed",
            None,
            samples=own["samples"],
            watts=own["power"],
            microjoules_an_image=1e6 * own["slope"],
            r2=own["r2"],
            without_samples=own["missing"],
        )
    apart = [abs(float(own["counted"] / own["total"]) - 1) for own in found.values()]
    report.claim(
        "the energies of all queries, idle time included, add up to what the meter counted",
        max(apart) < 0.01,
        apart,
        0.01,
    )
    return report.summary({})


def carbon(config: Config, stage: Stage = in_memory) -> Summary:
    """The package codecarbon beside this machine's meter on the same programs."""
    report, ours, theirs = Report(), runs.meter(), ipw.codecarbon()
    watts = {}
    for size in ("1k", "472k"):
        program, image = runs.program(size), jnp.zeros(64)

        def both(program: Any = program, image: Any = image) -> list[np.ndarray]:
            each = [
                ipw.metered(*program, image, meter=one, seconds=config.carbon_seconds)
                for one in (ours, theirs)
            ]
            return [np.array([one.power, one.energy, np.median(one.latency)]) for one in each]

        found = stage(f"{size} by {theirs.name}", both)
        for one, (power, energy, latency) in zip((ours, theirs), found, strict=True):
            report.row(
                "the same programs by two meters",
                f"{size}, by {one.name}",
                None,
                watts=power,
                microjoules=1e6 * energy,
                microseconds=1e6 * latency,
            )
        watts[size] = [float(one[0]) for one in found]
    report.claim(
        "both meters tell some power, none above 200 W",
        all(0 < each < 200 for pair in watts.values() for each in pair),
        watts,
        [0, 200],
    )
    return report.summary({})


def fleet(config: Config, stage: Stage = in_memory) -> Summary:
    """Language models on a laptop and on a data centre's accelerator, by rooflines; answers by Rasch."""
    report = Report()
    devices = inference.accelerator(
        runs.numbers(34e12, 2250e12),
        runs.numbers(0.546e12, 8e12),
        runs.numbers(128e9, 180e9),
        idle_watts=runs.numbers(10.0, 140.0),
        peak_watts=runs.numbers(90.0, 1000.0),
    )
    count = runs.numbers(4e9, 14e9, 32e9)
    ratios = []
    for seed in range(config.seed, config.seed + config.seeds):
        rng, key = np.random.default_rng(seed), jax.random.key(seed)
        queries = 500
        given = np.ceil(rng.lognormal(5, 1, queries))
        made = np.ceil(rng.lognormal(6, 0.7, queries))
        right = ipw.item_response(
            key, np.log(count / 4e9) + 0.5, jnp.asarray(rng.normal(size=queries))
        )

        def simulated(
            bytes_: float, right: Any = right, given: Any = given, made: Any = made
        ) -> Any:
            networks = inference.network(count, 1.5e5, parameter_bytes=bytes_)
            return ipw.efficiency(ipw.fleet(networks, devices, right, given, made).measured)

        half, quarter = simulated(2.0), simulated(0.5)
        ratios.append(
            {
                "watt": np.asarray(half.apw[:, 0] / half.apw[:, 1]),
                "joule": np.asarray(half.apj[:, 0] / half.apj[:, 1]),
                "bits": np.asarray(half.energy / quarter.energy),
            }
        )
    for m, size in enumerate(("4B", "14B", "32B")):
        report.row(
            "simulated, 16 bits: a laptop of 546 GB/s, 90 W over an accelerator of 8 TB/s, 1000 W",
            size,
            None,
            per_watt=[one["watt"][m] for one in ratios],
            per_joule=[one["joule"][m] for one in ratios],
            joules_16_over_4_bits=[one["bits"][m].mean() for one in ratios],
        )
    watt, joule = (np.array([one[name] for one in ratios]) for name in ("watt", "joule"))
    report.claim(
        "by rooflines at batch 1 the laptop has more accuracy per watt than the accelerator, and less "
        "per joule, every model and seed (the paper: at least 1.4 times less IPW)",
        np.all(watt > 1) and np.all(joule < 1),
        [np.round(each.mean(0), 3).tolist() for each in (watt, joule)],
        [1, 1],
    )
    return report.summary({})


def paper(config: Config, stage: Stage = in_memory) -> Summary:
    """The paper's numbers, as its abstract and its readers quote them, and how they hang together."""
    report = Report()
    title = "quoted: arXiv 2511.07885, per cent of queries"
    report.row(title, "some local model answers (all of 2025)", None, coverage=88.7)
    report.row(title, "win or tie with a frontier model, 2023", None, coverage=23.2)
    report.row(title, "win or tie with a frontier model, 2025", None, coverage=71.3)
    quoted = {"energy": (80.4, 64.3), "compute": (77.3, 61.8), "cost": (73.8, 59.0)}
    for kind, (oracle, eighty) in quoted.items():
        report.row("quoted savings", f"{kind}, quoted", None, oracle=oracle, a_80=eighty)
    report.claim(
        "quoted: savings with an 80 % accurate router are 0.8 of the oracle's, errors towards the cloud",
        all(abs(0.8 * oracle - eighty) < 0.051 for oracle, eighty in quoted.values()),
        [0.8 * oracle for oracle, _ in quoted.values()],
        [eighty for _, eighty in quoted.values()],
    )
    report.claim(
        "quoted: the models' factor of 3.1 is the ratio of the win-or-tie rates, and 3.1 times 1.7 is "
        "the total of 5.3",
        abs(71.3 / 23.2 - 3.1) < 0.05 and abs(3.1 * 1.7 - 5.3) < 0.05,
        [71.3 / 23.2, 3.1 * 1.7],
        [3.1, 5.3],
    )
    return report.summary({})


def _codecarbon(config: Config) -> None:
    try:
        import codecarbon  # noqa: F401
    except ImportError as error:
        raise ImportError("codecarbon is missing: pip install 'dflax[energy]'.") from error


STUDY = Study(
    Config,
    (
        Part("digits", digits, needs=()),
        Part("stream", stream, needs=()),
        Part("carbon", carbon, needs=(Input("codecarbon", _codecarbon),)),
        Part("fleet", fleet, needs=()),
        Part("paper", paper, needs=()),
    ),
    quick=Config(
        seeds=1, steps=50, seconds=0.02, draws=10, router_steps=20, queries=5, carbon_seconds=0.5
    ),
    pictures=(
        Picture(
            name="ipw",
            file="ipw.png",
            claim=(
                "The smallest model has the most accuracy per watt and is not the most "
                "accurate; routers that err towards the cloud save in proportion to how "
                "often they are right, and one that hears a small model's doubts keeps "
                "more quality than chance."
            ),
            data="18 perceptrons on digits (scikit-learn)",
            bands="bars at the left: 95 % bootstrap intervals; {config.seeds} seeds",
            headed=False,
        ),
    ),
)


if __name__ == "__main__":
    main(STUDY, __file__)
