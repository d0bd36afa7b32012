"""A round of 1,000 clients, all of them: a perceptron 784-100-10, 5 local steps of 10 examples."""

import jax
import optax

import dflax as dx
from benchmarks import peers, rounds
from benchmarks.logistic import logits, losses
from benchmarks.measure import Row
from benchmarks.tasks import MLP


def rows(quick: bool) -> list[Row]:
    """Our round with 1 and with 5 local steps, the latter beside the peers."""
    found = []
    for task in (MLP._replace(steps=1), MLP):
        algorithm = dx.server.fedavg(dx.losses.classification(logits), optax.sgd(task.rate))
        params = jax.tree.map(jax.numpy.asarray, task.layers())
        name = f"mlp round, {task.clients:,} clients, {task.steps} local steps"
        own = [
            rounds.row(
                name,
                algorithm,
                params,
                rounds.federation(task),
                rounds=1 if quick else 3,
                repeats=3,
                devices=devices,
            )
            for devices in rounds.meshes()
        ]
        if task.steps == 1 or quick:
            found += own
            continue
        found += rounds.beside_each(
            own,
            peers.run("fedjax", "perceptron_fedjax", task=task, rounds=1),
            peers.run("pfl", "perceptron_pfl", task=task, rounds=1),
            peers.run("torch", "perceptron_torch", task=task, rounds=1),
            *rounds.agreeing(
                losses(task),
                peers.run("drjax", "rounds_drjax", task=task, network="perceptron", rounds=1),
                peers.run("blazefl", "rounds_blazefl", task=task, network="perceptron", rounds=1),
            ),
        )
    return found
