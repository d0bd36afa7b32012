"""The choice within a budget: the fastest method whose predicted cost can be paid."""

from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from dflax import validation

HOUR = 3600.0


class Choice(NamedTuple):
    """What was chosen, leaves of the leading shape `[...]` of the scores.

    Attributes:
      option: the chosen option's index.
      within: whether its predicted cost is within the budget; if not, no option was, and the
        cheapest one is chosen.
      cost: its predicted cost.
    """

    option: Int[Array, "..."]
    within: Bool[Array, "..."]
    cost: Float[Array, "..."]


class Placed(NamedTuple):
    """A method and a node.

    Attributes:
      method: `[...]` in [0, K).
      node: `[...]` in [0, H).
      within: whether the predicted cost is within the budget.
      cost: the predicted cost.
    """

    method: Int[Array, "..."]
    node: Int[Array, "..."]
    within: Bool[Array, "..."]
    cost: Float[Array, "..."]


def within_budget(
    score: Any, cost: Any, budget: float | Float[Array, "..."], available: Any = None
) -> Choice:
    """The best option that can be paid for.

        F = {k available: cost_k <= b}        k* = argmin_{k in F} score_k
        where F is empty: k* = argmin_{k available} cost_k, and `within` is False

    Among equals the lowest index is chosen.

    Args:
      score: `[..., K]` predicted log-times, lower is better.
      cost: `[..., K]` predicted costs, >= 0.
      budget: b > 0, a number or one for each task, in the units of `cost`; infinite: no limit.
        Traceable.
      available: `[..., K]` booleans, at least one in each row; None: all.

    Raises:
      TypeError, ValueError: naming the argument.
    """
    score = jnp.asarray(validation.array("score", score, kind="real", fix="Shape [..., K]."))
    if score.ndim == 0 or score.shape[-1] == 0:
        raise ValueError(f"score must be of shape [..., K] with K >= 1, got shape {score.shape}.")
    shape = score.shape
    cost = jnp.asarray(validation.array("cost", cost, kind="real", shape=shape, low=0.0))
    limit = _budget(budget, shape[:-1])
    if available is None:
        free = jnp.ones(shape, bool)
    else:
        given = validation.array("available", available, kind="boolean", shape=shape)
        if not validation.is_traced(given) and not bool(given.any(-1).all()):
            raise ValueError(
                "available must leave every task at least one option, got a row of none."
            )
        free = jnp.asarray(given)
    payable = free & (cost <= limit[..., None])
    within = payable.any(-1)
    best = jnp.argmin(jnp.where(payable, score, jnp.inf), -1)
    cheapest = jnp.argmin(jnp.where(free, cost, jnp.inf), -1)
    option = jnp.where(within, best, cheapest)
    return Choice(option, within, jnp.take_along_axis(cost, option[..., None], -1)[..., 0])


def on_nodes(
    log_seconds: Any,
    price: Any,
    budget: float | Float[Array, "..."] = float("inf"),
    available: Any = None,
) -> Placed:
    """The fastest method and node together whose predicted cost can be paid.

        (k*, h*) = argmin over k and available h with seconds_hk price_h <= b of log seconds_hk

    Args:
      log_seconds: `[..., H, K]` predicted log-times of each method on each node.
      price: `[H]` of an hour of each node, >= 0.
      budget: b > 0 for the whole task, in the units of `price`; infinite: no limit. Traceable.
      available: `[..., H, K]` booleans; None: all.

    Raises:
      TypeError, ValueError: naming the argument.
    """
    logs = jnp.asarray(validation.array("log_seconds", log_seconds, kind="real"))
    if logs.ndim < 2 or 0 in logs.shape[-2:]:
        raise ValueError(
            f"log_seconds must be of shape [..., H, K] with H, K >= 1, got shape {logs.shape}."
        )
    nodes, methods = logs.shape[-2:]
    prices = jnp.asarray(validation.array("price", price, kind="real", shape=(nodes,), low=0.0))
    flat = (*logs.shape[:-2], nodes * methods)
    if available is not None:
        given = validation.array("available", available, kind="boolean", shape=logs.shape)
        available = given.reshape(flat)
    cost = jnp.exp(logs) * prices[:, None] / HOUR
    found = within_budget(logs.reshape(flat), cost.reshape(flat), budget, available)
    return Placed(found.option % methods, found.option // methods, found.within, found.cost)


def _budget(budget: Any, rows: tuple[int, ...]) -> Array:
    """`[...]` budgets; one for all tasks, or one each."""
    given = validation.is_traced(budget)
    if not given and np.ndim(budget) == 0 and budget == float("inf"):
        return jnp.full(rows, jnp.inf)
    if np.ndim(budget) and np.shape(budget) != rows:
        raise ValueError(
            f"budget must be one number, or one for each task {list(rows)}, got shape "
            f"{np.shape(budget)}."
        )
    validation.real("budget", budget, low=0.0, low_open=True, fix="float('inf') is no limit.")
    return jnp.broadcast_to(jnp.asarray(budget, jnp.float32), rows)
