"""Federated logistic regression whose optimum is known to float64 and whose clients differ at will."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Key

from dflax import validation
from dflax.algorithm import Metrics
from dflax.data.dataset import AnyArray, Batch, Dataset, Split
from dflax.data.partition import Partition
from dflax.data.problems.newton import softmax_optimum
from dflax.data.problems.synthetic import equal_clients, masked_mean, seeded

SERIES_BELOW = 0.05


class Linear(NamedTuple):
    """The parameters of a linear classifier, logits = inputs @ weights + bias.

    Attributes:
      weights: `[d, C]`.
      bias: `[C]`.
    """

    weights: Float[AnyArray, "d C"]
    bias: Float[AnyArray, " C"]


class Logistic(NamedTuple):
    """f(x) = mean over all examples of cross-entropy(x) + (l2/2) |x|^2, clients of equal size.

    Parameters x are a `Linear`; the penalty is on weights and bias. Train with `logistic_loss(l2)`.

    Attributes:
      data: inputs `[N, d]`, labels `[N]`; the test part is drawn anew from the same clients.
      partition: the examples of each client.
      optimum: `Linear` in float64, |grad f(optimum)| <= 1e-10.
      value: f(optimum).
      models: `Linear` with leaves `[n, ...]` in float64, which labelled each client's examples.
      l2: the penalty.
      smoothness: an upper bound on L: half the largest eigenvalue of any client's second moment of
        (inputs, 1), plus l2.
      strong_convexity: mu = l2.
    """

    data: Split
    partition: Partition
    optimum: Linear
    value: float
    models: Linear
    l2: float
    smoothness: float
    strong_convexity: float

    def objective(self, x: Linear) -> Float[Array, ""]:
        """f(x)."""
        return self.value + self.suboptimality(x)

    def suboptimality(self, x: Linear) -> Float[Array, ""]:
        """f(x) - f(optimum), free of cancellation.

        With p the optimum's probabilities and d the logits' differences, centred to <p, d> = 0, it is
        mean log(1 + <p, exp(d) - 1 - d>) + (l2/2) |x - optimum|^2, because grad f(optimum) = 0.
        """
        best = _single_precision(self.optimum)
        inputs = self.data.train.inputs
        difference = jax.tree.map(jnp.subtract, x, best)
        probabilities = jax.nn.softmax(_logits(best, inputs))
        delta = _logits(difference, inputs)
        delta = delta - jnp.sum(probabilities * delta, axis=-1, keepdims=True)
        divergence = jnp.log1p(jnp.sum(probabilities * _exp_minus_line(delta), axis=-1))
        return jnp.mean(divergence) + 0.5 * self.l2 * optax.tree.norm(difference, squared=True)

    def gradient_norm(self, x: Linear) -> Float[Array, ""]:
        """|grad f(x)|."""
        batch = Batch(self.data.train.inputs, self.data.train.labels)
        gradient = jax.grad(lambda x: logistic_loss(self.l2)(x, batch, None)[0])(x)
        return optax.tree.norm(gradient)


def logistic(
    key: Key[Array, ""],
    clients: int,
    dimension: int,
    samples: int,
    classes: int = 10,
    alpha: float = 1.0,
    beta: float = 1.0,
    l2: float = 1e-3,
) -> Logistic:
    """Softmax regression on clients whose labelling models and inputs differ.

    Client i labels with argmax(a W_i + c_i), where (W_i, c_i) = (W_0, c_0) + sqrt(alpha) N(0, I) and
    (W_0, c_0) ~ N(0, I). Its inputs are a ~ N(v_i, diag(j^-1.2)) with v_i ~ N(B_i, beta I) and
    B_i ~ N(0, beta). So alpha = beta = 0 is IID. This follows FedProx's synthetic(alpha, beta), except
    that there models and centres differ by a further N(0, I) and even synthetic(0, 0) is not IID.

    Args:
      key: typed key.
      clients: n >= 1.
      dimension: d >= 1.
      samples: training examples of each client, >= 1. As many are drawn for testing.
      classes: C >= 2.
      alpha: >= 0, how much the models differ.
      beta: >= 0, how much the inputs differ.
      l2: > 0, the penalty; it makes the optimum unique.

    Returns:
      A `Logistic`; the optimum is that of the drawn float32 data, found in float64 by Newton's method.

    Raises:
      ValueError, TypeError: an argument out of range.

    References:
      Li et al., Federated Optimization in Heterogeneous Networks (FedProx), arXiv 1812.06127.
    """
    generator = seeded(key)
    validation.integer("clients", clients, low=1)
    validation.integer("dimension", dimension, low=1)
    validation.integer("samples", samples, low=1)
    validation.integer("classes", classes, low=2)
    validation.real("alpha", alpha, low=0.0, scalar=True)
    validation.real("beta", beta, low=0.0, scalar=True)
    validation.real("l2", l2, low=0.0, low_open=True, scalar=True)
    shape = (dimension + 1, classes)
    common = generator.normal(size=shape)
    models = common + np.sqrt(alpha) * generator.normal(size=(clients, *shape))
    centres = np.sqrt(beta) * (
        generator.normal(size=(clients, 1)) + generator.normal(size=(clients, dimension))
    )
    deviations = np.arange(1, dimension + 1) ** -0.6

    def draw() -> tuple[np.ndarray, np.ndarray]:
        normal = generator.normal(size=(clients, samples, dimension))
        inputs = (centres[:, None] + normal * deviations).astype(np.float32)
        logits = _with_one(inputs) @ models
        return inputs.reshape(-1, dimension), logits.argmax(-1).astype(np.int32).reshape(-1)

    train, test = draw(), draw()
    rows = _with_one(train[0])
    x, value = softmax_optimum(rows, np.eye(classes)[train[1]], float(l2))
    per_client = rows.reshape(clients, samples, -1)
    moments = np.einsum("nsd,nse->nde", per_client, per_client) / samples
    return Logistic(
        Split(*(_classification(inputs, labels, classes) for inputs, labels in (train, test))),
        equal_clients(clients, samples),
        Linear(x[:-1], x[-1]),
        value,
        Linear(models[:, :-1], models[:, -1]),
        float(l2),
        float(np.linalg.eigvalsh(moments).max() / 2 + l2),
        float(l2),
    )


def logistic_loss(
    l2: float,
) -> Callable[[Linear, Batch, Key[Array, ""] | None], tuple[Float[Array, ""], Metrics]]:
    """The loss `(params, batch, key) -> (loss, metrics)`: mean cross-entropy + (l2/2) |params|^2.

    Args:
      l2: >= 0.

    Returns:
      The function; its metrics are the loss and the accuracy on the batch.

    Raises:
      ValueError, TypeError: l2 is negative or no number.
    """
    validation.real("l2", l2, low=0.0, scalar=True)

    def loss(
        params: Linear, batch: Batch, key: Key[Array, ""] | None = None
    ) -> tuple[Float[Array, ""], Metrics]:
        logits = _logits(params, batch.inputs)
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, batch.labels)
        value = masked_mean(losses, batch.mask) + 0.5 * l2 * optax.tree.norm(params, squared=True)
        hits = (logits.argmax(-1) == batch.labels).astype(losses.dtype)
        return value, {"loss": value, "accuracy": masked_mean(hits, batch.mask)}

    return loss


def _logits(params: Linear, inputs: Float[Array, "B d"]) -> Float[Array, "B C"]:
    return inputs @ params.weights + params.bias


def _single_precision(params: Linear) -> Linear:
    return jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), params)


def _exp_minus_line(x: Float[Array, "..."]) -> Float[Array, "..."]:
    """exp(x) - 1 - x, by its series where the difference would cancel."""
    small = jnp.abs(x) < SERIES_BELOW
    near = jnp.where(small, x, 0.0)
    series = near * near * (1 / 2 + near * (1 / 6 + near * (1 / 24 + near / 120)))
    return jnp.where(small, series, jnp.expm1(x) - x)


def _with_one(inputs: Float[np.ndarray, "*N d"]) -> Float[np.ndarray, "*N d+1"]:
    ones = np.ones((*inputs.shape[:-1], 1))
    return np.concatenate([inputs.astype(np.float64), ones], axis=-1)


def _classification(inputs: np.ndarray, labels: np.ndarray, classes: int) -> Dataset:
    return Dataset(jnp.asarray(inputs), jnp.asarray(labels), classes=classes, name="logistic")
