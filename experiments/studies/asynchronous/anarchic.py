"""Clients that come when they like: exact limits with a memory, predicted bias without, speed-up."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial

import dflax as dx
from dflax import asynchronous, recipes
from experiments.tasks import halved, timed
from experiments.tasks.inputs import DIGITS
from experiments.tools.command import main
from experiments.tools.curves import held, span
from experiments.tools.figures import bars, curve, figure, looks
from experiments.tools.finished import Stage, in_memory
from experiments.tools.report import Report
from experiments.tools.study import Part, Picture, Study, Summary

N, COLLECTED, DELAY = 10, 4, 5
LINEAR = np.linspace(1, 4, N)
RARE = np.where(np.arange(N) < 2, LINEAR / 20, LINEAR)
ARRIVALS = {"uniform": np.ones(N), "linear": LINEAR, "two are rare": RARE}
SERVER_RATES = (0.1, 0.3)
MEMORY = {False: "AFA-CD", True: "AFA-CS"}
# Limits on quadratics: arrivals, local steps, with a memory, without.
LIMITS = {
    "uniform, 5 steps each": (np.ones(N), np.full(N, 5), 4.5, 4.5),
    "linear, 5 steps each": (LINEAR, np.full(N, 5), 4.5, 5.4016),
    "linear, 1 to 10 steps": (LINEAR, np.arange(1, N + 1), 4.2984, 5.2231),
}


@dataclasses.dataclass(frozen=True)
class Config:
    """Settings.

    Attributes:
      quadratic_rounds: steps of the server on quadratics.
      noise_rounds: on the noisy quadratic.
      rounds: on digits.
      horizon: seconds of the simulation of clocks.
      seeds: repetitions of each.
    """

    quadratic_rounds: int = 20_000
    noise_rounds: int = 1_500
    rounds: int = 1_500
    horizon: float = 600.0
    seeds: int = 3


def exact(config: Config, stage: Stage = in_memory) -> Summary:
    """f_i = (x - i)^2 / 2 and a constant rate: where the server comes to rest."""
    report, targets = Report(), np.arange(float(N))
    rest: dict[tuple[str, bool], np.ndarray] = {}
    for name, (chances, steps, with_memory, without) in LIMITS.items():
        for memory, method in MEMORY.items():
            rounds = config.quadratic_rounds // (5 if memory else 1)
            made = [
                asynchronous.arrivals(
                    N,
                    COLLECTED,
                    rounds,
                    probabilities=chances,
                    delay=DELAY,
                    local_steps=steps,
                    memory=memory,
                    seed=seed,
                )
                for seed in range(config.seeds)
            ]
            found = stage(
                f"{method}, {name}",
                lambda made=made, memory=memory: timed.follow(
                    lambda cut: recipes.afa(dx.data.quadratic_loss, 0.05, 0.02, cut, memory=memory),
                    [timed.quadratics(targets, 10)] * config.seeds,
                    made,
                    lambda key: jnp.zeros(1),
                    Partial(timed.distance),
                    width=COLLECTED,
                ),
            )
            models = found["model"][0].astype(np.float64)
            last = models[:, models.shape[1] // 2 :]
            rest[name, memory] = last.mean(1)
            predicted = with_memory if memory else without
            report.row(
                "quadratics, the second half of the steps",
                f"{method}, {name}",
                None,
                predicted=predicted,
                mean=last.mean(1),
                least=last.mean(1).min(),
                largest=last.mean(1).max(),
                deviation=last.std(1),
            )
    for memory, method, bar in ((True, "with a memory", 1e-4), (False, "without", 0.04)):
        apart = {
            name: np.abs(rest[name, memory] - (limits[2] if memory else limits[3])).max()
            for name, limits in LIMITS.items()
        }
        report.claim(
            f"{method} the limit is the predicted one, whoever comes (largest difference)",
            max(apart.values()) < bar,
            [float(v) for v in apart.values()],
            bar,
        )
    return report.summary({})


def noisy(params: Any, batch: Any, key: Any) -> tuple[jax.Array, dict[str, jax.Array]]:
    """|x|^2 / 2 with gradients x + N(0, I): every entry of x is a chain of its own."""
    noise = 0.0 if key is None else jax.random.normal(key, params.shape)
    value = 0.5 * jnp.sum(jnp.square(params)) + jnp.sum(noise * params)
    return value, {"loss": value}


def variance(params: Any, source: Any, own: Any) -> dict[str, Any]:
    """The mean square of all chains."""
    return {"square": jnp.mean(jnp.square(params))}


def speed_up(config: Config, stage: Stage = in_memory) -> Summary:
    """Equal clients, one noisy step each: the noise at rest over the number that a step collects."""
    report, counts, rate = Report(), (1, 2, 4, 8), 0.05
    squares = []
    for collect in counts:
        found = stage(
            f"{collect} collected",
            lambda collect=collect: timed.follow(
                lambda cut: recipes.afa(noisy, 0.05, rate, cut),
                [timed.quadratics(np.zeros(8), 1)] * config.seeds,
                [
                    asynchronous.arrivals(8, collect, config.noise_rounds, seed=seed)
                    for seed in range(config.seeds)
                ],
                lambda key: jnp.zeros(200),
                Partial(variance),
                width=collect,
            ),
        )
        late = found["square"][0, :, config.noise_rounds // 5 :].astype(np.float64).mean(1)
        squares.append(late)
        report.row(
            "noise at rest, 200 chains",
            f"AFA-CD, {collect} collected",
            None,
            predicted=rate / (collect * (2 - rate)),
            measured=late,
            least=late.min(),
            largest=late.max(),
        )
    slopes = np.polyfit(np.log(counts), np.log(np.stack(squares)), 1)[0]
    report.claim(
        "linear speed-up: the noise at rest falls as 1 / m (slope of the logarithms)",
        (np.abs(slopes + 1) < 0.05).all(),
        [float(s) for s in slopes],
        -1.0,
    )
    return report.summary({})


def run(
    loss: Any, make_table: Callable[[int], asynchronous.Timetable], seeds: int, *, memory: bool
) -> dict[str, np.ndarray]:
    """AFA on digits at both rates of the server."""
    federation, _ = halved.halves()
    return timed.follow(
        lambda cut, rate: recipes.afa(loss, 0.05, rate, cut, memory=memory),
        [federation] * seeds,
        [make_table(seed) for seed in range(seeds)],
        halved.zeros,
        halved.measured(loss),
        SERVER_RATES,
        width=COLLECTED,
    )


def on_digits(config: Config, stage: Stage = in_memory) -> Summary:
    """Three laws of arrival, two rates of the server, delays, 1 to 5 local steps."""
    report, (_, loss) = Report(), halved.halves()
    cases: dict[tuple[str, bool], Callable[[int], asynchronous.Timetable]] = {}
    for law, chances in ARRIVALS.items():
        for memory in MEMORY:
            cases[law, memory] = functools.partial(
                _arrivals, config.rounds, chances, DELAY, (1, 5), memory
            )
    cases["FedAvg", False] = functools.partial(_arrivals, config.rounds, np.ones(N), 0, 3, False)
    last: dict[tuple[str, bool, float], dict[str, np.ndarray]] = {}
    for (law, memory), table in cases.items():
        name = "FedAvg" if law == "FedAvg" else f"{MEMORY[memory]}, {law}"
        curves = stage(
            name,
            lambda table=table, memory=memory: run(loss, table, config.seeds, memory=memory),
        )
        for place, rate in enumerate(SERVER_RATES):
            own = {k: curves[k][place][:, -config.rounds // 5 :].mean(1) for k in QUANTITIES}
            last[law, memory, rate] = own
            report.row(
                "digits, the last fifth of the steps",
                f"{name}, rate {rate}",
                None,
                **own,
                staleness=curves["staleness"].mean(),
            )
    judge(report, last)
    with figure(9.0, 3.4, ncols=3) as (drawn, axes):
        for axis, (quantity, label) in zip(axes, QUANTITIES.items(), strict=True):
            for (memory, method), look in zip(
                MEMORY.items(), looks(MEMORY.values()).values(), strict=True
            ):
                values = np.stack([last[law, memory, 0.1][quantity] for law in ARRIVALS], axis=1)
                bars(axis, np.arange(3) + 0.4 * look.place - 0.2, values, look, 0.38, method)
            axis.axhline(last["FedAvg", False, 0.1][quantity].mean(), color="0.4", ls=":", lw=1)
            axis.set_xticks(range(3), list(ARRIVALS), rotation=15, fontsize=8)
            axis.set(xlabel="law of arrival", ylabel=label)
        axes[1].set_yscale("log")
        axes[0].legend(fontsize=8, title="dotted: FedAvg", title_fontsize=8)
    return report.summary({"anarchic": drawn})


QUANTITIES = {
    "loss": "training loss",
    "gradient": "squared gradient",
    "rare": "accuracy, digits 0-2",
}


def _arrivals(
    rounds: int, chances: np.ndarray, delay: int, steps: Any, memory: bool, seed: int
) -> asynchronous.Timetable:
    return asynchronous.arrivals(
        N,
        COLLECTED,
        rounds,
        probabilities=chances,
        delay=delay,
        local_steps=steps,
        memory=memory,
        seed=seed,
    )


def judge(report: Report, last: dict[tuple[str, bool, float], dict[str, np.ndarray]]) -> None:
    """The claims on digits, at both rates and on every seed."""
    apart = [
        np.abs(
            last["uniform", memory, rate]["loss"] / last["FedAvg", False, rate]["loss"] - 1
        ).max()
        for memory in MEMORY
        for rate in SERVER_RATES
    ]
    report.claim(
        "uniform arrivals: CD and CS have FedAvg's loss (largest relative difference)",
        max(apart) < 0.03,
        [float(a) for a in apart],
        0.03,
    )

    def ratio(law: str, quantity: str) -> np.ndarray:
        return np.concatenate(
            [last[law, True, r][quantity] / last[law, False, r][quantity] for r in SERVER_RATES]
        )

    report.claim(
        "two rare clients: CS has at most half of CD's loss (largest ratio)",
        ratio("two are rare", "loss").max() <= 0.5,
        float(ratio("two are rare", "loss").max()),
        0.5,
    )
    report.claim(
        "and a squared gradient 20 times smaller (largest ratio)",
        ratio("two are rare", "gradient").max() <= 0.05,
        float(ratio("two are rare", "gradient").max()),
        0.05,
    )
    ahead = np.concatenate(
        [
            last["two are rare", True, r]["rare"] - last["two are rare", False, r]["rare"]
            for r in SERVER_RATES
        ]
    )
    report.claim("and is 0.2 more accurate on their digits", ahead.min() >= 0.2, span(ahead), 0.2)
    report.claim(
        "linear arrivals: CS has at most a third of CD's squared gradient (largest ratio)",
        ratio("linear", "gradient").max() <= 1 / 3,
        float(ratio("linear", "gradient").max()),
        1 / 3,
    )


def on_clocks(config: Config, stage: Stage = in_memory) -> Summary:
    """Clients pause and work by clocks of their own; two pause twenty times as long as the others."""
    report, (_, loss) = Report(), halved.halves()
    pauses = np.where(np.arange(N) < 2, 40.0, 2.0)
    speeds = np.linspace(0.05, 0.5, N)
    curves = {}
    seconds = np.linspace(0, config.horizon, 101)
    for memory, method in MEMORY.items():

        def table(seed: int, memory: bool = memory) -> asynchronous.Timetable:
            return asynchronous.clocks(
                pauses,
                speeds,
                COLLECTED,
                config.horizon,
                local_steps=(1, 5),
                memory=memory,
                seed=seed,
            )

        found = stage(
            f"{method}, clocks",
            lambda table=table, memory=memory: run(loss, table, config.seeds, memory=memory),
        )
        curves[method] = {k: held(found["time"][0], found[k][0], seconds) for k in QUANTITIES}
        measures = [table(seed).measures() for seed in range(config.seeds)]
        report.row(
            "digits by clocks, the last fifth of the seconds",
            f"{method}, clocks",
            None,
            **{k: v[:, -20:].mean(1) for k, v in curves[method].items()},
            **{
                k: [m[k] for m in measures]
                for k in ("server_steps", "staleness", "largest_staleness", "idle")
            },
        )
    ratio = curves["AFA-CS"]["gradient"][:, -20:].mean(1) / curves["AFA-CD"]["gradient"][
        :, -20:
    ].mean(1)
    report.claim(
        "by clocks of which two are slow, too, CS has at most a fifth of CD's squared gradient",
        ratio.max() <= 0.2,
        [float(r) for r in ratio],
        0.2,
    )
    with figure(7.0, 3.4, ncols=2) as (drawn, axes):
        for method, look in looks(curves).items():
            for axis, quantity in zip(axes, ("loss", "rare"), strict=True):
                curve(axis, seconds, curves[method][quantity], look, method)
                axis.set(xlabel="simulated seconds", ylabel=QUANTITIES[quantity])
        drawn.suptitle(
            "digits, clients by clocks of their own, two of ten come rarely", fontsize=10
        )
        axes[0].legend(fontsize=8)
    return report.summary({"anarchic_clocks": drawn})


STUDY = Study(
    Config,
    (
        Part("limits", exact, needs=()),
        Part("speed-up", speed_up, needs=()),
        Part("digits", on_digits, needs=(DIGITS,)),
        Part("clocks", on_clocks, needs=(DIGITS,)),
    ),
    quick=Config(quadratic_rounds=500, noise_rounds=100, rounds=60, horizon=30.0, seeds=1),
    seconds=120,
    pictures=(
        Picture(
            name="anarchic",
            file="anarchic.png",
            claim=(
                "Where clients come when they like, a memory of their latest changes "
                "(AFA-CS) takes out the bias that AFA-CD has by who comes rarely."
            ),
            data="digits (scikit-learn), 4 of 10 clients a step by three laws of arrival",
            bands="bars: least to largest of {config.seeds} seeds; dotted: FedAvg",
        ),
    ),
)


if __name__ == "__main__":
    main(STUDY, __file__)
