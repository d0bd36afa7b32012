"""Many small rounds: logistic regression 64x10, 10 of 100 clients, 5 local steps of 10 examples."""

import jax
import optax

import dflax as dx
from benchmarks import peers, rounds
from benchmarks.measure import Row
from benchmarks.tasks import LOGISTIC


def logits(params: list[tuple[jax.Array, jax.Array]], inputs: jax.Array) -> jax.Array:
    """The linear model, or the perceptron that more than one layer makes."""
    *hidden, (weight, bias) = params
    for inner, shift in hidden:
        inputs = jax.nn.relu(inputs @ inner + shift)
    return inputs @ weight + bias


def rows(quick: bool) -> list[Row]:
    """Our round beside FedJAX's, pfl-research's and a plain PyTorch loop's."""
    algorithm = dx.server.fedavg(dx.losses.classification(logits), optax.sgd(LOGISTIC.rate))
    params = jax.tree.map(jax.numpy.asarray, LOGISTIC.layers())
    own = rounds.row(
        "logistic round, 10 of 100 clients",
        algorithm,
        params,
        rounds.federation(LOGISTIC),
        rounds=200 if quick else 1000,
    )
    few = 10 if quick else 50
    return own.beside(
        peers.run("fedjax", "perceptron_fedjax", task=LOGISTIC, rounds=few),
        peers.run("pfl", "perceptron_pfl", task=LOGISTIC, rounds=few),
        peers.run("torch", "perceptron_torch", task=LOGISTIC, rounds=few),
    )
