"""Many small rounds: logistic regression 64x10, 10 of 100 clients, 5 local steps of 10 examples."""

from typing import Any

import jax
import optax

import dflax as dx
from benchmarks import limits, peers, rounds
from benchmarks.measure import Row
from benchmarks.tasks import LOGISTIC, Task


def logits(params: list[tuple[jax.Array, jax.Array]], inputs: jax.Array) -> jax.Array:
    """The linear model, or the perceptron that more than one layer makes."""
    *hidden, (weight, bias) = params
    for inner, shift in hidden:
        inputs = jax.nn.relu(inputs @ inner + shift)
    return inputs @ weight + bias


def rows(quick: bool) -> list[Row]:
    """Our round beside its equations alone, other packages and a plain PyTorch loop."""
    algorithm = dx.server.fedavg(dx.losses.classification(logits), optax.sgd(LOGISTIC.rate))
    params = jax.tree.map(jax.numpy.asarray, LOGISTIC.layers())
    count = 200 if quick else 1000
    own = rounds.row(
        "logistic round, 10 of 100 clients",
        algorithm,
        params,
        rounds.federation(LOGISTIC),
        rounds=count,
    )
    few = 10 if quick else 50
    options: dict[str, Any] = {"task": LOGISTIC, "network": "perceptron"}
    same = losses(LOGISTIC)
    return own.beside(
        limits.linear_rounds(LOGISTIC, count),
        peers.run("fedjax", "perceptron_fedjax", task=LOGISTIC, rounds=few),
        peers.run("pfl", "perceptron_pfl", task=LOGISTIC, rounds=few),
        peers.run("torch", "perceptron_torch", task=LOGISTIC, rounds=few),
        *rounds.agreeing(
            same,
            peers.run("drjax", "rounds_drjax", **options, rounds=100 if quick else 500),
            peers.run("blazefl", "rounds_blazefl", **options, rounds=few // 10),
        ),
        rounds.of_flower(**options, count=few, ours=same),
    )


def losses(task: Task) -> list[float]:
    """Of rounds of the task without chance, which peers must have too."""
    whole = task.whole()
    loss = dx.losses.classification(logits)
    algorithm = dx.server.fedavg(loss, optax.sgd(whole.rate))
    params = jax.tree.map(jax.numpy.asarray, whole.layers())
    return rounds.losses(algorithm, params, rounds.federation(whole), loss)
