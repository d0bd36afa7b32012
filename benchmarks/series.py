"""`python -m benchmarks.series`: SLIM-KL and GPyTorch on real series, the same splits."""

import jax
import jax.numpy as jnp
import numpy as np
from rich.console import Console
from rich.table import Table

import dflax as dx
from benchmarks import peers
from dflax import gaussian_processes as gp
from experiments.tasks.series import TEST, Series, mse, real

COMPONENTS, AGENTS, ROUNDS = 500, 2, 60
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


def main() -> None:
    """One table: mean squared errors of the last values, standardised."""
    everything = real()
    rows = {f"SLIM-KL, 2 agents, {name}": own for name, own in ours(everything).items()}
    given = [np.asarray(series.values).tolist() for series in everything.values()]
    answer = peers.run(
        "gpytorch", "series_gpytorch", series=given, test=TEST, steps=150, restarts=2
    )
    if answer is not None:
        rows |= {f"{answer['peer']}, {kind}": own for kind, own in answer["errors"].items()}
    table = Table("mean squared error", *everything)
    for name, own in rows.items():
        table.add_row(name, *(f"{one:.4g}" for one in own))
    Console().print(table)


if __name__ == "__main__":
    main()
