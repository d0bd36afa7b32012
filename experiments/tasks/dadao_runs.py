"""Regressions that n nodes share, and what methods need until all are near the common minimiser."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import dflax as dx
from dflax.data.dataset import Dataset
from dflax.gossip import NodeEvents, Stream, poisson_stream
from dflax.topology import GossipRates, Graph, from_edges


class Problems(NamedTuple):
    """One regression per seed, leaves `[S, ...]`: f_i(x) = mean (<a, x> - b)^2 over i's rows."""

    inputs: Any
    labels: Any
    optimum: Any
    strong_convexity: Any
    smoothness: Any


class Cost(NamedTuple):
    """What it took to reach the target, `[S]` each; NaN where it was not reached.

    Errors are `[S, T]`, shares of |x*|^2: of models, and of their running means where they are kept.
    """

    gradients: np.ndarray
    communications: np.ndarray
    errors: np.ndarray
    errors_of_means: np.ndarray


def loss(x: jax.Array, batch: dx.data.Batch, key: Any) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Mean squared residual, without a half."""
    value = jnp.mean(jnp.square(batch.inputs @ x - batch.labels))
    return value, {"loss": value}


def problems(config: Any) -> Problems:
    """Per node a regression of its own: scikit-learn's, noise 10, labels scaled by U(0.01, 5)."""
    from sklearn.datasets import make_regression

    drawn = []
    for seed in range(config.seed, config.seed + config.seeds):
        generator = np.random.default_rng(seed)
        inputs, labels = [], []
        for _ in range(config.nodes):
            a, b = make_regression(
                config.samples,
                config.dimension,
                n_informative=config.dimension,
                noise=10.0,
                random_state=int(generator.integers(1 << 31)),
            )
            inputs.append(a)
            labels.append(b * generator.uniform(0.01, 5.0))
        a, b = np.concatenate(inputs), np.concatenate(labels)
        hessians = [2.0 * rows.T @ rows / config.samples for rows in inputs]
        values = np.linalg.eigvalsh(hessians)
        optimum = np.linalg.lstsq(a, b, rcond=None)[0]
        drawn.append(Problems(a, b, optimum, values.min(), values.max()))
    return Problems(*(jnp.asarray(np.stack(leaves)) for leaves in zip(*drawn, strict=True)))


def barbell(nodes: int) -> Graph:
    """Two complete graphs of n/2 nodes, joined by one link."""
    half = nodes // 2
    clique = [(i, j) for i in range(half) for j in range(i)]
    other = [(i + half, j + half) for i, j in clique]
    pairs = np.array([*clique, *other, (half - 1, half)])
    return from_edges(nodes, pairs, name=f"barbell of {nodes}")


def grid(nodes: int) -> Graph:
    """The square grid, not periodic."""
    side = math.isqrt(nodes)
    points = np.arange(nodes).reshape(side, side)
    pairs = [np.stack([points[:, :-1], points[:, 1:]], -1), np.stack([points[:-1], points[1:]], -1)]
    return from_edges(nodes, np.concatenate([p.reshape(-1, 2) for p in pairs]), name="grid")


def events(
    config: Any,
    problem: Problems,
    rates: GossipRates,
    method: Callable[..., dx.Algorithm],
    *,
    count: int,
    gradient_rate: float = 1.0,
    batch_size: int | None = None,
) -> Cost:
    """Runs a method that goes event by event; all seeds as one program."""
    streams = [
        poisson_stream(rates, count, seed=config.seed + s, gradient_rate=gradient_rate)
        for s in range(config.seeds)
    ]
    stream = jax.tree.map(lambda *leaves: jnp.stack(leaves), *streams)
    partition = deal(config)

    def one(problem: Problems, stream: Stream, key: jax.Array) -> tuple[Any, ...]:
        data = Dataset(problem.inputs, problem.labels)
        source = NodeEvents(data, partition, stream, batch_size=batch_size)
        return trace(config, problem, method, source, key, count)

    metrics, errors = jax.jit(jax.vmap(one))(problem, stream, keys(config))
    return cost(config, problem, errors, metrics["gradients"], metrics["communications"])


def rounds(
    config: Any,
    problem: Problems,
    method: Callable[..., dx.Algorithm],
    *,
    messages: int,
    most: int,
) -> Cost:
    """Runs a method that goes round by round, with so many communications in each."""
    partition = deal(config)

    def one(problem: Problems, key: jax.Array) -> tuple[Any, ...]:
        data = Dataset(problem.inputs, problem.labels)
        source = dx.Federation(data, partition, local_steps=1, batch_size=config.samples)
        return trace(config, problem, method, source, key, most)

    _, errors = jax.jit(jax.vmap(one))(problem, keys(config))
    number = np.arange(1, most + 1)
    return cost(config, problem, errors, number * config.nodes, number * messages)


def trace(
    config: Any,
    problem: Problems,
    method: Callable[..., dx.Algorithm],
    source: Any,
    key: jax.Array,
    count: int,
) -> tuple[Any, jax.Array]:
    """Every step's metrics, and mean squared errors of the models as they lie in memory and of means."""
    algorithm = method(strong_convexity=problem.strong_convexity, smoothness=problem.smoothness)
    state = algorithm.init(key, lambda key: jax.random.normal(key, (config.dimension,)))

    def step(state: Any, index: jax.Array) -> tuple[Any, Any]:
        state, metrics = algorithm.step(state, source.draw(key, index))
        models = state.clients.params
        means = getattr(state.clients, "total", None)
        means = models if means is None else state.clients.mean
        errors = [
            jnp.mean(jnp.sum(jnp.square(each - problem.optimum), axis=-1))
            for each in (models, means)
        ]
        return state, (metrics, jnp.stack(errors))

    return jax.lax.scan(step, state, jnp.arange(count, dtype=jnp.int32))[1]


def deal(config: Any) -> dx.data.Partition:
    """Node i owns rows i m to (i + 1) m."""
    rows = np.arange(config.nodes * config.samples).reshape(config.nodes, config.samples)
    return dx.data.from_indices(list(rows))


def keys(config: Any) -> jax.Array:
    """A key per seed."""
    return jax.random.split(jax.random.key(config.seed), config.seeds)


def cost(config: Any, problem: Problems, errors: Any, gradients: Any, communications: Any) -> Cost:
    """Counts at the first step that meets the target."""
    errors, of_means = np.moveaxis(np.asarray(errors), -1, 0)
    bar = config.target * np.square(np.asarray(problem.optimum)).sum(-1)
    met = errors <= bar[:, None]
    first = met.argmax(1)

    def at(counts: Any) -> np.ndarray:
        table = np.broadcast_to(np.asarray(counts, np.float64), errors.shape)
        return np.where(met.any(1), table[np.arange(len(first)), first], np.nan)

    share = config.target / bar[:, None]
    return Cost(at(gradients), at(communications), errors * share, of_means * share)
