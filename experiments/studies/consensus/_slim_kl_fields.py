"""SLIM-KL in two dimensions: crossed waves on two grids of frequencies, and a real field."""

import functools
import warnings
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from dflax import gaussian_processes as gp
from experiments.studies.consensus._slim_kl_runs import (
    ACTIVE,
    predictions,
    prepared,
    squared_error,
    trainer,
)
from experiments.tasks.fields import ASIDE, DIAGONAL, Field, crossed_waves, el_nino, exponential
from experiments.tasks.series import alone, centralised
from experiments.tools.figures import figure
from experiments.tools.finished import Stage, in_memory
from experiments.tools.report import Report
from experiments.tools.study import Summary

RESOLUTIONS = (0.0, 1e-4)
# Of frequencies drawn at random, which are some 0.02 from the next wave.
DEVIATION = 0.02
# Waves, and the grid of frequencies that looks for them.
ON, AWAY, DRAWN = (
    "waves on the diagonal, its grid",
    "waves aside, the diagonal's grid",
    "waves aside, random grid",
)
NINO = "El Niño, random grid"
MARKERS = ("o", "s", "^", "v", "D")


@functools.cache
@jax.enable_x64(True)
def grid(config: Any, name: str, seed: int) -> gp.Grid:
    """The grid of frequencies; a random one is drawn for each seed, in double precision."""
    if name in (ON, AWAY):
        return gp.spectral_grid(2, config.field_components)
    key = jax.random.key(seed)
    return gp.spectral_grid(
        2, config.field_components, sampling="random", deviation=DEVIATION, highest=0.5, key=key
    )


def solved(config: Any, field: Field, name: str, seed: int) -> dict[str, Any]:
    """Weights with and without rounding, what they predict, and what the references do.

    Of the real field only the squared exponential, and none of waves that another grid looks for too.
    """
    kernel = gp.gsmp(grid(config, name, seed))
    run = trainer(kernel, field.owners.max() + 1, config.field_rounds, solver=gp.mm(config.inner))
    agents, whole = field.dealt(), field.together()
    with warnings.catch_warnings():
        # The largest of random frequencies is a little below the bound.
        warnings.simplefilter("ignore", gp.BelowNyquist)
        observed, source, start = prepared(kernel, agents, field.noise)
    resolutions = jnp.asarray(RESOLUTIONS)
    settings = jnp.full(len(resolutions), config.penalty), resolutions
    thetas, curves = run(*settings, observed, source, start)
    given = agents, whole, field.noise, jnp.asarray(field.points)
    ours = [predictions(kernel, theta, *given) for theta in thetas]
    found: dict[str, Any] = {"thetas": thetas, "curves": curves, "ours": ours}
    if name != AWAY:
        found["SE"] = exponential(field, config.iterations).mean
    if name != NINO:
        best = jnp.asarray(centralised(kernel, observed, [np.asarray(start)]))
        found["best"] = gp.joint_objective(kernel, observed, active=ACTIVE)(best)
        single = alone(kernel, observed, start, config.field_rounds * config.inner)
        found["experts"] = predictions(kernel, single, *given)
    return found


def two_dimensions(config: Any, stage: Stage = in_memory) -> Summary:
    """Crossed waves that four agents own quadrants of."""
    report = Report()
    seeds = range(config.field_seed, config.field_seed + config.field_seeds)
    fields = {
        name: [crossed_waves(seed, DIAGONAL if name == ON else ASIDE) for seed in seeds]
        for name in (ON, AWAY, DRAWN)
    }
    found = _solved(config, fields, seeds, stage)
    for away, drawn in zip(found[AWAY], found[DRAWN], strict=True):
        away["SE"] = drawn["SE"]
    for name, several in fields.items():
        _rows(report, name, several, found[name])
    _claims_of_waves(report, config, fields, found, seeds)
    return report.summary({"slim_kl_fields": _figure(config, fields, found, seeds)})


def stated(config: Any) -> list[str]:
    """The claims of the real field, in words."""
    return [
        "El Niño: at most 40 % of the weights exceed 1e-4 (each seed)",
        "El Niño: the fused error is below half the agents' median (each seed)",
    ]


def real_field(config: Any, stage: Stage = in_memory) -> Summary:
    """Sea temperatures of 61 years by 12 months, of which four agents own stretches."""
    report, said = Report(), stated(config)
    seeds = range(config.field_seed, config.field_seed + config.field_seeds)
    fields = {NINO: [el_nino(seed) for seed in seeds]}
    found = _solved(config, fields, seeds, stage)
    _rows(report, NINO, fields[NINO], found[NINO])
    sparse, fused, _ = _of_method(fields[NINO], found[NINO])
    _claim_sparsity(report, config, said[0], sparse)
    report.claim(said[1], np.all(fused[0] < 0.5 * fused[1]), *_listed(fused[0], 0.5 * fused[1]))
    return report.summary({})


def _solved(config: Any, fields: dict[str, list[Field]], seeds: range, stage: Stage) -> Any:
    """What `solved` finds, by name and seed."""
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in fields}
    for name, several in fields.items():
        for seed, field in zip(seeds, several, strict=True):

            @jax.enable_x64(True)
            def of_seed(field: Field = field, name: str = name, seed: int = seed) -> Any:
                return solved(config, field, name, seed)

            found[name].append(stage(f"{name}, seed {seed}", of_seed))
    return found


def _errors(several: list[Field], found: list[dict[str, Any]], pick: Any) -> np.ndarray:
    """By seed, the squared error of what `pick` takes of the predictions."""
    return np.array(
        [
            squared_error(pick(own), field.held_out)
            for own, field in zip(found, several, strict=True)
        ]
    )


def _of_method(several: list[Field], found: list[dict[str, Any]]) -> tuple[Any, Any, Any]:
    """By seed: active weights; fused and median local error; error of all data, and of SE."""
    fused = _errors(several, found, lambda own: own["ours"][0]["fused"])
    local = np.median(_errors(several, found, lambda own: own["ours"][0]["agents"]), axis=1)
    whole = _errors(several, found, lambda own: own["ours"][0]["global"])
    exponentials = _errors(several, found, lambda own: own["SE"])
    active = np.array([own["curves"]["active"][0, -1] for own in found])
    return active, (fused, local), (whole, exponentials)


def _listed(*values: np.ndarray) -> list[list[float]]:
    return [value.round(4).tolist() for value in values]


def _claim_sparsity(report: Report, config: Any, words: str, active: np.ndarray) -> None:
    most = 0.4 * config.field_components
    report.claim(words, np.all(active <= most), active.tolist(), most)


def _rows(report: Report, name: str, several: list[Field], found: list[dict[str, Any]]) -> None:
    table = f"two dimensions: {name}"
    for place, resolution in enumerate(RESOLUTIONS):
        curves = [own["curves"] for own in found]
        objective = np.array([own["objective"][place, -1] for own in curves])
        more: dict[str, Any] = {}
        if "best" in found[0]:
            best = np.array([own["best"]["objective"] for own in found])
            more["gap_to_centralised"] = (objective - best) / np.abs(best)
        fused = _errors(several, found, lambda own, p=place: own["ours"][p]["fused"])
        report.row(
            table,
            f"{name}, SLIM-KL, resolution {resolution:g}",
            None,
            objective=objective,
            active=[own["active"][place, -1] for own in curves],
            mse_global=_errors(several, found, lambda own, p=place: own["ours"][p]["global"]),
            mse_fused=fused,
            std=fused.std(),
            mse_local=_errors(several, found, lambda own, p=place: own["ours"][p]["agents"]),
            fewer_bits=np.array(
                [
                    own["bytes_uncompressed"][place].sum() / own["bytes_sent"][place].sum()
                    for own in curves
                ]
            ),
            **more,
        )
    if "experts" in found[0]:
        experts = _errors(several, found, lambda own: own["experts"]["fused"])
        report.row(table, f"{name}, product of experts", None, mse_fused=experts, std=experts.std())
    single = _errors(several, found, lambda own: own["SE"])
    report.row(
        table, f"{name}, squared exponential, all data", None, mse_global=single, std=single.std()
    )


def _claims_of_waves(
    report: Report, config: Any, fields: dict[str, list[Field]], found: Any, seeds: range
) -> None:
    for name in (ON, DRAWN):
        active, (fused, local), _ = _of_method(fields[name], found[name])
        words = f"{name}: at most 40 % of the weights exceed 1e-4 (each seed)"
        _claim_sparsity(report, config, words, active)
        gaps = np.array(
            [own["curves"]["objective"][:, -1] / own["best"]["objective"] for own in found[name]]
        )
        most = 0.02 if name == ON else 0.05
        report.claim(
            f"{name}: unquantised and at 1e-4 the objective ends within {100 * most:g} % of the "
            "centralised one (each seed)",
            np.all(1 - gaps <= most),
            (1 - gaps).round(4).tolist(),
            most,
        )
    report.claim(
        f"{DRAWN}: the fused error is below half the agents' median (each seed)",
        np.all(fused < 0.5 * local),
        *_listed(fused, 0.5 * local),
    )
    line = np.asarray(grid(config, ON, seeds[0]).means)[:, 0]
    largest = [np.argsort(-own["thetas"][0])[:3] for own in found[ON]]
    near = {int(np.abs(line - wave[0]).argmin()) for wave in DIAGONAL}
    apart = [min(abs(line[a] - wave[0]) for wave in DIAGONAL) for own in largest for a in own]
    report.claim(
        f"{ON}: the three largest weights are at both true frequencies and beside them (each seed)",
        all(near <= set(own.tolist()) for own in largest) and max(apart) <= 1.5 * line[1],
        [sorted(round(float(line[a]), 4) for a in own) for own in largest],
        [wave[0] for wave in DIAGONAL],
    )
    _, _, (whole, exponentials) = _of_method(fields[ON], found[ON])
    report.claim(
        f"{ON}: all data with the agreed weights are ahead of a squared exponential (each seed)",
        np.all(whole < exponentials),
        *_listed(whole, exponentials),
    )
    off = _errors(fields[AWAY], found[AWAY], lambda own: own["ours"][0]["fused"])
    report.claim(
        "waves aside: the grid on the diagonal has at least 3 times the random one's fused error "
        "(each seed)",
        np.all(off >= 3 * fused),
        *_listed(off, 3 * fused),
    )


def _figure(config: Any, fields: dict[str, list[Field]], found: Any, seeds: range) -> Any:
    methods = {
        "fused, 4 agents": lambda own: own["ours"][0]["fused"],
        "all data, same weights": lambda own: own["ours"][0]["global"],
        "product of experts": lambda own: own["experts"]["fused"],
        "squared exponential": lambda own: own["SE"],
        "median agent": lambda own: own["ours"][0]["agents"],
    }
    with figure(12.0, 4.0, ncols=2, width_ratios=(1, 2)) as (drawn, (plane, errors)):
        theta = np.maximum(found[DRAWN][0]["thetas"][0], 0)
        means = np.asarray(grid(config, DRAWN, seeds[0]).means)
        plane.plot(*means.T, ".", color="0.7", markersize=3, label="components")
        large = theta > ACTIVE
        plane.scatter(
            *means[large].T, s=20 + 600 * theta[large], facecolors="none", edgecolors="C0"
        )
        plane.plot(*np.array(ASIDE).T, "kx", label="true frequencies")
        plane.plot([0, 0.5], [0, 0.5], "k:", linewidth=0.8, label="the diagonal's grid")
        plane.set(
            xlabel="frequency along x",
            ylabel="along y",
            title="weights > 1e-4 (circles: area by weight)",
        )
        plane.legend(fontsize=8, loc="upper right")
        for place, (label, pick) in enumerate(methods.items()):
            for column, name in enumerate(fields):
                own = _errors(fields[name], found[name], pick)
                own = own if own.ndim == 1 else np.median(own, axis=1)
                errors.plot(
                    np.full(len(own), column + 0.14 * (place - 2)),
                    own,
                    MARKERS[place],
                    color=f"C{place}",
                    markerfacecolor="none",
                    label=label if column == 0 else None,
                )
        errors.axhline(0.01, color="k", linestyle=":", linewidth=0.8)
        errors.set_xticks(range(len(fields)), list(fields), fontsize=9)
        errors.set(
            yscale="log",
            ylabel="mean squared error (dotted: noise)",
            title=f"40 held-out places of 400, {len(seeds)} seeds",
        )
        errors.legend(fontsize=8)
        drawn.suptitle("crossed waves in two dimensions, 4 agents own a quadrant each", fontsize=10)
    return drawn
