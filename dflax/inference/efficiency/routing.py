"""Queries answered locally where a local model can, and in the cloud otherwise."""

from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key, PyTree

from dflax import validation

ERRORS = ("cloud", "flip")
Error = Literal["cloud", "flip"]


class Route(NamedTuple):
    """Where each query goes.

    Attributes:
      local: `[Q]` probability that it is asked locally, in [0, 1]; of a decision 0 or 1.
      model: `[Q]` which local model is asked then.
    """

    local: Float[Array, " Q"]
    model: Int[Array, " Q"]


class Outcome(NamedTuple):
    """What a route comes to, in expectation over its probabilities.

    Attributes:
      savings: of each cost, 1 - sum_q cost / sum_q cloud cost.
      quality: mean accuracy of what answers.
      local: share of the queries that are asked locally.
    """

    savings: PyTree[Float[Array, ""]]
    quality: Float[Array, ""]
    local: Float[Array, ""]


def oracle(
    accuracy: Float[Array, "M Q"],
    cost: Float[Array, "M Q"],
    *,
    right: float | Float[Array, ""] = 0.5,
) -> Route:
    """Local if and only if some local model answers rightly; the cheapest that does.

    Where none does, `model` is the cheapest of all: the one that a router asks in error.

    Args:
      accuracy: `[M, Q]` in [0, 1] of the local models.
      cost: `[M, Q]` >= 0, of one kind: joules, FLOPs or dollars.
      right: from which accuracy on an answer is right, in (0, 1]; traceable.

    Raises:
      TypeError, ValueError: naming the argument.
    """
    _tables(accuracy, cost=cost)
    validation.probability("right", right, low_open=True)
    answers = jnp.asarray(accuracy) >= right
    return _cheapest(answers, jnp.asarray(cost))


def above(
    confidence: Float[Array, "M Q"],
    cost: Float[Array, "M Q"],
    threshold: float | Float[Array, ""],
) -> Route:
    """The cheapest local model that is confident enough; the cloud where none is.

    Args:
      confidence: `[M, Q]` in [0, 1], probability of each local model to answer rightly, as
        `confidence` of a learned router tells.
      cost: `[M, Q]` >= 0.
      threshold: least confidence, >= 0; above 1 everything goes to the cloud; traceable.

    Raises:
      TypeError, ValueError: naming the argument.
    """
    _tables(confidence, "confidence", cost=cost)
    validation.real("threshold", threshold, low=0.0, scalar=True)
    return _cheapest(jnp.asarray(confidence) >= threshold, jnp.asarray(cost))


def imperfect(route: Route, accuracy: float | Float[Array, ""], *, error: Error = "cloud") -> Route:
    """A router that decides as `route` with probability a, as probabilities.

        error = "cloud"   P(local) = a r               an error always asks the cloud: quality is kept
        error = "flip"    P(local) = a r + (1 - a)(1 - r)   an error is the other decision

    With "cloud" the expected savings are a times those of the route, whatever the costs are.

    Args:
      route: r, usually the oracle's.
      accuracy: a in [0, 1]; traceable.
      error: "cloud" or "flip".

    Raises:
      TypeError, ValueError: naming the argument.
    """
    _verify(route)
    validation.probability("accuracy", accuracy)
    validation.choice("error", error, ERRORS)
    kept = accuracy * route.local
    return route._replace(
        local=kept if error == "cloud" else kept + (1.0 - accuracy) * (1.0 - route.local)
    )


def drawn(key: Key[Array, ""], route: Route) -> Route:
    """One decision for each query, drawn by the route's probabilities.

    Raises:
      TypeError, ValueError: naming the argument.
    """
    validation.typed_key("key", key)
    _verify(route)
    local = jax.random.bernoulli(key, route.local)
    return route._replace(local=local.astype(jnp.float32))


def outcome(
    route: Route,
    accuracy: Float[Array, "M Q"],
    local: PyTree[Float[Array, "M Q"]],
    cloud: PyTree[Float[Array, " Q"]],
    *,
    cloud_accuracy: float | Float[Array, " Q"] = 1.0,
    retry: bool = False,
) -> Outcome:
    """Savings of each cost, and quality, of a route.

    With p the probability of "local" and m the model that is asked then:

        cost_k(q) = p l_k(m, q) + (1 - p) c_k(q)       quality(q) = p acc(m, q) + (1 - p) acc_cloud(q)

    With `retry` a wrong local answer is noticed and asked again: the cloud's cost is added to the local
    one for the share 1 - acc(m, q), and the cloud's answer counts there.

    Args:
      route: where queries go.
      accuracy: `[M, Q]` in [0, 1] of the local models.
      local: costs of each kind, a tree with leaves `[M, Q]` >= 0: energy, FLOPs, dollars.
      cloud: the same tree with leaves `[Q]` >= 0.
      cloud_accuracy: in [0, 1], one number or `[Q]`; 1 where the cloud's answer is what is right.
      retry: whether wrong local answers are asked again in the cloud.

    Raises:
      TypeError, ValueError: naming the argument.

    References:
      Saad-Falcon, Narayan et al., Intelligence per Watt, arXiv 2511.07885.
    """
    _verify(route)
    _, queries = _tables(accuracy)
    if np.shape(route.local) != (queries,):
        raise ValueError(
            f"route must be of the {queries} queries of accuracy, got {np.shape(route.local)}."
        )
    validation.real("cloud_accuracy", cloud_accuracy, low=0.0, high=1.0)
    if np.shape(cloud_accuracy) not in ((), (queries,)):
        raise ValueError(
            f"cloud_accuracy must be one number or one for each of {queries} queries, got shape "
            f"{np.shape(cloud_accuracy)}."
        )
    validation.flag("retry", retry)
    _costs("local", local, np.shape(accuracy))
    _costs("cloud", cloud, (queries,))
    kinds: list[Any] = [jax.tree.structure(tree) for tree in (local, cloud)]
    if kinds[0] != kinds[1]:
        raise ValueError("cloud must have the kinds of cost that local has.")
    at = route.model, jnp.arange(queries)
    p, right = route.local, jnp.asarray(accuracy)[at]
    again = p * (1.0 - right) if retry else jnp.zeros_like(p)
    asked = 1.0 - p + again

    def saved(local: Array, cloud: Array) -> Array:
        spent = p * jnp.asarray(local)[at] + asked * cloud
        return 1.0 - jnp.sum(spent) / jnp.sum(cloud)

    quality = p * right + asked * cloud_accuracy
    return Outcome(jax.tree.map(saved, local, cloud), jnp.mean(quality), jnp.mean(p))


def _cheapest(able: Array, cost: Array) -> Route:
    """The cheapest of the able models; of all, where none is able."""
    some = jnp.any(able, axis=0)
    model = jnp.argmin(jnp.where(able | ~some, cost, jnp.inf), axis=0)
    return Route(some.astype(jnp.float32), model)


def _tables(accuracy: Any, name: str = "accuracy", **costs: Any) -> tuple[int, ...]:
    shape = np.shape(
        validation.array(name, accuracy, kind="real", shape=("M", "Q"), low=0.0, high=1.0)
    )
    for each, value in costs.items():
        fix = f"One for each entry of {name}."
        validation.array(each, value, kind="real", shape=shape, low=0.0, fix=fix)
    return shape


def _costs(name: str, tree: Any, shape: tuple[int, ...]) -> None:
    validation.arrays(name, tree, some=True)
    for at, leaf in jax.tree_util.tree_leaves_with_path(tree):
        place = f"{name}{jax.tree_util.keystr(at)}"
        validation.array(place, leaf, kind="real", shape=shape, low=0.0)


def _verify(route: Any) -> None:
    validation.instance("route", route, Route, "Make one with oracle(...) or above(...).")
