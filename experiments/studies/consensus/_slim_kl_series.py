"""SLIM-KL on real series: CO2, sunspots and airline passengers."""

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
from experiments.tasks.series import TEST, Series, alone, centralised, free_kernels, real
from experiments.tools.figures import figure
from experiments.tools.finished import Stage, in_memory
from experiments.tools.report import Report
from experiments.tools.study import Summary

# Resolutions, where weights begin at 0.002.
RESOLUTIONS = (0.0, 1e-5, 1e-4, 1e-3)


def stated(config: Any) -> list[str]:
    """Its claims, in words."""
    return [
        "real series: at every resolution the fused error is below a squared exponential's of all data",
        "CO2: the fused error is below a tenth of the worse agent's",
        "real series: at most 40 % of the weights exceed 1e-4 at every resolution",
        "sunspots: the fused prediction explains more than half of the held-out values' variance at "
        "every resolution",
    ]


@jax.enable_x64(True)
def real_series(config: Any, stage: Stage = in_memory) -> Summary:
    """CO2, sunspots and airline passengers: the last 20 values from the ones before."""
    report = Report()
    kernel = gp.gsmp(gp.spectral_grid(1, config.real_components), mode="even")
    found: dict[str, Any] = {}
    everything = real()
    # One length for all, so that one program serves all.
    longest = max(len(series.values) for series in everything.values()) - TEST
    run = trainer(kernel, config.real_agents, config.real_rounds, solver=gp.mm(config.inner))
    for name, series in everything.items():

        def of_series(series: Series = series) -> dict[str, Any]:
            length = -(-longest // config.real_agents)
            agents = series.dealt(config.real_agents, length)
            observed, source, start = prepared(kernel, agents, series.noise)
            resolutions = jnp.asarray(RESOLUTIONS)
            settings = jnp.full(len(RESOLUTIONS), config.penalty), resolutions
            thetas, curves = run(*settings, observed, source, start)
            single = alone(kernel, observed, start, config.real_rounds * config.inner)
            everyone = series.dealt(1, longest)
            whole = gp.observe(kernel, everyone, series.noise)
            central = jnp.asarray(centralised(kernel, whole, [np.asarray(start)]))
            exponential = free_kernels(series, 1, 1, config.iterations, config.seed)["SE"]
            given = agents, everyone, series.noise, jnp.asarray(series.points)
            return {
                "thetas": thetas,
                "curves": curves,
                "ours": [predictions(kernel, theta, *given) for theta in thetas],
                "central": central,
                "centralised": predictions(kernel, central, *given),
                "experts": predictions(kernel, single, *given),
                "free": {"SE": exponential().mean},
            }

        found[name] = stage(name, of_series)
    for name, own in found.items():
        _rows_of_real(report, name, everything[name], own)
    said = stated(config)
    fused = np.array(
        [
            [squared_error(ours["fused"], everything[name].held_out) for ours in own["ours"]]
            for name, own in found.items()
        ]
    )
    exponential = np.array(
        [squared_error(own["free"]["SE"], everything[name].held_out) for name, own in found.items()]
    )
    report.claim(
        said[0],
        np.all(fused < exponential[:, None]),
        fused.max(1).round(4).tolist(),
        exponential.round(4).tolist(),
    )
    worst = squared_error(found["CO2"]["ours"][0]["agents"], everything["CO2"].held_out).max()
    report.claim(said[1], fused[0, 0] < 0.1 * worst, float(fused[0, 0]), float(worst))
    active = np.array([own["curves"]["active"][:, -1] for own in found.values()])
    most = 0.4 * config.real_components
    report.claim(said[2], np.all(active <= most), active.max(1).tolist(), most)
    place, spots = list(found).index("sunspots"), everything["sunspots"]
    explained = 1 - fused[place] / spots.held_out.var()
    report.claim(said[3], np.all(explained > 0.5), explained.round(3).tolist(), 0.5)
    return report.summary({"slim_kl_series": _series_figure(found, everything)})


def _rows_of_real(report: Report, name: str, series: Series, own: dict[str, Any]) -> None:
    table = f"{name}: mean squared error of the last {TEST} values, standardised"
    for place, resolution in enumerate(RESOLUTIONS):
        curves = own["curves"]
        report.row(
            table,
            f"{name}, SLIM-KL, resolution {resolution:g}",
            None,
            objective=curves["objective"][place, -1],
            all_data=squared_error(own["ours"][place]["global"], series.held_out),
            fused=squared_error(own["ours"][place]["fused"], series.held_out),
            explained=1
            - squared_error(own["ours"][place]["fused"], series.held_out) / series.held_out.var(),
            best_agent=squared_error(own["ours"][place]["agents"], series.held_out).min(),
            worst_agent=squared_error(own["ours"][place]["agents"], series.held_out).max(),
            active=curves["active"][place, -1],
            fewer_bits=curves["bytes_uncompressed"][place].sum()
            / curves["bytes_sent"][place].sum(),
        )
    report.row(
        table,
        f"{name}, centralised, L-BFGS-B",
        None,
        all_data=squared_error(own["centralised"]["global"], series.held_out),
        active=np.sum(own["central"] > ACTIVE),
    )
    report.row(
        table,
        f"{name}, product of experts",
        None,
        fused=squared_error(own["experts"]["fused"], series.held_out),
    )
    error = squared_error(own["free"]["SE"], series.held_out)
    report.row(table, f"{name}, squared exponential", None, all_data=error)


def _series_figure(found: dict[str, Any], everything: dict[str, Series]) -> Any:
    with figure(12.0, 3.4, ncols=len(found)) as (drawn, axes):
        for panel, (name, own) in zip(axes, found.items(), strict=True):
            series = everything[name]
            panel.plot(series.inputs[-3 * TEST :], series.values[-3 * TEST :], "k.", markersize=4)
            panel.plot(series.points, own["ours"][0]["fused"], "-", label="SLIM-KL, fused")
            panel.plot(series.points, own["ours"][0]["global"], "--", label="SLIM-KL, all data")
            panel.plot(series.points, own["free"]["SE"], ":", label="squared exponential")
            panel.axvline(series.points[0] - 0.5, color="k", linewidth=0.8)
            panel.set(xlabel="number", title=name)
        axes[0].set_ylabel("standardised value (dots)")
        drawn.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=3)
    return drawn
