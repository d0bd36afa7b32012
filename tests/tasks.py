"""Small federated problems with closed forms, shared by the tests of many algorithms."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

import dflax as dx
from dflax.data.dataset import Dataset
from dflax.data.partition import from_indices

# Called on its own a function is one program then, and within another it stands as it is written.
INLINE = functools.partial(jax.jit, inline=True)


class Quadratics(NamedTuple):
    """f_i(x) = (1/2) |x - c_i|^2: one example c_i per client, so every minibatch gradient is exact."""

    centers: np.ndarray
    data: Dataset
    partition: dx.data.Partition

    def federation(self, local_steps: int = 1, **options) -> dx.Federation:
        options.setdefault("weights", jnp.ones(len(self.centers)))
        return dx.Federation(
            self.data, self.partition, batch_size=1, local_steps=local_steps, **options
        )


def quadratics(clients: int = 6, dimension: int = 3, seed: int = 0) -> Quadratics:
    centers = np.random.default_rng(seed).normal(size=(clients, dimension)).astype(np.float32)
    data = Dataset(jnp.asarray(centers), jnp.zeros(clients, jnp.int32))
    return Quadratics(centers, data, from_indices([np.array([i]) for i in range(clients)]))


@INLINE
def half_square(params, batch, key):
    """(1/2) |x - c|^2, mean over the batch."""
    loss = 0.5 * jnp.mean(jnp.sum(jnp.square(params - batch.inputs), axis=-1))
    return loss, {"loss": loss}


class Regression(NamedTuple):
    """A logistic regression that is quick to compile and to train."""

    data: Dataset
    partition: dx.data.Partition
    params: dict


def regression(clients: int = 8, examples: int = 240, seed: int = 0) -> Regression:
    generator = np.random.default_rng(seed)
    inputs = generator.normal(size=(examples, 5)).astype(np.float32)
    labels = (inputs @ generator.normal(size=(5, 3))).argmax(1)
    data = Dataset(jnp.asarray(inputs), jnp.asarray(labels, jnp.int32), classes=3)
    sizes = generator.multinomial(examples - 2 * clients, np.ones(clients) / clients) + 2
    owned = np.split(generator.permutation(examples), np.cumsum(sizes)[:-1])
    params = {"w": jnp.zeros((5, 3)), "b": jnp.zeros(3)}
    return Regression(data, from_indices(owned), params)


@INLINE
def softmax_loss(params, batch, key):
    logits = batch.inputs @ params["w"] + params["b"]
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, batch.labels)
    mask = jnp.ones(losses.shape) if batch.mask is None else batch.mask
    loss = jnp.sum(losses * mask) / jnp.maximum(jnp.sum(mask), 1e-9)
    hits = jnp.sum((logits.argmax(-1) == batch.labels) * mask)
    return loss, {"loss": loss, "accuracy": hits / jnp.maximum(jnp.sum(mask), 1e-9)}


def assert_trees_equal(first, second):
    """Bit for bit."""
    jax.tree.map(np.testing.assert_array_equal, first, second)


def assert_trees_close(first, second, **tolerance):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, **tolerance), first, second)
