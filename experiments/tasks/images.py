"""Fashion-MNIST dealt to 100 clients, ten of them a round, for comparisons of methods with a server."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import einops
import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

import dflax as dx
from dflax import evaluation
from experiments.tools.lanes import each

CLIENTS = 100
# FL-Simulator's README: CIFAR-10, ResNet-18 with group norm, 10 of 100 clients, best of 1000 rounds.
CIFAR10 = {
    "FedAvg": {0.6: 80.65, 0.3: 79.75, 0.1: 77.31},
    "FedProx": {0.6: 81.05, 0.3: 79.52, 0.1: 76.86},
    "FedAdam": {0.6: 82.56, 0.3: 82.12, 0.1: 77.58},
    "SCAFFOLD": {0.6: 83.53, 0.3: 82.75, 0.1: 79.92},
    "FedDyn": {0.6: 84.22, 0.3: 83.22, 0.1: 78.96},
    "FedCM": {0.6: 83.81, 0.3: 83.44, 0.1: 78.92},
    "FedGamma": {0.6: 84.80, 0.3: 83.81, 0.1: 80.72},
    "MoFedSAM": {0.6: 85.74, 0.3: 85.14, 0.1: 81.58},
    "FedSpeed": {0.6: 86.33, 0.3: 85.39, 0.1: 82.26},
    "FedSMOO": {0.6: 86.87, 0.3: 86.04, 0.1: 83.30},
}


class Task(NamedTuple):
    """One skew of the images with one model.

    Attributes:
      data: Fashion-MNIST.
      federation: 100 clients, ten a round.
      model: a linen module.
      loss: of the model.
    """

    data: dx.data.Split
    federation: dx.Federation
    model: Any
    loss: Any


class Halved(nn.Module):
    """A network that sees means over squares of 2 x 2 pixels: a quarter of a convolution's work."""

    network: nn.Module

    @nn.compact
    def __call__(self, images: jax.Array) -> jax.Array:
        """`[B, H, W, C]` to the network's outputs for `[B, H / 2, W / 2, C]`."""
        halves = einops.reduce(images, "b (h i) (w j) c -> b h w c", "mean", i=2, j=2)
        return self.network(halves)


def network(size: str) -> Any:
    """A linen module for Fashion-MNIST by its size.

    Args:
      size: "perceptron" (32 hidden), "halved" and "small" CNN (channels 8 and 16, 32 hidden), the first
        on images averaged to half their height and width, or "large" CNN (channels 32 and 64, 128
        hidden).
    """
    if size == "perceptron":
        return dx.models.MLP((32,), classes=10)
    channels, hidden = ((32, 64), 128) if size == "large" else ((8, 16), 32)
    model = dx.models.CNN(classes=10, channels=channels, hidden=hidden)
    return Halved(model) if size == "halved" else model


def load(size: str, skew: str, *, local_steps: int = 10, batch_size: int = 20) -> Task:
    """The task; all skews have arrays of equal shapes, so that a compiled program serves them all.

    Args:
      size: of the network, see `network`.
      skew: "dirichlet ALPHA", or "shards S" for S label shards a client.
      local_steps: K.
      batch_size: B; minibatches are drawn with replacement.
    """
    data = dx.data.fashion_mnist()
    labels = np.asarray(data.labels)
    kind, amount = skew.split()
    if kind == "dirichlet":
        partition = dx.data.dirichlet(labels, CLIENTS, float(amount), seed=0, min_size=4)
    else:
        partition = dx.data.label_shards(labels, CLIENTS, int(amount), seed=0)
    model = network(size)
    federation = dx.Federation(
        data,
        partition,
        local_steps=local_steps,
        batch_size=batch_size,
        participation=dx.participation.uniform(10),
        weights=jnp.ones(CLIENTS),
        replacement=True,
    )
    return Task(data, federation, model, dx.losses.classification(model.apply))


def curves(
    tasks: Sequence[Task],
    method: Callable[[jax.Array], dx.Algorithm],
    rates: Sequence[float],
    *,
    rounds: int,
    seeds: int,
    seed: int = 0,
    with_gradients: bool = False,
    examples: int = 1000,
) -> np.ndarray:
    """Test accuracy after every round, `[tasks, rates, seeds, rounds]`, one program for all.

    Args:
      tasks: that differ in their skew alone.
      method: makes the algorithm, of a rate.
      rates: of the local steps.
      rounds: how many.
      seeds: repetitions; they differ in the model, the cohorts and the minibatches.
      seed: the first of them.
      with_gradients: whether the method starts from the clients' gradients (of 100 examples each).
      examples: of the test set, to measure on.
    """
    first = tasks[0]
    test = first.data.test
    measure = evaluation.on(first.loss, test, examples=min(examples, len(test)))

    def run(lane: tuple[jax.Array, jax.Array], source: dx.Federation, measure: Any) -> Any:
        rate, key = lane
        algorithm = method(rate)
        model_key, init_key, run_key, start_key = jax.random.split(key, 4)
        params = first.model.init(model_key, first.data.example)["params"]
        given: tuple[Any, ...] = ()
        if with_gradients:
            gradients = dx.local.client_gradients(
                first.loss, source, params, examples=100, key=start_key
            )
            given = (gradients,)
        state = algorithm.init(init_key, params, *given)

        def step(state: Any, round: dx.Round) -> tuple[Any, Any]:
            state, _ = algorithm.step(state, round)
            return state, measure(state.server.params)["accuracy"]

        return dx.rollout(dx.Algorithm(algorithm.init, step), state, source, run_key, rounds)[1]

    @jax.jit
    def program(lanes: tuple[jax.Array, jax.Array], source: dx.Federation, measure: Any) -> Any:
        return each(run, lanes, source, measure)

    keys = jax.vmap(jax.random.key)(seed + jnp.arange(seeds))
    lanes = jnp.repeat(jnp.asarray(rates, jnp.float32), seeds), jnp.tile(keys, len(rates))
    found = [program(lanes, task.federation, measure) for task in tasks]
    return np.stack([np.reshape(curves, (len(rates), seeds, -1)) for curves in found])


def rank_correlation(ours: dict[str, float], alpha: float) -> float:
    """Spearman's correlation of our accuracies with the repository's on CIFAR-10, over its methods.

    Args:
      ours: accuracy by method, all of the repository's among them.
      alpha: Dirichlet concentration of its column, 0.6, 0.3 or 0.1.
    """
    values = [[ours[name] for name in CIFAR10], [CIFAR10[name][alpha] for name in CIFAR10]]
    ranks = np.argsort(np.argsort(values, axis=1), axis=1)
    return float(np.asarray(np.corrcoef(ranks))[0, 1])
