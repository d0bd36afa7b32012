"""A small task on which methods part ways: digits, 20 clients with skewed labels, a few at a time.

Shared by studies; the conventions move the numbers, so they are the same in all of them: pixels / 16,
a perceptron 64-32-10 with weights N(0, 0.1^2) and biases 0, for each client a label law drawn from
Dirichlet(alpha) and 64 training images drawn by it with replacement, minibatches with replacement.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int

import dflax as dx
from dflax import evaluation

CLIENTS, OWNED, BATCH = 20, 64, 16


class Problems(NamedTuple):
    """P problems of equal shapes, one for each alpha and seed.

    Attributes:
      alphas: `[P]` label skew of each.
      seeds: `[P]`.
      partitions: P of them.
      keys: `[P]` typed keys; problems of the same seed share theirs, whatever the alpha.
      data: the one data set.
      loss: of the perceptron.
    """

    alphas: np.ndarray
    seeds: np.ndarray
    partitions: list[dx.data.Partition]
    keys: jax.Array
    data: dx.data.Split
    loss: Any

    def where(self, alpha: float) -> np.ndarray:
        """The places of one skew's problems, in the order of the seeds."""
        return np.flatnonzero(self.alphas == alpha)


def problems(alphas: Sequence[float], seeds: int, first: int = 0) -> Problems:
    """Every alpha with seeds first, ..., first + seeds - 1."""
    data = dx.data.digits()
    labels = np.asarray(data.labels)
    points = [(alpha, seed) for alpha in alphas for seed in range(first, first + seeds)]
    partitions = []
    for alpha, seed in points:
        generator = np.random.default_rng([seed, round(1000 * alpha)])
        laws = generator.dirichlet(np.full(10, alpha), CLIENTS)
        owned = drawn_by(laws, labels, OWNED, generator)
        partitions.append(dx.data.from_indices(owned, seed=seed))
    model = dx.models.MLP((32,), classes=10)
    return Problems(
        np.array([alpha for alpha, _ in points]),
        np.array([seed for _, seed in points]),
        partitions,
        jax.vmap(jax.random.key)(jnp.asarray([seed for _, seed in points])),
        data,
        dx.losses.classification(model.apply),
    )


def drawn_by(
    laws: Float[np.ndarray, "n C"],
    labels: Int[np.ndarray, " N"],
    owned: int,
    generator: np.random.Generator,
) -> list[Int[np.ndarray, " owned"]]:
    """For each client so many examples, drawn with replacement by its label law."""
    rows = [np.flatnonzero(labels == c) for c in range(laws.shape[1])]
    return [
        np.array([generator.choice(rows[c]) for c in generator.choice(len(rows), owned, p=law)])
        for law in laws
    ]


def accuracies(
    given: Problems,
    method: Callable[..., dx.Algorithm],
    *hyper: Sequence[float],
    rounds: int,
    local_steps: int = 10,
    cohort: int = 4,
) -> np.ndarray:
    """Test accuracy after every round, `[G, P, rounds]`, as one compiled program.

    Args:
      given: the P problems.
      method: makes the algorithm, of one value of each of `hyper`.
      *hyper: hyper-parameters, each a list of G values.
      rounds: how many.
      local_steps: K.
      cohort: clients of a round, drawn without replacement.
    """
    rule = dx.participation.uniform(cohort) if cohort < CLIENTS else dx.participation.everyone()
    first = dx.Federation(
        given.data,
        given.partitions[0],
        batch_size=BATCH,
        local_steps=local_steps,
        participation=rule,
        replacement=True,
    )
    sources = dx.side_by_side([first.replace(partition=own) for own in given.partitions])
    measure = evaluation.on(given.loss, given.data.test)

    def run(values: Any, own: Any, key: jax.Array, sources: dx.SideBySide, measure: Any) -> Any:
        source = sources.source(own)
        algorithm = method(*values)
        model_key, init_key, run_key = jax.random.split(key, 3)
        state = algorithm.init(init_key, _small_weights(model_key))

        def step(state: Any, round: dx.Round) -> tuple[Any, Any]:
            state, _ = algorithm.step(state, round)
            return state, measure(state.server.params)["accuracy"]

        return dx.rollout(dx.Algorithm(algorithm.init, step), state, source, run_key, rounds)[1]

    over_problems = jax.vmap(run, in_axes=(None, 0, 0, None, None))
    over_all = jax.vmap(over_problems, in_axes=(0, None, None, None, None))
    values = tuple(jnp.asarray(entry, jnp.float32) for entry in hyper) or (jnp.zeros(1),)
    if not hyper:
        constant = method
        method = lambda _: constant()  # noqa: E731
    return np.asarray(jax.jit(over_all)(values, sources.own, given.keys, sources, measure))


def _small_weights(key: jax.Array) -> dict[str, Any]:
    first, second = jax.random.split(key)
    return {
        "Dense_0": {"kernel": 0.1 * jax.random.normal(first, (64, 32)), "bias": jnp.zeros(32)},
        "Dense_1": {"kernel": 0.1 * jax.random.normal(second, (32, 10)), "bias": jnp.zeros(10)},
    }
