"""Small classifiers of the digits as nodes of a swarm: few examples, few pixels, few units each."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

import dflax as dx

NODES, PIXELS, UNITS, CLASSES = 15, 64, 32, 10
# Of a node: how many examples it is trained on, pixels it sees, and hidden units it has.
EXAMPLES, SEEN, WIDTHS = 80, 24, (6, 10, 16, 24, 32)
# Pixels of another digit in an injected question.
STRAY = (8, 16, 24, 32)


class Classifiers(NamedTuple):
    """One seed's nodes and questions; of several seeds all leaves have a leading axis.

    Attributes:
      params: the nodes' weights and masks, leaves `[N, ...]`.
      inputs: `[360, 64]` of the test set, in [0, 1].
      injected: `[4, 360, 64]` the same with stray strokes of other digits, more and more pixels.
      labels: `[360]` theirs.
    """

    params: Any
    inputs: Any
    injected: Any
    labels: Any


def apply(params: Any, x: Any) -> Any:
    """Logits of one node: a perceptron on the pixels that it sees."""
    hidden = jax.nn.relu((x * params["pixels"]) @ params["first"] + params["bias"])
    return (hidden * params["units"]) @ params["last"] + params["shift"]


def classifiers(seeds: range, steps: int) -> Classifiers:
    """Nodes of every seed, trained by Adam on all of their own examples at a time."""
    made = [_started(seed) for seed in seeds]
    params, known, labels, held = (_stacked([one[k] for one in made]) for k in range(4))
    trained = jax.jit(jax.vmap(jax.vmap(lambda p, x, y: _trained(p, x, y, steps))))
    return Classifiers(trained(params, known, labels), *held)


def _started(seed: int) -> tuple[Any, Any, Any, Any]:
    """Weights and masks, each node's own examples, and the questions with and without injection."""
    generator = np.random.default_rng((seed, 44))
    data = dx.data.digits(seed=seed)
    train, test = (_flat(part) for part in (data.train, data.test))
    rows = np.stack([generator.permutation(len(train))[:EXAMPLES] for _ in range(NODES)])
    labels = np.asarray(data.train.labels, np.int32)[rows]
    own = np.asarray(data.test.labels, np.int32)
    shape = (NODES, PIXELS, UNITS)
    params = {
        "first": generator.normal(size=shape) * (2 / SEEN) ** 0.5,
        "bias": np.zeros((NODES, UNITS)),
        "last": generator.normal(size=(NODES, UNITS, CLASSES)) * (2 / UNITS) ** 0.5,
        "shift": np.zeros((NODES, CLASSES)),
        "pixels": _chosen(generator, PIXELS, np.full(NODES, SEEN)),
        "units": _chosen(generator, UNITS, np.resize(WIDTHS, NODES)),
    }
    other = (own + generator.integers(1, CLASSES, len(own))) % CLASSES
    strokes = np.stack([test[generator.choice(np.flatnonzero(own == c))] for c in other])
    ranks = generator.random(strokes.shape).argsort(1).argsort(1)
    injected = np.stack([np.maximum(test, strokes * (ranks < stray)) for stray in STRAY])
    held = (test, np.float32(injected), own)
    return jax.tree.map(np.float32, params), np.float32(train[rows]), labels, held


def _trained(params: Any, inputs: Any, labels: Any, steps: int) -> Any:
    adam = optax.adam(0.02)
    masks = {name: params[name] for name in ("pixels", "units")}

    def loss(weights: Any) -> Any:
        logits = jax.vmap(lambda x: apply(weights | masks, x))(inputs)
        decay = 1e-3 * sum(jnp.vdot(weights[name], weights[name]) for name in ("first", "last"))
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean() + decay

    def step(carry: Any, _: None) -> tuple[Any, None]:
        weights, state = carry
        updates, state = adam.update(jax.grad(loss)(weights), state)
        return (optax.apply_updates(weights, updates), state), None

    weights = {name: leaf for name, leaf in params.items() if name not in masks}
    (weights, _), _ = jax.lax.scan(step, (weights, adam.init(weights)), None, steps)
    return weights | masks


def _flat(data: dx.data.Dataset) -> np.ndarray:
    return np.asarray(data.fetch(jnp.arange(len(data))).inputs).reshape(len(data), -1)


def _chosen(generator: np.random.Generator, size: int, counts: np.ndarray) -> np.ndarray:
    """0 and 1, each row with so many ones."""
    ranks = generator.random((len(counts), size)).argsort(1).argsort(1)
    return (ranks < counts[:, None]).astype(np.float32)


def _stacked(trees: list[Any]) -> Any:
    return jax.tree.map(lambda *leaves: np.stack(leaves), *trees)
