"""A router that learns from a query's features which local models will answer it."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Key

from dflax import validation
from dflax.inference.efficiency.routing import Outcome, above, outcome

LEAST_DEVIATION = 1e-6


class Router(NamedTuple):
    """A perceptron from features to each local model's chance. From `learned`.

    Attributes:
      weights: of each layer, kernel and bias.
      mean: `[F]` of the features it learned from.
      deviation: `[F]` of the features it learned from.
    """

    weights: tuple[tuple[Array, Array], ...]
    mean: Float[Array, " F"]
    deviation: Float[Array, " F"]


def learned(
    key: Key[Array, ""],
    features: Float[Array, "N F"],
    accuracy: Float[Array, "M N"],
    *,
    hidden: tuple[int, ...] = (),
    steps: int = 500,
    rate: float | Float[Array, ""] = 0.03,
    penalty: float | Float[Array, ""] = 1e-3,
) -> Router:
    """Fits, by Adam on all queries at once, each local model's chance to answer.

        min_theta  mean_{m,q} [ -acc log s - (1 - acc) log(1 - s) ] + penalty/2 |theta|^2,
        s = sigmoid(f_theta(features of q))_m

    Without hidden layers it is a logistic regression for each model. With one row, the queries that any
    model covers, it is a plain confidence router.

    Args:
      key: of the first weights.
      features: `[N, F]` of queries to learn from; standardised within.
      accuracy: `[M, N]` in [0, 1] of the local models on them.
      hidden: widths of hidden layers of tanh, each >= 1.
      steps: >= 1.
      rate: of Adam, > 0; traceable.
      penalty: >= 0; traceable.

    Returns:
      A `Router`, for `confidence`.

    Raises:
      TypeError, ValueError: naming the argument.
    """
    validation.typed_key("key", key)
    count, width = validation.array("features", features, kind="real", shape=("N", "F")).shape
    fix = "One column for each row of features."
    models, _ = validation.array(
        "accuracy", accuracy, kind="real", shape=("M", count), low=0.0, high=1.0, fix=fix
    ).shape
    widths = validation.sequence("hidden", hidden, "widths", least=0)
    for place, size in enumerate(widths):
        validation.integer(f"hidden[{place}]", size, low=1)
    validation.integer("steps", steps, low=1)
    validation.real("rate", rate, low=0.0, low_open=True, scalar=True)
    validation.real("penalty", penalty, low=0.0, scalar=True)
    x, right = jnp.asarray(features, jnp.float32), jnp.asarray(accuracy, jnp.float32)
    sizes = [width, *widths, models]
    keys = jax.random.split(key, len(sizes) - 1)
    weights = tuple(
        (jax.random.normal(k, (a, b)) / jnp.sqrt(a), jnp.zeros(b))
        for k, a, b in zip(keys, sizes[:-1], sizes[1:], strict=True)
    )
    mean, deviation = x.mean(0), jnp.maximum(x.std(0), LEAST_DEVIATION)
    adam = optax.adam(rate)

    def loss(weights: tuple[tuple[Array, Array], ...]) -> Array:
        scores = _scores(Router(weights, mean, deviation), x)
        fit = optax.sigmoid_binary_cross_entropy(scores, right.T).mean()
        return fit + 0.5 * penalty * optax.tree.norm(weights, squared=True)

    def step(carry: tuple, _: None) -> tuple[tuple, None]:
        weights, memory = carry
        updates, memory = adam.update(jax.grad(loss)(weights), memory)
        return (optax.apply_updates(weights, updates), memory), None

    (weights, _), _ = jax.lax.scan(step, (weights, adam.init(weights)), None, length=steps)
    return Router(weights, mean, deviation)


def confidence(router: Router, features: Float[Array, "Q F"]) -> Float[Array, "M Q"]:
    """The chance of each local model to answer each query, `[M, Q]`.

    Args:
      router: from `learned`.
      features: `[Q, F]`.

    Raises:
      TypeError, ValueError: naming the argument.
    """
    validation.instance("router", router, Router, "Make one with learned(...).")
    validation.array("features", features, kind="real", shape=("Q", router.mean.shape[0]))
    return jax.nn.sigmoid(_scores(router, jnp.asarray(features, jnp.float32))).T


def frontier(
    confidence: Float[Array, "M Q"],
    accuracy: Float[Array, "M Q"],
    local: dict[str, Float[Array, "M Q"]],
    cloud: dict[str, Float[Array, " Q"]],
    thresholds: Float[Array, " T"],
    *,
    by: str,
    cloud_accuracy: float | Float[Array, " Q"] = 1.0,
    retry: bool = False,
) -> Outcome:
    """What a confidence router comes to at each threshold: its frontier of cost and quality.

    Args:
      confidence: `[M, Q]` in [0, 1], from `confidence`.
      accuracy: `[M, Q]` in [0, 1], what the local models really do.
      local: costs by name, `[M, Q]` each, >= 0.
      cloud: the same, `[Q]` each.
      thresholds: `[T]` >= 0, each a least confidence.
      by: name of the cost by which the cheapest confident model is chosen.
      cloud_accuracy: as for `outcome`.
      retry: as for `outcome`.

    Returns:
      An `Outcome` with leaves `[T]`.

    Raises:
      TypeError, ValueError: naming the argument.
    """
    validation.instance("local", local, dict, "Costs by name, such as {'energy': ...}.")
    validation.arrays("local", local, some=True)
    validation.choice("by", by, tuple(local))
    validation.array("thresholds", thresholds, kind="real", shape=("T",), low=0.0)

    def at(threshold: Array) -> Outcome:
        route = above(confidence, local[by], threshold)
        return outcome(route, accuracy, local, cloud, cloud_accuracy=cloud_accuracy, retry=retry)

    return jax.vmap(at)(jnp.asarray(thresholds))


def _scores(router: Router, features: Float[Array, "Q F"]) -> Float[Array, "Q M"]:
    x = (features - router.mean) / router.deviation
    for place, (kernel, bias) in enumerate(router.weights):
        x = (jnp.tanh(x) if place else x) @ kernel + bias
    return x
