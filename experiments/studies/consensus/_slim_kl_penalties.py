"""First penalties, local solvers and a ring, on one series of two waves."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

import dflax as dx
from dflax import gaussian_processes as gp
from experiments.studies.consensus._slim_kl_runs import ACTIVE, KEY, prepared, trainer
from experiments.tasks.series import centralised, waves
from experiments.tools.finished import Stage, in_memory
from experiments.tools.report import Report
from experiments.tools.study import Summary


@jax.enable_x64(True)
def penalties(config: Any, stage: Stage = in_memory) -> Summary:
    """First penalties, local solvers, and a ring instead of a server, on the first series."""
    report = Report()
    series = waves(config.seed)
    kernel = gp.gsmp(gp.spectral_grid(1, config.components), mode="even")
    observed, source, start = prepared(kernel, series.dealt(config.agents), series.noise)
    objective = gp.joint_objective(kernel, observed, active=ACTIVE)

    def reference() -> Any:
        starts = [np.asarray(start), np.full(config.components, 0.1)]
        return objective(jnp.asarray(centralised(kernel, observed, starts)))["objective"]

    best = float(stage("centralised", reference))
    solvers = {
        f"MM, {config.inner} steps": gp.mm(config.inner),
        "SCA, 2 x 5 steps": gp.dsca(1, 2, 5),
        "DSCA in 4 blocks, 2 x 5 steps": gp.dsca(4, 2, 5),
    }
    ended: dict[str, np.ndarray] = {}
    for name, solver in solvers.items():
        run = trainer(kernel, config.agents, config.rounds, solver=solver)
        given = jnp.asarray(config.penalties), jnp.zeros(len(config.penalties))
        curves = stage(name, lambda run=run, given=given: run(*given, observed, source, start)[1])
        gaps = curves["objective"] / best
        ended[name] = 1 - gaps[:, -1]
        for place, penalty in enumerate(config.penalties):
            within = gaps[place] >= 0.98
            report.row(
                "penalties and local solvers",
                f"{name}, first penalty {penalty:g}",
                None,
                gap_to_centralised=1 - gaps[place, -1],
                rounds_to_2_percent=int(within.argmax()) + 1 if within.any() else np.nan,
                last_penalty=curves["penalty"][place, -1],
                primal=curves["primal_residual"][place, -1],
                active=curves["active"][place, -1],
            )

    def ring() -> Any:
        algorithm = dx.decentralized.consensus(
            gp.local_weights(kernel, gp.mm(config.inner)), 30.0, dx.gossip.ring(config.agents)
        )
        state = algorithm.init(KEY, start)

        def last(state: Any, source: Any) -> Array:
            return dx.rollout(algorithm, state, source, KEY, config.rounds)[0].clients.params

        thetas = jax.jit(last)(state, source)
        return {
            "objective": jax.lax.map(lambda theta: objective(theta)["objective"], thetas),
            "apart": jnp.abs(thetas - thetas.mean(0)).max(),
        }

    found = stage("ring", ring)
    report.row(
        "penalties and local solvers",
        "on a ring, penalty 30",
        None,
        gap_to_centralised=1 - found["objective"] / best,
    )
    mm = next(iter(ended.values()))
    sane = np.array([1e-4 <= penalty <= 1 for penalty in config.penalties])
    report.claim(
        "first penalties from 1e-4 to 1 end within 2 % of the centralised objective",
        np.all(mm[sane] <= 0.02),
        mm[sane].round(4).tolist(),
        0.02,
    )
    return report.summary({})
