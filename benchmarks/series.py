"""`python -m benchmarks.series`: SLIM-KL and GPyTorch on series and on fields, the same splits."""

import warnings
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from rich.console import Console
from rich.table import Table

import dflax as dx
from benchmarks import peers
from dflax import gaussian_processes as gp
from experiments.tasks.fields import ASIDE, DIAGONAL, Field, crossed_waves, el_nino
from experiments.tasks.series import TEST, Series, mse, real

COMPONENTS, AGENTS, ROUNDS = 500, 2, 60
# Of fields, and the deviation of random components.
SEEDS, FIELD_COMPONENTS, DEVIATION = range(200, 203), 200, 0.02
KEY = jax.random.key(7)


@jax.enable_x64(True)
def ours(everything: dict[str, Series]) -> dict[str, list[float]]:
    """Errors of the fused prediction, and of all data with the weights that the agents agreed on."""
    kernel = gp.gsmp(gp.spectral_grid(1, COMPONENTS), mode="even")
    algorithm = gp.slim_kl(kernel, AGENTS, resolution=1e-3)
    longest = max(len(series.values) for series in everything.values()) - TEST
    run = jax.jit(lambda state, source: dx.rollout(algorithm, state, source, KEY, ROUNDS)[0])
    found: dict[str, list[float]] = {"fused": [], "all data": []}
    for series in everything.values():
        agents = series.dealt(AGENTS, -(-longest // AGENTS))
        observed = gp.observe(kernel, agents, series.noise)
        state = algorithm.init(KEY, gp.starting_weights(kernel, agents))
        state = run(state, gp.observing(observed))
        theta = jnp.maximum(state.server.params, 0)
        each = gp.predict(kernel, theta, agents, series.noise, series.points)
        whole = gp.predict(kernel, theta, series.dealt(1), series.noise, series.points)
        found["fused"].append(float(mse(gp.fused(each), series)))
        found["all data"].append(float(mse(whole, series)[0]))
    return found


@jax.enable_x64(True)
def ours_of(field: Field, grid: gp.Grid) -> dict[str, float]:
    """As `ours`, of the agents of a field, at a resolution of 1e-4."""
    kernel, agents = gp.gsmp(grid), field.dealt()
    algorithm = gp.slim_kl(kernel, len(agents.targets), resolution=1e-4)
    with warnings.catch_warnings():
        # The largest of random frequencies is a little below the bound.
        warnings.simplefilter("ignore", gp.BelowNyquist)
        observed = gp.observe(kernel, agents, field.noise)
    state = algorithm.init(KEY, gp.starting_weights(kernel, agents))
    run = jax.jit(lambda state, source: dx.rollout(algorithm, state, source, KEY, ROUNDS)[0])
    theta = jnp.maximum(run(state, gp.observing(observed)).server.params, 0)
    each = gp.predict(kernel, theta, agents, field.noise, field.points)
    whole = gp.predict(kernel, theta, field.together(), field.noise, field.points)
    means = {"fused": gp.fused(each).mean, "all data": whole.mean[0]}
    return {
        name: float(np.mean(np.square(np.asarray(mean) - field.held_out)))
        for name, mean in means.items()
    }


def fields() -> dict[str, list[tuple[Field, gp.Grid]]]:
    """Crossed waves and El Niño, three splits each, and the grids that look for their frequencies."""
    with jax.enable_x64(True):
        line = gp.spectral_grid(2, FIELD_COMPONENTS)
        drawn = [
            gp.spectral_grid(
                2,
                FIELD_COMPONENTS,
                sampling="random",
                deviation=DEVIATION,
                key=jax.random.key(seed),
            )
            for seed in SEEDS
        ]
    return {
        "waves, diagonal": [(crossed_waves(seed, DIAGONAL), line) for seed in SEEDS],
        "waves, aside": [
            (crossed_waves(seed, ASIDE), grid) for seed, grid in zip(SEEDS, drawn, strict=True)
        ],
        "El Niño": [(el_nino(seed), grid) for seed, grid in zip(SEEDS, drawn, strict=True)],
    }


def main() -> None:
    """Two tables: mean squared errors of what is held out, by series and by field."""
    everything = real()
    rows = {f"SLIM-KL, 2 agents, {name}": own for name, own in ours(everything).items()}
    splits = [
        split_of(
            series.inputs[:-TEST, None],
            series.values[:-TEST],
            series.points[:, None],
            series.held_out,
        )
        for series in everything.values()
    ]
    table_of("mean squared error", list(everything), rows | theirs(splits))
    several = fields()
    found = {name: [ours_of(*one) for one in own] for name, own in several.items()}
    rows = {
        f"SLIM-KL, 4 agents, {what}": [
            np.mean([one[what] for one in own]) for own in found.values()
        ]
        for what in ("fused", "all data")
    }
    splits = [
        split_of(field.inputs, field.values, field.points, field.held_out)
        for own in several.values()
        for field, _ in own
    ]
    peers_rows = {
        name: np.reshape(own, (len(several), -1)).mean(1).tolist()
        for name, own in theirs(splits).items()
    }
    title = f"mean squared error in two dimensions, mean of {len(SEEDS)} splits"
    table_of(title, list(several), rows | peers_rows)


def split_of(
    inputs: np.ndarray, values: np.ndarray, points: np.ndarray, held_out: np.ndarray
) -> dict[str, Any]:
    """A split as the peer's program takes it."""
    return {
        "inputs": inputs.tolist(),
        "values": values.tolist(),
        "points": points.tolist(),
        "held_out": held_out.tolist(),
    }


def theirs(splits: list[dict[str, Any]]) -> dict[str, list[float]]:
    """GPyTorch's errors by kernel; none where it is not installed."""
    answer = peers.run("gpytorch", "series_gpytorch", splits=splits, steps=150, restarts=2)
    if answer is None:
        return {}
    return {f"{answer['peer']}, {kind}": own for kind, own in answer["errors"].items()}


def table_of(title: str, columns: list[str], rows: dict[str, list[float]]) -> None:
    """Prints it."""
    table = Table(title, *columns)
    for name, own in rows.items():
        table.add_row(name, *(f"{one:.4g}" for one in own))
    Console().print(table)


if __name__ == "__main__":
    main()
