"""Groups of clients that arrive together: the scheduler's decisions, staleness, time to a target."""

import dataclasses
import warnings
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import optax

import dflax as dx
from dflax import asynchronous
from experiments.tasks import images, timed
from experiments.tasks.inputs import DIGITS, FASHION_MNIST
from experiments.tools.command import main
from experiments.tools.curves import held, seconds_to, span
from experiments.tools.figures import curve, figure, looks
from experiments.tools.finished import Stage, in_memory
from experiments.tools.report import Report
from experiments.tools.study import Part, Picture, Study, Summary

CLIENTS, LEAST, MOST, ALPHA, RATE, TARGET = 10, 10, 50, 0.9, 0.05, 0.7
IMAGE_TARGET = 0.6
FEDAVG, FEDASYNC, FEDBUFF, COMPASS = "FedAvg", "FedAsync", "FedBuff 3", "FedCompass"
NORMALISED, MOMENTUM = "FedCompass+N", "FedCompass+M"
METHODS = (FEDAVG, FEDASYNC, FEDBUFF, COMPASS, NORMALISED, MOMENTUM)

Method = tuple[Callable[[np.ndarray], asynchronous.Timetable], Callable[..., dx.Algorithm]]


@dataclasses.dataclass(frozen=True)
class Config:
    """Settings.

    Attributes:
      horizon: seconds on digits.
      draws: of speeds, for the scheduler alone.
      seeds: repetitions on digits.
      network: for Fashion-MNIST, see `experiments.tasks.images.network`; "none" leaves it out.
      image_horizon: seconds on it.
      image_seeds: repetitions on it.
    """

    horizon: float = 200.0
    draws: int = 4
    seeds: int = 5
    network: str = "none"
    image_horizon: float = 300.0
    image_seeds: int = 3


def speeds(clients: int, seed: int) -> np.ndarray:
    """0.02 + Exp(0.1) seconds a local step."""
    return asynchronous.exponential(clients, 0.1, least=0.02, seed=seed)


def fedasync(seconds: np.ndarray, horizon: float, steps: int) -> asynchronous.Timetable:
    """Everybody's every arrival, of `steps` local steps, with the weight alpha / n."""
    n = len(seconds)
    with warnings.catch_warnings():
        # It leans to the fast clients; that is what is shown.
        warnings.simplefilter("ignore", asynchronous.SurrogateWarning)
        return asynchronous.immediate(
            seconds * steps, horizon, local_steps=steps, weights=np.full(n, ALPHA / n)
        )


def scheduler(config: Config, stage: Stage = in_memory) -> Summary:
    """Decisions alone: two traces, and what is measured of them for 5, 10 and 20 clients."""
    report = Report()
    first = events(asynchronous.fedcompass(np.array([0.1, 0.2, 0.4]), 80))
    wanted = [
        (10.0, (0,), (100,), (0,)),
        (20.0, (0,), (100,), (0,)),
        (20.0, (1,), (100,), (2,)),
        (30.0, (0, 1), (100, 50), (1, 0)),
        (40.0, (0, 1), (100, 50), (0, 0)),
        (40.0, (2,), (100,), (5,)),
        (50.0, (0, 1, 2), (100, 50, 25), (1, 1, 0)),
        *((time, (0, 1, 2), (100, 50, 25), (0, 0, 0)) for time in (60.0, 70.0, 80.0)),
    ]
    second = events(asynchronous.fedcompass(np.array([0.1, 0.23, 0.9]), 112))
    also = [(30.0, (0, 1), (100, 30), (1, 0)), (40.0, (0, 1), (100, 43), (0, 0))]
    last = [(110.0, (0,), (100,)), (111.6, (1, 2), (50, 24))]
    same = first == wanted and second[3:5] == also and [e[:3] for e in second[-2:]] == last
    report.claim(
        "both traces are the authors' schedule, event for event",
        same,
        len(first) + len(second),
        "events",
    )
    shares = []
    for n in (5, 10, 20):
        columns: dict[str, list[float]] = {}
        for draw in range(config.draws):
            seconds = speeds(n, 100 * n + draw)
            ours = asynchronous.fedcompass(seconds, 600.0).measures()
            beside = fedasync(seconds, 600.0, 100).measures()
            shares.append(ours["staleness"] / beside["staleness"])
            for name, value in {
                "spread": seconds.max() / seconds.min(),
                "updates": ours["server_steps"],
                "group": ours["contributors"],
                "staleness": ours["staleness"],
                "idle": ours["idle"],
                "FedAsync's updates": beside["server_steps"],
                "FedAsync's staleness": beside["staleness"],
            }.items():
                columns.setdefault(name, []).append(value)
        report.rows[f"{n} clients"] = {k: span(np.array(v), 2) for k, v in columns.items()}
        report.tables.setdefault("the scheduler, 600 seconds", []).append(f"{n} clients")
    report.claim(
        "FedCompass has at most 0.4 of FedAsync's staleness on every draw (largest, mean)",
        max(shares) <= 0.4,
        [max(shares), float(np.mean(shares))],
        0.4,
    )
    report.claim(
        "and at most 0.3 (draws of all)",
        max(shares) <= 0.3,
        f"{sum(s <= 0.3 for s in shares)} of {len(shares)}",
        "all",
    )
    late = []
    for draw in range(config.draws):
        noise = asynchronous.log_normal(10, 1.0, 0.3, pieces=2000, seed=draw)
        table = asynchronous.fedcompass(speeds(10, 1000 + draw)[:, None] * noise, 600.0)
        late.append(table.later.sum() / (table.steps > 0).sum())
    report.claim(
        "with random durations some arrive late (share of arrivals)",
        min(late) > 0.1 and max(late) < 0.3,
        span(np.array(late)),
        "0.17 to 0.24",
    )
    return report.summary({})


def events(table: asynchronous.Timetable) -> list[tuple]:
    """Time, clients, local steps and staleness of every step of the server."""
    columns = (table.clients, table.steps, table.staleness)
    return [
        (round(float(time), 6), *(tuple(column[low:high].tolist()) for column in columns))
        for time, low, high in zip(table.time, table.first[:-1], table.first[1:], strict=True)
    ]


def methods(loss: Any, horizon: float) -> dict[str, Method]:
    """Timetable of speeds, and algorithm of waves and a rate."""
    discount = asynchronous.polynomial(0.5)

    def compass(seconds: np.ndarray) -> asynchronous.Timetable:
        return asynchronous.fedcompass(seconds, horizon, least=LEAST, most=MOST, alpha=ALPHA)

    def buffered(seconds: np.ndarray) -> asynchronous.Timetable:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", asynchronous.SurrogateWarning)
            table = asynchronous.fedbuff(seconds * MOST, 3, horizon, local_steps=MOST)
        return table._replace(weights=np.full(len(table.weights), ALPHA / len(seconds)))

    def server(cut: asynchronous.Waves, rate: Any, **options: Any) -> dx.Algorithm:
        return asynchronous.asynchronous_server(
            loss, optax.sgd(rate), cut, discount=discount, **options
        )

    def normalised(seconds: np.ndarray) -> asynchronous.Timetable:
        return asynchronous.normalised(compass(seconds))

    momentum = optax.sgd(0.3, momentum=0.9)
    return {
        FEDAVG: (
            lambda s: asynchronous.synchronous(s * MOST, horizon, local_steps=MOST),
            timed.plain(loss),
        ),
        FEDASYNC: (lambda s: fedasync(s, horizon, MOST), server),
        FEDBUFF: (buffered, server),
        COMPASS: (compass, server),
        NORMALISED: (normalised, lambda cut, rate: server(cut, rate, per_step=True)),
        MOMENTUM: (compass, lambda cut, rate: server(cut, rate, server_optimizer=momentum)),
    }


class Task(NamedTuple):
    """What is trained on, several seeds of it.

    Attributes:
      name: for the lines that are printed.
      data: training and test examples.
      federations: one a seed.
      speeds: `[n]` seconds a local step, one a seed.
      model: a linen module.
      start: `key -> ` the first model.
    """

    name: str
    data: dx.data.Split
    federations: Sequence[dx.Federation]
    speeds: Sequence[np.ndarray]
    model: Any
    start: Callable[[Any], Any]


def task(data: dx.data.Split, classes: int, seeds: int, *, equal: bool = False) -> Task:
    """Digits or images with so many classes a client, a perceptron, random or equal speeds."""
    labels = np.asarray(data.labels)
    federations = [
        dx.Federation(
            data,
            timed.with_classes(labels, CLIENTS, classes, seed),
            local_steps=MOST,
            batch_size=16,
            replacement=True,
        )
        for seed in range(seeds)
    ]
    given = [np.full(CLIENTS, 0.1) if equal else speeds(CLIENTS, seed) for seed in range(seeds)]
    name = f"{classes} classes a client" + (", equal speeds" if equal else "")
    model = dx.models.MLP((64,), classes=10)
    return Task(name, data, federations, given, model, timed.perceptron)


def followed(
    stage: Stage,
    given: Task,
    horizon: float,
    wanted: Sequence[str] = METHODS,
    target: float = TARGET,
) -> dict[str, dict[str, np.ndarray]]:
    """Of each method: accuracy over the seconds, seconds to the target, what its timetable is like."""
    loss = dx.losses.classification(given.model.apply)
    seconds = np.linspace(0, horizon, 101)
    found: dict[str, dict[str, np.ndarray]] = {}
    for method, (table_of, make) in methods(loss, horizon).items():
        if method not in wanted:
            continue
        made = [table_of(speed) for speed in given.speeds]
        curves = stage(
            f"{given.name}, {method}",
            lambda made=made, make=make: timed.follow(
                make,
                given.federations,
                made,
                given.start,
                timed.accuracy(loss, given.data.test, min(500, len(given.data.test))),
                [RATE],
            ),
        )
        accuracy, time = curves["accuracy"][0], curves["time"][0]
        measures = [table.measures() for table in made]
        found[method] = {
            "accuracy": held(time, accuracy, seconds),
            "seconds": seconds_to(time, accuracy >= target),
            **{k: np.array([m[k] for m in measures]) for k in MEASURES},
        }
    return found


def tell(report: Report, given: Task, found: dict[str, dict[str, np.ndarray]]) -> None:
    """A row of each method."""
    for method, one in found.items():
        last = one["accuracy"][:, -1]
        reached = np.isfinite(one["seconds"])
        report.row(
            given.name,
            f"{method}, {given.name}",
            last,
            least=last.min(),
            largest=last.max(),
            seconds_to_target=one["seconds"][reached].mean() if reached.any() else np.inf,
            reached_it=reached.mean(),
            **{k: one[k] for k in MEASURES},
        )


def on_digits(config: Config, stage: Stage = in_memory) -> Summary:
    """A perceptron on digits, 2 and 3 classes a client, speeds 0.02 + Exp(0.1), and equal speeds."""
    report, data = Report(), dx.data.digits()
    found = {}
    for classes in (2, 3):
        given = task(data, classes, config.seeds)
        found[classes] = followed(stage, given, config.horizon)
        tell(report, given, found[classes])
    given = task(data, 2, config.seeds, equal=True)
    equal = followed(stage, given, 0.3 * config.horizon, (FEDAVG, FEDASYNC, COMPASS))
    tell(report, given, equal)
    ahead = found[2][COMPASS]["accuracy"][:, -1] - found[2][FEDASYNC]["accuracy"][:, -1]
    report.claim(
        "2 classes a client: FedCompass ends 0.1 above FedAsync on every seed",
        (ahead >= 0.1).all(),
        span(ahead),
        0.1,
    )
    stale = np.concatenate(
        [one[COMPASS]["staleness"] / one[FEDASYNC]["staleness"] for one in found.values()]
    )
    report.claim("its staleness is at most 0.3 of FedAsync's", stale.max() <= 0.3, span(stale), 0.3)
    apart = np.abs(equal[COMPASS]["accuracy"][:, -1] - equal[FEDAVG]["accuracy"][:, -1])
    for bar in (0.04, 0.02):
        report.claim(
            f"equal speeds: within {bar} of FedAvg on every seed",
            (apart <= bar).all(),
            span(apart),
            bar,
        )
    ratio = found[3][COMPASS]["seconds"] / found[3][FEDAVG]["seconds"]
    report.claim(
        f"3 classes: {TARGET} accuracy in less than 0.8 of FedAvg's time (mean over seeds)",
        ratio.mean() < 0.8,
        span(ratio, 2),
        0.8,
    )
    for classes, one in found.items():
        sooner = one[COMPASS]["seconds"] < one[FEDAVG]["seconds"]
        report.claim(
            f"{classes} classes: sooner than FedAvg at {TARGET} on at least half of the seeds",
            sooner.mean() >= 0.5,
            f"{sooner.sum()} of {len(sooner)}",
            "not on every seed",
        )
    return report.summary(
        {"fedcompass": drawn_over_seconds("digits, 10 clients", found, config.horizon)}
    )


def drawn_over_seconds(
    title: str, found: dict[int, dict[str, dict[str, np.ndarray]]], horizon: float
) -> Any:
    """Accuracy over seconds, one panel for each number of classes."""
    seconds = np.linspace(0, horizon, 101)
    with figure(9.0, 4.2, ncols=len(found), sharey=True, squeeze=False) as (drawn, panels):
        for axes, (classes, methods_found) in zip(panels[0], found.items(), strict=True):
            own = looks(methods_found)
            for method, one in methods_found.items():
                # Six bands hide each other.
                banded = method in (FEDAVG, COMPASS)
                values = one["accuracy"] if banded else one["accuracy"].mean(0, keepdims=True)
                curve(axes, seconds, values, own[method], method)
            axes.set(xlabel="simulated seconds", title=f"{classes} classes a client")
        panels[0][0].set_ylabel("test accuracy")
        seeds = len(next(iter(found.values()))[FEDAVG]["accuracy"])
        drawn.suptitle(
            f"{title}; means of {seeds} seeds; bands: least to largest, "
            f"of {FEDAVG} and {COMPASS} alone",
            fontsize=10,
        )
        handles = panels[0][-1].get_legend_handles_labels()
        drawn.legend(*handles, loc="outside lower center", ncols=6, fontsize=8)
    return drawn


def on_images(config: Config, stage: Stage = in_memory) -> Summary:
    """Fashion-MNIST and a convolutional network, 2 classes a client, random and equal speeds."""
    report, data = Report(), dx.data.fashion_mnist()
    model, example = images.network(config.network), data.example
    found = {}
    for equal, horizon, wanted in (
        (False, config.image_horizon, (FEDAVG, FEDASYNC, FEDBUFF, COMPASS)),
        (True, config.image_horizon / 3, (FEDAVG, COMPASS)),
    ):
        given = task(data, 2, config.image_seeds, equal=equal)._replace(
            name="Fashion-MNIST" + (", equal speeds" if equal else ""),
            model=model,
            start=lambda key: model.init(key, example)["params"],
        )
        found[equal] = followed(stage, given, horizon, wanted, IMAGE_TARGET)
        tell(report, given, found[equal])
    image_claims(config, report, found)
    drawn = drawn_over_seconds("Fashion-MNIST, 10 clients", {2: found[False]}, config.image_horizon)
    return report.summary({"fedcompass_images": drawn})


def image_claims(config: Config, report: Report, found: dict[bool, Any]) -> None:
    """What the paper says, of ends (the mean over the last twentieth of the time) and times.

    Args:
      config: settings.
      report: for the claims.
      found: by whether speeds are equal, what `followed` returns.
    """
    ends = {
        equal: {name: one["accuracy"][:, -5:].mean(1) for name, one in methods_found.items()}
        for equal, methods_found in found.items()
    }
    above_async = ends[False][COMPASS] - ends[False][FEDASYNC]
    above_buffered = ends[False][COMPASS] - ends[False][FEDBUFF]
    above_fedavg = ends[False][COMPASS] - ends[False][FEDAVG]
    ratio = found[False][COMPASS]["seconds"] / found[False][FEDAVG]["seconds"]
    apart = np.abs(ends[True][COMPASS] - ends[True][FEDAVG])
    judged: list[tuple[bool, Any, Any]] = [
        ((above_async > 0.1).all(), span(above_async), 0.1),
        ((above_buffered > 0).all(), span(above_buffered), 0.0),
        (above_fedavg.mean() > 0, span(above_fedavg), 0.0),
        ((ratio < 1).all(), span(ratio, 2), 1.0),
        ((apart <= 0.04).all(), span(apart), 0.04),
    ]
    for statement, (holds, ours, bar) in zip(statements(config), judged, strict=True):
        report.claim(statement, holds, ours, bar)


def statements(config: Config) -> list[str]:
    """What is claimed of images."""
    title = "Fashion-MNIST, 2 classes a client"
    return [
        f"{title}: FedCompass ends 0.1 above FedAsync on every seed",
        f"{title}: and above FedBuff on every seed",
        f"{title}: it ends above FedAvg, mean over seeds",
        f"{title}: sooner than FedAvg at {IMAGE_TARGET} on every seed (share of its time)",
        f"{title}, equal speeds: within 0.04 of FedAvg on every seed",
    ]


MEASURES = ("staleness", "largest_staleness", "contributors", "idle")
STUDY = Study(
    Config,
    (
        Part("scheduler", scheduler, needs=()),
        Part("digits", on_digits, needs=(DIGITS,)),
        Part(
            "Fashion-MNIST",
            on_images,
            needs=(FASHION_MNIST,),
            states=statements,
            wanted=lambda config: config.network != "none",
        ),
    ),
    quick=Config(horizon=40.0, draws=1, seeds=1, image_horizon=40.0, image_seeds=1),
    seconds=115,
    pictures=(
        Picture(
            name="fedcompass",
            file="fedcompass.png",
            claim=(
                "Groups that arrive together have a tenth of FedAsync's staleness, end "
                "far above it, and mostly reach a target before FedAvg; one fast client's"
                " classes can still lead."
            ),
            data="digits (scikit-learn), 10 clients",
            bands="bands: least to largest of {config.seeds} seeds, of FedAvg and FedCompass alone",
            headed=False,
        ),
    ),
)


if __name__ == "__main__":
    main(STUDY, __file__)
