"""Who of a round's participants is an anchor, for methods that alternate large batches and steps."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from dflax import validation

RULES = ("a", "b", "c")


class Anchors(NamedTuple):
    """A law of roles: anchors refresh their gradients, miners move the model.

    Attributes:
      probability: `number -> p`, `[]` float: with which each participant of that round is an anchor,
        independently of the others.
      shared: whether p is 0 or 1, so that all of a round have the same role (static).
    """

    probability: Callable[[Int[Array, ""]], Float[Array, ""]]
    shared: bool = False


def constant(probability: float | Array) -> Anchors:
    """Each participant is an anchor with the same probability in every round.

    Args:
      probability: p in (0, 1), both ends excluded: with p = 1 nobody ever moves the model, with p = 0
        no gradient is ever refreshed and the model drifts away along the first ones. Traceable.
    """
    validation.real(
        "probability",
        probability,
        low=0.0,
        high=1.0,
        low_open=True,
        high_open=True,
        scalar=True,
        fix="With 1 there are only anchors and the model never moves, with 0 only miners and their "
        "direction is never refreshed. For whole rounds of anchors use periodic(2) or more.",
    )
    return Anchors(lambda number: jnp.asarray(probability, jnp.float32))


def periodic(period: int) -> Anchors:
    """Rounds 0, period, 2 period, ... are of anchors alone and leave the model, the others of miners.

    Args:
      period: tau >= 2; with 1 all rounds would be of anchors.
    """
    fix = "With 1 every round is of anchors alone and the model never moves."
    validation.integer("period", period, low=2, fix=fix)
    return Anchors(lambda number: (number % period == 0).astype(jnp.float32), shared=True)


def decaying() -> Anchors:
    """Fewer and fewer anchors: p_t = min(1, 1 / ln(max((t + 14) / 5, e)))."""

    def probability(number: Int[Array, ""]) -> Float[Array, ""]:
        return jnp.minimum(1.0, 1.0 / jnp.log(jnp.maximum((number + 14) / 5, jnp.e)))

    return Anchors(probability)


def recommended(clients: int, cohort: int, rule: str = "a") -> float:
    """A constant probability p from the numbers of clients N and of participants A.

    Rule "a": argmin over p in (0, 1) of 1 / (1 - p^A) + 2 N / (A p sqrt(1 - p^A));
    "b": sqrt(4 (N/A)^2 + 2 (N/A)) - 2 N/A; "c": (2 / (A + 2))^(1/A).

    Args:
      clients: N >= 1.
      cohort: A in [1, N].
      rule: "a", "b" or "c".

    References:
      Wu et al., Anchor Sampling for Federated Learning with Partial Client Participation (FedAMD),
      arXiv 2206.05891.
    """
    validation.integer("clients", clients, low=1)
    validation.integer("cohort", cohort, low=1, high=clients)
    validation.choice("rule", rule, RULES)
    ratio = clients / cohort
    if rule == "b":
        return float(np.sqrt(4 * ratio**2 + 2 * ratio) - 2 * ratio)
    if rule == "c":
        return float((2 / (cohort + 2)) ** (1 / cohort))

    def bound(p: float) -> Any:
        moves = 1 - p**cohort
        return 1 / moves + 2 * ratio / (p * np.sqrt(moves))

    # Slow to import, and of all rules this one alone needs it.
    from scipy.optimize import minimize_scalar

    found = minimize_scalar(
        bound, bounds=(1e-6, 1 - 1e-9), method="bounded", options={"xatol": 1e-9}
    )
    return float(found.x)


__all__ = [
    "Anchors",
    "constant",
    "decaying",
    "periodic",
    "recommended",
]


def __dir__() -> list[str]:
    return __all__
