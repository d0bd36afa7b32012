"""Servers that wait for all, for none or for the clock: limits, weights, and time to a target."""

import dataclasses
import warnings
from typing import Any

import jax.numpy as jnp
import numpy as np
import optax
from jax.tree_util import Partial

import dflax as dx
from dflax import asynchronous
from experiments.studies.asynchronous import _fedfix_digits
from experiments.tasks import timed
from experiments.tasks.inputs import DIGITS, FASHION_MNIST
from experiments.tools.command import main
from experiments.tools.curves import held, seconds_to
from experiments.tools.figures import curve, figure, looks
from experiments.tools.finished import Stage, in_memory
from experiments.tools.report import Report
from experiments.tools.study import Part, Picture, Study, Summary

CLIENTS = 20
# Of the quadratics: what is predicted, and the mean and deviation of the last quarter that were
# measured before, by another program.
QUADRATICS = {
    "FedAvg": (4.5, 4.5000, 0.000),
    "asynchronous, identical / n": (5.9635, 5.9635, 0.030),
    "asynchronous, weighted": (4.5, 4.565, 0.377),
    "FedFix 0.8": (4.5, 4.515, 0.051),
    "FedFix 0.5": (4.5, 4.535, 0.058),
    "FedFix 0.2": (4.5, 4.550, 0.141),
    "FedBuff 5, identical": (5.8494, 5.8500, 0.038),
    "FedBuff 5, weighted": (4.5, 4.506, 0.057),
    "FedBuff 10, identical": (4.5, 4.5000, 0.000),
}


@dataclasses.dataclass(frozen=True)
class Config:
    """Settings.

    Attributes:
      horizon: seconds on the quadratics.
      digits_horizon: seconds on digits.
      image_horizon: seconds on Fashion-MNIST.
      seeds: repetitions on digits and on images.
    """

    horizon: float = 2000.0
    digits_horizon: float = 100.0
    image_horizon: float = 60.0
    seeds: int = 3


def tables(times: np.ndarray, horizon: float) -> dict[str, asynchronous.Timetable]:
    """The timetables of the quadratics' methods."""
    n, made = len(times), asynchronous
    given: dict[str, Any] = {"local_steps": 10}
    with warnings.catch_warnings():
        # That these have another limit is what is shown.
        warnings.simplefilter("ignore", asynchronous.SurrogateWarning)
        return {
            "FedAvg": made.synchronous(times, horizon, **given),
            "asynchronous, identical / n": made.immediate(
                times, horizon, weights=np.full(n, 1 / n), **given
            ),
            "asynchronous, weighted": made.immediate(times, horizon, **given),
            **{
                f"FedFix {tick}": made.fedfix(times, tick, horizon, **given)
                for tick in (0.8, 0.5, 0.2)
            },
            "FedBuff 5, identical": made.fedbuff(times, 5, horizon, **given),
            "FedBuff 5, weighted": made.fedbuff(times, 5, horizon, weights="importance", **given),
            "FedBuff 10, identical": made.fedbuff(times, 10, horizon, **given),
        }


def on_quadratics(config: Config, stage: Stage = in_memory) -> Summary:
    """f_i = (x - i)^2 / 2, ten clients of which the last is five times as fast as the first."""
    report, targets = Report(), np.arange(10.0)
    source = timed.quadratics(targets, 10)

    def make(cut: asynchronous.Waves) -> dx.Algorithm:
        return asynchronous.asynchronous_server(
            dx.data.quadratic_loss, optax.sgd(0.01), cut, at_once=10
        )

    worst = [0.0, 0.0]
    curves = {}
    for name, table in tables(asynchronous.hardware(10, 80), config.horizon).items():
        found = stage(
            f"{name}, {len(table.time)} steps of the server",
            lambda table=table: timed.follow(
                make, [source], table, lambda key: jnp.zeros(1), Partial(timed.distance), steps=1
            ),
        )
        models = found["model"][0, 0, 1:].astype(np.float64)
        curves[name] = found["time"][0, 0], found["model"][0, 0]
        last = models[-len(models) // 4 :]
        # All curvatures are equal, so that the weights are the surrogate's.
        predicted = float(table.surrogate() @ targets)
        _, mean, deviation = QUADRATICS[name]
        worst[0] = max(worst[0], abs(last.mean() - mean))
        worst[1] = max(worst[1], abs(last.std() - deviation) / max(deviation, 0.01))
        measures = table.measures()
        report.row(
            "quadratics, last quarter of the steps",
            name,
            None,
            limit_predicted=predicted,
            mean=last.mean(),
            deviation=last.std(),
            mean_before=mean,
            deviation_before=deviation,
            **{k: measures[k] for k in ("server_steps", "contributors", "staleness", "idle")},
        )
    report.claim(
        "means over the last quarter are those measured before (largest difference)",
        worst[0] < 0.005,
        worst[0],
        0.005,
    )
    report.claim(
        "so are the deviations (largest relative difference)", worst[1] < 0.05, worst[1], 0.05
    )
    report.claim(
        "identical weights go to the surrogate's optimum, weights by importance to the federation's",
        abs(report.rows["asynchronous, identical / n"]["mean"] - 5.9635) < 0.01
        and abs(report.rows["asynchronous, weighted"]["mean"] - 4.5) < 0.1,
        [report.rows[f"asynchronous, {k}"]["mean"] for k in ("identical / n", "weighted")],
        [5.9635, 4.5],
    )
    with figure(7.0, 3.4) as (drawn, axes):
        shown = ("asynchronous, weighted", "FedFix 0.2", "FedFix 0.5", "FedAvg")
        for name, look in looks((*shown, "asynchronous, identical / n")).items():
            time, model = curves[name]
            early = time <= 40
            curve(axes, time[early], model[early][None], look, name, linewidth=1)
        axes.axhline(4.5, color="0.4", linewidth=0.8)
        axes.set(xlabel="simulated seconds", ylabel="the server's model")
        axes.set_title("quadratics: who waits less swings more; optimum 4.5", fontsize=10)
        axes.legend(fontsize=8)
    return report.summary({"fedfix_quadratics": drawn})


def on_images(config: Config, stage: Stage = in_memory) -> Summary:
    """Fashion-MNIST and a perceptron, every piece of work taking a random time."""
    report, data = Report(), dx.data.fashion_mnist()
    labels, horizon = np.asarray(data.labels), config.image_horizon
    federations, draws = [], []
    for seed in range(config.seeds):
        partition = dx.data.dirichlet(labels, CLIENTS, 0.3, seed=seed, min_size=20)
        federations.append(
            dx.Federation(
                data,
                partition,
                local_steps=10,
                batch_size=20,
                weights=jnp.ones(CLIENTS),
                replacement=True,
            )
        )
        slow = asynchronous.hardware(CLIENTS, 80)
        draws.append(
            slow[:, None] * asynchronous.log_normal(CLIENTS, 1.0, 0.5, pieces=50, seed=seed)
        )
    model = dx.models.MLP((32,), classes=10)
    loss, example = dx.losses.classification(model.apply), data.example
    methods = {
        "FedAvg, random times": lambda t: asynchronous.synchronous(t, horizon, local_steps=10),
        "FedFix 0.5, random times": lambda t: asynchronous.fedfix(t, 0.5, horizon, local_steps=10),
        "FedBuff 5, random times": lambda t: asynchronous.fedbuff(t, 5, horizon, local_steps=10),
    }
    seconds, curves, reached = np.linspace(1, horizon, 60), {}, {}
    for name, method in methods.items():
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            made = [method(times) for times in draws]
        found = stage(
            f"Fashion-MNIST, {name}",
            lambda made=made: timed.follow(
                lambda cut: asynchronous.asynchronous_server(loss, optax.sgd(0.05), cut),
                federations,
                made,
                lambda key: model.init(key, example)["params"],
                timed.accuracy(loss, data.test, 500),
            ),
        )
        curves[name] = held(found["time"][0], found["accuracy"][0], seconds)
        reached[name] = seconds_to(found["time"][0], found["accuracy"][0] >= 0.7)
        measures = [table.measures() for table in made]
        report.row(
            "Fashion-MNIST, random times",
            name,
            curves[name][:, -5:].mean(1),
            seconds_to_70=reached[name],
            **{k: [m[k] for m in measures] for k in ("staleness", "contributors", "idle")},
        )
    ratio = reached["FedFix 0.5, random times"] / reached["FedAvg, random times"]
    report.claim(
        "Fashion-MNIST with random times: FedFix 0.5 has 70 % in less than 0.6 of FedAvg's time",
        (ratio < 0.6).all(),
        [float(r) for r in ratio],
        0.6,
    )
    with figure(7.0, 3.4) as (drawn, axes):
        for name, look in looks(curves).items():
            curve(axes, seconds, curves[name], look, name.split(",")[0])
        axes.set(xlabel="simulated seconds", ylabel="test accuracy")
        axes.set_title(
            "Fashion-MNIST, 20 clients, each piece of work of a random time", fontsize=10
        )
        axes.legend(fontsize=8)
    return report.summary({"fedfix_images": drawn})


STUDY = Study(
    Config,
    (
        Part("quadratics", on_quadratics, needs=()),
        Part("digits", _fedfix_digits.on_digits, needs=(DIGITS,)),
        Part("Fashion-MNIST", on_images, needs=(FASHION_MNIST,)),
    ),
    quick=Config(horizon=60.0, digits_horizon=10.0, image_horizon=5.0, seeds=1),
    seconds=90,
    pictures=(
        Picture(
            name="fedfix",
            file="fedfix.png",
            claim=(
                "A server that steps by the clock reaches the target in half of FedAvg's "
                "time, with short steps in a fifth; asynchronous servers, at rates 20 times "
                "smaller, in 0.3 of it, and identical weights lead them to the fast clients' "
                "optimum."
            ),
            data="digits (scikit-learn), 20 clients, the fastest 5 times as fast as the slowest",
            bands="bands: least to largest of {config.seeds} seeds",
        ),
    ),
)


if __name__ == "__main__":
    main(STUDY, __file__)
