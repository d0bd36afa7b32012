"""Softmax regression with a ridge on digits: whose optimum each method goes to, and how soon."""

import warnings
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.tree_util import Partial
from scipy.optimize import minimize

import dflax as dx
from dflax import asynchronous
from experiments.tasks import timed
from experiments.tasks.skewed_digits import drawn_by
from experiments.tools.curves import held, seconds_to, span
from experiments.tools.figures import curve, figure, looks
from experiments.tools.finished import Stage, in_memory
from experiments.tools.report import Report
from experiments.tools.study import Summary

CLIENTS, OWNED, RIDGE = 20, 69, 0.01
# Methods on digits, and their rates.
FEDAVG, FIX, FINE = "FedAvg", "FedFix 0.5", "FedFix 0.2"
WEIGHTED, IDENTICAL = "asynchronous, weighted", "asynchronous, identical"
RATES = {
    FEDAVG: (0.1,),
    FIX: (0.1,),
    FINE: (0.1, 0.02),
    WEIGHTED: (0.005, 0.02),
    IDENTICAL: (0.005,),
}
TARGET = 0.1
MEASURED = ("excess", "surrogate")


def objective(params: Any, inputs: Any, labels: Any, weights: Any) -> jax.Array:
    """Weighted cross-entropy of softmax regression, and half the ridge times all squares."""
    scores = inputs @ params[:-1] + params[-1]
    losses = optax.softmax_cross_entropy_with_integer_labels(scores, labels)
    return weights @ losses + 0.5 * RIDGE * jnp.sum(jnp.square(params))


def excess(params: Any, source: dx.Federation, own: dict[str, Any]) -> dict[str, Any]:
    """The objective over its minimum, with the federation's weights and with the surrogate's."""
    flat = jnp.concatenate([params["Dense_0"]["kernel"], params["Dense_0"]["bias"][None]])
    inputs = own["inputs"]
    return {
        name: objective(flat, inputs, own["labels"], own[f"{name} weights"]) - own[f"{name} least"]
        for name in ("excess", "surrogate")
    }


def least(inputs: np.ndarray, labels: np.ndarray, weights: np.ndarray) -> float:
    """The minimum of the objective, by L-BFGS in float64."""
    with jax.enable_x64(True):
        given = jnp.asarray(inputs, jnp.float64), jnp.asarray(labels), jnp.asarray(weights)
        shape = inputs.shape[1] + 1, 10

        @jax.jit
        def slope(flat: jax.Array, *given: Any) -> tuple[jax.Array, jax.Array]:
            value, slope = jax.value_and_grad(objective)(flat.reshape(shape), *given)
            return value, slope.ravel()

        found = minimize(
            lambda x: tuple(map(np.asarray, slope(jnp.asarray(x), *given))),
            np.zeros(shape[0] * shape[1]),
            jac=True,
            method="L-BFGS-B",
            options={"maxiter": 2000, "gtol": 1e-8},
        )
    return float(found.fun)


def owned_digits(seeds: int) -> tuple[list[dx.Federation], list[dict[str, np.ndarray]]]:
    """Federations of 20 clients with label laws Dirichlet(0.1), and what each client's rows are."""
    data = dx.data.digits()
    labels = np.asarray(data.labels)
    everything = data.train.fetch(jnp.arange(len(labels))).inputs
    pixels = np.asarray(everything).reshape(len(labels), -1)
    federations, rows = [], []
    for seed in range(seeds):
        generator = np.random.default_rng([seed, 34])
        owned = drawn_by(generator.dirichlet(np.full(10, 0.1), CLIENTS), labels, OWNED, generator)
        federations.append(
            dx.Federation(
                data,
                dx.data.from_indices(owned, seed=seed),
                local_steps=10,
                batch_size=16,
                replacement=True,
            )
        )
        chosen = np.concatenate(owned)
        rows.append({"inputs": pixels[chosen], "labels": labels[chosen]})
    return federations, rows


def on_digits(config: Any, stage: Stage = in_memory) -> Summary:
    """Softmax regression with a ridge: how far each method ends from the federation's optimum."""
    report, times = Report(), asynchronous.hardware(CLIENTS, 80)
    federations, rows = owned_digits(config.seeds)
    equal = np.full(CLIENTS * OWNED, 1 / (CLIENTS * OWNED))
    fast = np.repeat(1 / times / (1 / times).sum(), OWNED) / OWNED
    minima = stage(
        "minima",
        lambda: {
            name: np.array([least(one["inputs"], one["labels"], weights) for one in rows])
            for name, weights in (("excess", equal), ("surrogate", fast))
        },
    )
    own = {
        "inputs": jnp.asarray(np.stack([one["inputs"] for one in rows])),
        "labels": jnp.asarray(np.stack([one["labels"] for one in rows])),
        **{f"{k} least": jnp.asarray(v, jnp.float32) for k, v in minima.items()},
        "excess weights": jnp.asarray(np.tile(equal, (config.seeds, 1)), jnp.float32),
        "surrogate weights": jnp.asarray(np.tile(fast, (config.seeds, 1)), jnp.float32),
    }
    model = dx.models.MLP((), classes=10)
    loss = dx.losses.with_l2(dx.losses.classification(model.apply), RIDGE)
    shapes = jax.eval_shape(model.init, jax.random.key(0), federations[0].data.example)["params"]
    options: dict[str, Any] = {"local_steps": 10}
    horizon = config.digits_horizon
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", asynchronous.SurrogateWarning)
        made = {
            FEDAVG: asynchronous.synchronous(times, horizon, **options),
            FIX: asynchronous.fedfix(times, 0.5, horizon, **options),
            FINE: asynchronous.fedfix(times, 0.2, horizon, **options),
            WEIGHTED: asynchronous.immediate(times, horizon, **options),
            IDENTICAL: asynchronous.immediate(times, horizon, weights="identical", **options),
        }
    seconds = np.linspace(horizon / 100, horizon, 100)
    found: dict[str, dict[str, np.ndarray]] = {}
    measures: dict[str, dict[str, float]] = {}
    for method, table in made.items():
        curves = stage(
            method,
            lambda table=table, method=method: timed.follow(
                timed.plain(loss),
                federations,
                table,
                lambda key: jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes),
                Partial(excess),
                RATES[method],
                own=own,
            ),
        )
        for place, rate in enumerate(RATES[method]):
            time = curves["time"][place]
            reached = seconds_to(time, curves["excess"][place] < TARGET)
            found[f"{method}, rate {rate}"] = {
                **{k: held(time, curves[k][place], seconds) for k in MEASURED},
                "reached": reached,
            }
            measures[f"{method}, rate {rate}"] = table.measures()
    half = seconds > horizon / 2
    for name, one in found.items():
        mean = one["excess"][:, half].mean(1)
        report.row(
            "digits, excess loss over the last half",
            name,
            None,
            mean=mean,
            least=mean.min(),
            largest=mean.max(),
            of_the_surrogate=one["surrogate"][:, half].mean(),
            seconds_to_target=one["reached"],
            **{k: measures[name][k] for k in ("staleness", "contributors", "idle")},
        )
    judge(report, found, half)
    return report.summary({"fedfix": drawn_over_seconds(seconds, found)})


def drawn_over_seconds(seconds: np.ndarray, found: dict[str, dict[str, np.ndarray]]) -> Any:
    """The excess loss of every method that converges."""
    shown = looks(name for name in found if name != f"{WEIGHTED}, rate 0.02")
    with figure(7.0, 4.2) as (drawn, axes):
        for name, look in shown.items():
            curve(axes, seconds, found[name]["excess"], look, name)
        axes.axhline(TARGET, color="0.5", linewidth=0.8, label=f"target, {TARGET:g}")
        axes.set(xlabel="simulated seconds", ylabel="loss above the minimum", yscale="log")
        axes.legend(fontsize=8)
    return drawn


def judge(report: Report, found: dict[str, dict[str, np.ndarray]], half: np.ndarray) -> None:
    """The claims on digits, each on every seed."""
    mean = {name: one["excess"][:, half].mean(1) for name, one in found.items()}
    ratio = mean[f"{IDENTICAL}, rate 0.005"] / mean[f"{WEIGHTED}, rate 0.005"]
    report.claim(
        "identical weights end further from the federation's optimum than weights by importance "
        "(least ratio of excess losses)",
        (ratio > 1.5).all(),
        [float(r) for r in ratio],
        1.5,
    )
    surrogate = {
        name: found[f"{name}, rate 0.005"]["surrogate"][:, half].mean(1)
        for name in (IDENTICAL, WEIGHTED)
    }
    report.claim(
        "and nearer to the surrogate's",
        (surrogate[IDENTICAL] < surrogate[WEIGHTED]).all(),
        [float(v) for v in surrogate[IDENTICAL]],
        [float(v) for v in surrogate[WEIGHTED]],
    )
    sooner = found[f"{FIX}, rate 0.1"]["reached"] / found[f"{FEDAVG}, rate 0.1"]["reached"]
    report.claim(
        f"FedFix 0.5 is within {TARGET} of the minimum in less than 0.6 of FedAvg's time",
        (sooner < 0.6).all(),
        [float(s) for s in sooner],
        0.6,
    )
    report.claim(
        "FedFix 0.2 at rate 0.1 is sooner still, and ends higher than at 0.02",
        (found[f"{FINE}, rate 0.1"]["reached"] < found[f"{FIX}, rate 0.1"]["reached"]).all()
        and (mean[f"{FINE}, rate 0.1"] > mean[f"{FINE}, rate 0.02"]).all(),
        span(found[f"{FINE}, rate 0.1"]["reached"], 1),
        span(found[f"{FIX}, rate 0.1"]["reached"], 1),
    )
    report.claim(
        "asynchronous FedAvg is unstable at 4 times its rate (excess loss)",
        (mean[f"{WEIGHTED}, rate 0.02"] > 0.3).all(),
        [float(v) for v in mean[f"{WEIGHTED}, rate 0.02"]],
        0.3,
    )
