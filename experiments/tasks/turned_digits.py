"""A transformer trained on digits, and another task for it: digits transposed, classes renumbered."""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

import dflax as dx
from dflax.data.laws import dirichlet_laws
from experiments.tasks.skewed_digits import drawn_by
from experiments.tools.finished import Stage, in_memory

CLASSES = 10


class Task(NamedTuple):
    """One seed's.

    Attributes:
      params: weights trained on the first half of the digits, with a fresh classifier.
      federation: clients with the other half, transposed and renumbered.
      test: held out of that half.
      key: of what follows.
    """

    params: Any
    federation: dx.Federation
    test: dx.data.Dataset
    key: Any


def trained(model: Any, data: dx.data.Dataset, epochs: int, rate: float, key: Any) -> Any:
    """Weights after Adam on all examples, 32 at a time."""
    loss, adam = dx.losses.classification(model.apply), optax.adam(rate)
    start_key, key = jax.random.split(key)
    params = model.init(start_key, data.example)["params"]
    order = np.concatenate(
        [
            np.random.default_rng(e).permutation(len(data))[: len(data) // 32 * 32]
            for e in range(epochs)
        ]
    ).reshape(-1, 32)

    def step(carry: Any, rows: Any) -> tuple[Any, None]:
        params, state = carry
        gradient, _ = jax.grad(loss, has_aux=True)(params, data.fetch(rows), None)
        updates, state = adam.update(gradient, state)
        return (optax.apply_updates(params, updates), state), None

    run = jax.jit(
        lambda params, order: jax.lax.scan(step, (params, adam.init(params)), order)[0][0]
    )
    return run(params, jnp.asarray(order, jnp.int32))


def task(
    model: Any,
    seed: int,
    *,
    epochs: int,
    rate: float,
    clients: int,
    samples: int,
    alpha: float,
    tested: int = 299,
    stage: Stage = in_memory,
    **federation: Any,
) -> Task:
    """The task of one seed.

    Args:
      model: of 10 classes.
      seed: of the halves, the weights, the clients' examples.
      epochs: of Adam on the first half.
      rate: of it.
      clients: each with `samples` examples, drawn with replacement.
      samples: of each client.
      alpha: of the Dirichlet law of each client's classes.
      tested: how many examples of the other half are held out.
      stage: of a study, which keeps the trained weights.
      **federation: further arguments of `dflax.Federation`.
    """
    digits = dx.data.digits()
    inputs = np.concatenate([digits.train.inputs, digits.test.inputs])
    labels = np.concatenate([digits.train.labels, digits.test.labels])
    generator = np.random.default_rng(seed)
    rows = generator.permutation(len(labels))
    first, other = rows[: len(rows) // 2], rows[len(rows) // 2 :]
    renumbered = generator.permutation(CLASSES)[labels].astype(np.int32)
    turned = np.swapaxes(inputs, 1, 2)

    def part(inputs: np.ndarray, labels: np.ndarray, rows: np.ndarray) -> dx.data.Dataset:
        own = jnp.asarray(inputs[rows]), jnp.asarray(labels[rows], jnp.int32)
        return dataclasses.replace(digits.train, inputs=own[0], labels=own[1])

    train_key, head_key, key = jax.random.split(jax.random.key(seed), 3)
    half = part(inputs, labels, first)
    params = stage(f"weights of seed {seed}", lambda: trained(model, half, epochs, rate, train_key))
    fresh = model.init(head_key, digits.example)["params"]["head"]
    train = part(turned, renumbered, other[tested:])
    laws = dirichlet_laws(seed, clients, CLASSES, alpha)
    owned = drawn_by(laws, np.asarray(train.labels), samples, generator)
    source = dx.Federation(train, dx.data.from_indices(owned, seed=seed), **federation)
    return Task(
        dict(params) | {"head": fresh}, source, part(turned, renumbered, other[:tested]), key
    )
