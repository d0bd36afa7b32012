"""Digits served by nodes that nobody trusts: a network trained on them, lazy and lying nodes."""

import functools
import itertools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

import dflax as dx
from dflax import verified_inference as vi
from experiments.tools.lanes import each, stacked

NODES = 20
WIDTHS = (64, 32, 16)
CLASSES = 10
MODEL = dx.models.MLP(WIDTHS, CLASSES)
SMALL = dx.models.MLP((16, 16, 16), CLASSES)


class Served(NamedTuple):
    """One seed's.

    Attributes:
      params: trained weights.
      small: those of a network of 16 units a layer, padded by zeros.
      known: `[1437, 64]` inputs of the training set.
      inputs: `[360, 64]` of the test set.
      labels: `[360]` theirs.
      key: of what follows.
    """

    params: Any
    small: Any
    known: Any
    inputs: Any
    labels: Any
    key: Any


def served(seeds: range, epochs: int) -> list[Served]:
    """Networks trained by Adam on each seed's split of the digits, all seeds by one program."""
    parts = [dx.data.digits(seed=seed) for seed in seeds]
    known, inputs = (
        jnp.stack([_flat(getattr(part, name)) for part in parts]) for name in ("train", "test")
    )
    known_labels, labels = (
        jnp.stack([jnp.asarray(getattr(part, name).labels, jnp.int32) for part in parts])
        for name in ("train", "test")
    )
    rows = known.shape[1] // 32 * 32
    orders = jnp.asarray(
        [
            [
                np.random.default_rng((seed, e)).permutation(known.shape[1])[:rows]
                for e in range(epochs)
            ]
            for seed in seeds
        ],
        jnp.int32,
    ).reshape(len(seeds), -1, 32)
    trained = []
    for model in (MODEL, SMALL):
        starts = stacked([_started(model, seed) for seed in seeds])
        run = jax.jit(lambda lanes, model=model: each(functools.partial(_trained, model), lanes))
        trained.append(run((starts, known, known_labels, orders)))

    def of(tree: Any, place: int) -> Any:
        return jax.tree.map(lambda leaf: leaf[place], tree)

    found = []
    for place, seed in enumerate(seeds):
        params, small = (of(tree, place) for tree in trained)
        arrays = known[place], inputs[place], labels[place]
        padded = vi.zero_padded(small, params)
        found.append(Served(params, padded, *arrays, jax.random.key(1000 + seed)))
    return found


def _started(model: dx.models.MLP, seed: int) -> Any:
    """Weights of variance 2 / inputs, drawn on the host: nothing is compiled for them."""
    generator = np.random.default_rng((seed, 99))
    widths = [64, *model.features, model.classes]
    return {
        f"Dense_{place}": {
            "kernel": generator.normal(size=pair).astype(np.float32) * (2 / pair[0]) ** 0.5,
            "bias": np.zeros(pair[1], np.float32),
        }
        for place, pair in enumerate(itertools.pairwise(widths))
    }


def _trained(model: dx.models.MLP, lane: tuple[Any, Any, Any, Any]) -> Any:
    """Weights after Adam, 32 examples at a time."""
    params, inputs, labels, order = lane
    adam = optax.adam(3e-3)

    def loss(params: Any, rows: Any) -> Any:
        found = model.apply({"params": params}, inputs[rows])
        return optax.softmax_cross_entropy_with_integer_labels(found, labels[rows]).mean()

    def step(carry: Any, rows: Any) -> tuple[Any, None]:
        params, state = carry
        updates, state = adam.update(jax.grad(loss)(params, rows), state)
        return (optax.apply_updates(params, updates), state), None

    return jax.lax.scan(step, (params, adam.init(params)), order)[0][0]


def _flat(data: dx.data.Dataset) -> jax.Array:
    """All inputs as vectors of real numbers."""
    return data.fetch(jnp.arange(len(data))).inputs.reshape(len(data), -1)


def scores(params: Any, inputs: Any) -> Any:
    """The network."""
    return MODEL.apply({"params": params}, inputs)


@functools.cache
def flipped(queries: int, largest: int, escalations: int) -> Any:
    """A compiled run of nodes that flip labels: of weights, queries, rate, k, quorum, key."""

    def run(
        params: Any, source: vi.Queries, rate: Any, size: Any, quorum: Any, key: Any
    ) -> dict[str, Any]:
        everyone = jnp.ones(NODES, jnp.int32)
        algorithm = vi.verified_inference(
            scores,
            vi.Nodes(everyone, (vi.label_flip(1),), rate),
            committee=size,
            quorum=quorum,
            largest=largest,
            escalations=escalations,
            by_reputation=False,
            test=vi.never_removed(),
        )
        _, metrics = dx.rollout(algorithm, algorithm.init(key, params), source, key, queries)
        return {
            name: jnp.mean(metrics[name].astype(jnp.float32))
            for name in ("wrong", "rejected", "proved", "executions", "cost")
        }

    return jax.jit(
        jax.vmap(run, in_axes=(None, None, 0, 0, 0, 0)),
    )


@functools.cache
def lazy(queries: int, committee: int) -> Any:
    """A compiled run with nodes of 4 bits and 16 units: of a task, kinds, rates, test, payments, key."""

    def run(
        served: Served, kinds: Any, audit: Any, test: Any, fine: Any, slash: Any, key: Any
    ) -> tuple[Any, dict[str, Any]]:
        faults = (vi.fewer_bits(4), vi.other_weights(served.small))
        algorithm = vi.verified_inference(
            scores,
            vi.Nodes(kinds, faults, jnp.float32(1)),
            committee=committee,
            audit=audit,
            by_reputation=False,
            test=test,
            pay=vi.incentives(1.0, cost=0.5, saved=0.4, fine=fine, slash=slash),
        )
        source = vi.Queries(served.inputs, served.labels)
        state = algorithm.init(key, served.params)
        state, metrics = dx.rollout(algorithm, state, source, key, queries)
        kept = {
            name: jnp.mean(metrics[name].astype(jnp.float32))
            for name in ("executions", "wrong", "accuracy")
        }
        return state.clients, kept

    return jax.jit(jax.vmap(run, in_axes=(None, None, 0, None, None, None, 0)))


@functools.cache
def leaking(cut: int, steps: int) -> Any:
    """What a cut leaks, compiled: of a seed's task, the noise and a key."""
    split = dx.models.split_mlp(MODEL, (cut, 0))

    def measure(task: Served, sigma: Any, key: Any) -> dict[str, Any]:
        parts = split.divide(task.params, key)
        infer = vi.split_inference(split, sigma=sigma)
        known_key, seen_key, probe_key = jax.random.split(key, 3)
        _, known = infer(parts, task.known, known_key)
        found, seen = infer(parts, task.inputs, seen_key)
        ridge = vi.ridge_inverse(known, task.known)
        network = vi.mlp_inverse(probe_key, known, task.known, steps=steps)
        return {
            "ridge": vi.reconstruction_error(ridge(seen), task.inputs),
            "network": vi.reconstruction_error(network(seen), task.inputs),
            "correlation": vi.distance_correlation(task.inputs, seen),
            "accuracy": jnp.mean(jnp.argmax(found, -1) == task.labels),
        }

    return jax.jit(measure)
