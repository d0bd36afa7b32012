"""Vectors to be generated, experts, routers and students for them, and how far samples are from data."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

import dflax as dx
from dflax import experts as ex
from dflax import generative as gen

PATH = gen.rectified()


class Task(NamedTuple):
    """What is generated.

    Attributes:
      data: vectors `[n, D]`.
      features: `[n, F]`, in which clusters are found and samples are held against data.
      basis: `[D, F]` and `[D]`: features are `(x - basis[1]) @ basis[0]`.
      picture: `[D] -> [H, W]` in [0, 1].
    """

    data: dx.data.Dataset
    features: np.ndarray
    basis: tuple[np.ndarray, np.ndarray]
    picture: Any


def digits() -> Task:
    """scikit-learn's 1,797 digits in [-1, 1], D = 64, and 16 principal components of them."""
    from sklearn.datasets import load_digits

    bunch = load_digits()
    x = (bunch.data / 8.0 - 1.0).astype(np.float32)
    basis = _principal(x, 16)
    return Task(_dataset(x), (x - basis[1]) @ basis[0], basis, lambda v: (v.reshape(8, 8) + 1) / 2)


def fashion_latents(latents: int) -> Task:
    """Fashion-MNIST's 60,000 images as their first principal components, of mean square 1.

    The components stand for the latents of an autoencoder; features are the first 32 of them.
    """
    images = np.asarray(dx.data.fashion_mnist().train.inputs, np.float32).reshape(-1, 784) / 255
    directions, mean = _principal(images, latents)
    x = (images - mean) @ directions
    scale = float(np.sqrt(np.mean(x**2)))

    def picture(v: np.ndarray) -> np.ndarray:
        return np.clip((scale * v) @ directions.T + mean, 0, 1).reshape(28, 28)

    x = (x / scale).astype(np.float32)
    basis = np.eye(latents, 32, dtype=np.float32), np.zeros(latents, np.float32)
    return Task(_dataset(x), x[:, :32], basis, picture)


def _dataset(x: np.ndarray) -> dx.data.Dataset:
    return dx.data.Dataset(jnp.asarray(x), jnp.zeros(len(x), jnp.int32))


def _principal(x: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    mean = x.mean(0)
    _, directions = np.linalg.eigh(np.cov(x.T))
    return directions[:, ::-1][:, :count].astype(np.float32), mean


def frechet(first: np.ndarray, second: np.ndarray) -> float:
    """`|m_1 - m_2|^2 + tr(C_1 + C_2 - 2 (C_1 C_2)^(1/2))` of two sets of features `[n, F]`."""
    a, b = (np.asarray(x, np.float64) for x in (first, second))
    c, d = np.cov(a.T), np.cov(b.T)
    roots = np.sqrt(np.maximum(np.linalg.eigvals(c @ d).real, 0.0))
    return float(np.sum((a.mean(0) - b.mean(0)) ** 2) + np.trace(c) + np.trace(d) - 2 * roots.sum())


def distance(task: Task, samples: np.ndarray) -> float:
    """Frechet distance of samples `[m, D]` from the data, in features."""
    directions, mean = task.basis
    return frechet((np.asarray(samples) - mean) @ directions, task.features)


class Trainer:
    """Experts, routers and students of one size on one task, each a compiled program for all seeds.

    Args:
      task: what is generated.
      width: of the experts, three hidden layers.
      batch_size: B in all.
      steps: of the experts.
      decay: of the averages.
      rate: of Adam.
    """

    def __init__(
        self, task: Task, width: int, batch_size: int, steps: int, decay: float, rate: float = 1e-3
    ):
        self.task, self.batch_size, self.steps = task, batch_size, steps
        self.decay, self.optimizer = decay, optax.adam(rate)
        self.model = dx.models.TimeMLP(width, depth=3)
        self.loss = gen.denoising(self.model, PATH)
        self.example = gen.Noised(task.data.inputs[:1], jnp.ones(1))

    def start(self, key: jax.Array) -> Any:
        """An untrained expert."""
        return jax.jit(self.model.init)(key, self.example)["params"]

    def experts(self, sources: dx.SideBySide, lane: int, key: jax.Array) -> Any:
        """Averages `[K, ...]` of experts that trained apart on the clusters of one lane."""
        own = jax.tree.map(lambda leaf: leaf[lane], sources.own)
        return self._experts(sources, own, self.start(key), jax.random.fold_in(key, 1))

    @functools.partial(jax.jit, static_argnums=0)
    def _experts(self, sources: Any, own: Any, start: Any, key: jax.Array) -> Any:
        source = sources.source(own)
        algorithm = ex.ddm(self.loss, self.optimizer, source.clients, decay=self.decay)
        rounds = self.steps // source.local_steps
        state, _ = dx.rollout(algorithm, algorithm.init(key, start), source, key, rounds)
        return state.clients.average

    def student(self, sources: dx.SideBySide, lane: int, key: jax.Array, teachers: Any) -> Any:
        """The average of a student of these teachers, on minibatches of these sources."""
        own = jax.tree.map(lambda leaf: leaf[lane], sources.own)
        key = jax.random.fold_in(key, 2)
        return self._student(sources, own, self.start(key), key, teachers)

    @functools.partial(jax.jit, static_argnums=0)
    def _student(self, sources: Any, own: Any, start: Any, key: jax.Array, teachers: Any) -> Any:
        source = sources.source(own)
        algorithm = ex.distillation(
            self.model, self.model, PATH, self.optimizer, source.clients, decay=self.decay
        )
        state = algorithm.init(key, start, teachers)
        state, _ = dx.rollout(algorithm, state, source, key, self.steps)
        return state.server.average

    def sources(self, labels: list[np.ndarray], experts: int) -> dx.SideBySide:
        """The federations of experts for several partitions, for one program.

        As nothing is exchanged, a round may be long: an expert's state then stays in the caches.
        """
        return self._sources(labels, experts, self.batch_size, 10)

    def lessons(self, labels: list[np.ndarray], experts: int) -> dx.SideBySide:
        """The same with a quarter of the batch and a step a round, for students."""
        return self._sources(labels, experts, self.batch_size // 4, 1)

    def _sources(
        self, labels: list[np.ndarray], experts: int, size: int, steps: int
    ) -> dx.SideBySide:
        return dx.side_by_side(
            [
                ex.apart(self.task.data, one, batch_size=size, experts=experts, local_steps=steps)
                for one in labels
            ]
        )

    def samples(self, field: Any, count: int, steps: int, key: jax.Array) -> jax.Array:
        """Samples `[count, D]` by Euler steps; call it within a compiled program."""
        noise_key, run_key = jax.random.split(key)
        start = self.noise(count, noise_key)
        return gen.sample(field, gen.euler(PATH), start, gen.grid(steps), run_key)

    def noise(self, count: int, key: jax.Array) -> jax.Array:
        """What samples start from."""
        return jax.random.normal(key, (count, self.task.data.inputs.shape[1]))


class Routers:
    """Routers of one size, trained on all data or by FedAvg.

    Args:
      task: whose clusters are told apart.
      experts: K.
      width: of three hidden layers.
      steps: of training.
      rate: of Adam.
    """

    def __init__(self, task: Task, experts: int, width: int, steps: int, rate: float = 1e-3):
        self.task, self.steps, self.optimizer = task, steps, optax.adam(rate)
        self.model = dx.models.TimeMLP(width, depth=3, outputs=experts)
        self.loss = ex.routing(self.model, PATH)
        self.example = gen.Noised(task.data.inputs[:1], jnp.ones(1))

    def labelled(self, labels: np.ndarray) -> dx.data.Dataset:
        """The task's data with cluster numbers as labels."""
        given = jnp.asarray(labels, jnp.int32)
        return dx.data.Dataset(self.task.data.inputs, given, classes=self.model.outputs)

    def source(
        self, labels: np.ndarray, partition: Any, batch_size: int, local_steps: int = 1
    ) -> dx.Federation:
        """Clients with the data of a partition; their weights are their numbers of examples."""
        return dx.Federation(
            self.labelled(labels),
            partition,
            batch_size=batch_size,
            local_steps=local_steps,
            replacement=True,
        )

    def trained(self, source: dx.Federation, key: jax.Array, at_server: bool = False) -> Any:
        """Parameters after the router's number of local steps, models averaged after each round.

        Args:
          source: of the clients; a single one is training on all data.
          key: of the start and the run.
          at_server: whether Adam is the server's, on the clients' mean changes by plain SGD.
        """
        start = jax.jit(self.model.init)(key, self.example)["params"]
        return self._trained(at_server, source, start, jax.random.fold_in(key, 3))

    @functools.partial(jax.jit, static_argnums=(0, 1))
    def _trained(self, at_server: bool, source: Any, start: Any, key: jax.Array) -> Any:
        if at_server:
            algorithm = dx.server.fedavg(self.loss, optax.sgd(1.0), self.optimizer)
        else:
            algorithm = dx.server.fedavg(
                self.loss, self.optimizer, keep_optimizer=True, clients=source.clients
            )
        state = algorithm.init(key, start)
        rounds = self.steps // source.local_steps
        state, _ = dx.rollout(algorithm, state, source, key, rounds)
        return state.server.params

    @functools.partial(jax.jit, static_argnums=0)
    def accuracy(self, params: Any, data: dx.data.Dataset, time: jax.Array) -> jax.Array:
        """Share of all examples whose cluster is told at one time."""
        noise = jax.random.normal(jax.random.key(7), data.inputs.shape)
        when = jnp.full(len(data), time)
        seen = gen.Noised(gen.noised(PATH, data.inputs, noise, when), when)
        told = gen.field(self.model, params)(seen, jax.random.key(0))
        return jnp.mean(jnp.argmax(told, axis=1) == data.labels)
