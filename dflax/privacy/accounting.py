"""Epsilon of a plan, noise for an epsilon, rounds within an epsilon: by `dp_accounting`."""

import contextlib
import dataclasses
import functools
import logging
import math
import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from dflax import validation
from dflax.algorithm import Limit
from dflax.privacy.extra import imported
from dflax.privacy.plans import Plan

ACCOUNTANTS = ("rdp", "pld")
PLAN_FIX = "Make one with dflax.privacy.examples_plan, clients_plan or correlated_plan."
# Rounds that a budget is looked for in.
MOST_ROUNDS = 2**24


class LargeDelta(UserWarning):
    """delta is not below one over the number of units: releasing one of them whole would be allowed."""


def epsilon(plan: Plan, delta: float, *, accountant: str = "rdp") -> float:
    """The epsilon of the whole run.

        P[run(D) in S] <= e^epsilon P[run(D') in S] + delta          for all neighbours D, D' and sets S

    Computed by `dp_accounting`, an upper bound. Where the mechanism may do something else with the
    probability f in all (`Plan.failure`), the accountant is asked for `delta - (1 + e^eps) f`.

    Args:
      plan: what is released.
      delta: in (0, 1).
      accountant: "rdp", Rényi differential privacy, quick and for every plan; or "pld", privacy loss
        distributions, tighter, for Poisson sampling and none. Without sampling "rdp" is what a
        zero-concentrated bound of rho = 1 / (2 z^2) a release gives.

    Returns:
      Epsilon; infinity without noise.

    Raises:
      TypeError, ValueError: naming the argument.
      ImportError: dp-accounting is not installed.

    Warns:
      LargeDelta: delta >= 1 / n for n units.

    Examples:
      >>> import dflax as dx
      >>> peers = dx.Population(100_000, participation=dx.participation.bernoulli(0.01))
      >>> plan = dx.privacy.clients_plan(peers, noise_multiplier=1.0, rounds=100)
      >>> round(dx.privacy.epsilon(plan, delta=1e-6), 1)
      1.5

    References:
      Mironov, Rényi Differential Privacy, arXiv 1702.07476; Koskela et al., arXiv 1906.03049 (privacy
      loss distributions); Bun and Steinke, Concentrated Differential Privacy, arXiv 1605.02065.
    """
    _check(plan, delta, accountant)
    if plan.noise_multiplier is None:
        raise ValueError(
            "plan must have a noise_multiplier, got None. Find one with "
            "dflax.privacy.noise_for(plan, epsilon, delta)."
        )
    _warn(plan, delta)
    return _epsilon(plan, delta, accountant)


def noise_for(plan: Plan, epsilon: float, delta: float, *, accountant: str = "rdp") -> float:
    """The least noise multiplier z with which a plan's epsilon is at most the one asked for, to 1e-4.

    Args:
      plan: what is released; its own noise multiplier is not read.
      epsilon: > 0.
      delta: in (0, 1).
      accountant: see `dflax.privacy.epsilon`.

    Returns:
      z > 0.

    Raises:
      TypeError, ValueError: naming the argument; also where the run fails too often for this delta.
      ImportError: dp-accounting is not installed.

    Warns:
      LargeDelta: see `dflax.privacy.epsilon`.

    Examples:
      >>> import dflax as dx
      >>> peers = dx.Population(100_000, participation=dx.participation.bernoulli(0.01))
      >>> plan = dx.privacy.clients_plan(peers, noise_multiplier=None, rounds=100)
      >>> round(dx.privacy.noise_for(plan, epsilon=2.0, delta=1e-6), 1)
      0.9
    """
    _check(plan, delta, accountant)
    validation.real("epsilon", epsilon, low=0.0, low_open=True, scalar=True)
    _warn(plan, delta)
    accounting = imported("dp_accounting")
    left = _left(plan, float(epsilon), float(delta))

    def search(by: str, lowest: float, guess: float) -> float:
        found = accounting.calibrate_dp_mechanism(
            functools.partial(_accountant, plan, by),
            lambda z: dataclasses.replace(plan, noise_multiplier=z).event(),
            float(epsilon),
            left,
            accounting.LowerEndpointAndGuess(lowest, guess),
            tol=1e-4,
        )
        return float(found)

    with _quiet():
        found = search("rdp", 0.05, 1.0)
        # Distributions of little noise are long: they are not asked for without need.
        return search("pld", found / 2, found) if accountant == "pld" else found


def rounds_within(plan: Plan, epsilon: float, delta: float, *, accountant: str = "rdp") -> int:
    """The most rounds of a plan that an epsilon pays for, 0 for none; at most 2^24.

    Args:
      plan: what a round releases; its own number of rounds is not read, except that a matrix of
        correlated noise is one release of all its rounds.
      epsilon: > 0.
      delta: in (0, 1).
      accountant: see `dflax.privacy.epsilon`.

    Returns:
      The number of rounds.

    Raises:
      TypeError, ValueError: naming the argument; no noise.
      ImportError: dp-accounting is not installed.

    Warns:
      LargeDelta: see `dflax.privacy.epsilon`.
    """
    _check(plan, delta, accountant)
    validation.real("epsilon", epsilon, low=0.0, low_open=True, scalar=True)
    _require_noise(plan, epsilon)
    _warn(plan, delta)

    def fits(rounds: int) -> bool:
        tried = dataclasses.replace(plan, rounds=rounds)
        return _epsilon(tried, delta, accountant) <= float(epsilon)

    if plan.sampling == "matrix":
        return plan.rounds if fits(plan.rounds) else 0
    if not fits(1):
        return 0
    low, high = 1, 2
    while high <= MOST_ROUNDS and fits(high):
        low, high = high, 2 * high
    high = min(high, MOST_ROUNDS + 1)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low


def budget(plan: Plan, epsilon: float, delta: float, *, accountant: str = "rdp") -> Limit:
    """The `limit` of `dflax.run` that ends it, with its state, when the next round would cost too much.

        state, history = dx.run(..., rounds=1000, limit=dx.privacy.budget(plan, 3.0, 1e-5))

    Args:
      plan: what a round releases.
      epsilon: > 0, all that may be spent.
      delta: in (0, 1).
      accountant: see `dflax.privacy.epsilon`.

    Returns:
      A `Limit`.

    Raises:
      TypeError, ValueError: naming the argument; no noise.
      ImportError: dp-accounting is not installed.

    Warns:
      LargeDelta: see `dflax.privacy.epsilon`.
    """
    rounds = rounds_within(plan, epsilon, delta, accountant=accountant)
    return Limit(
        rounds,
        f"the budget of epsilon {float(epsilon):g} at delta {float(delta):g} per {plan.unit} pays for "
        f"{rounds} rounds",
    )


def epsilon_after(
    plan: Plan, rounds: Int[np.ndarray, " E"], delta: float, *, accountant: str = "rdp"
) -> Float[np.ndarray, " E"]:
    """Epsilon spent after each of several rounds.

    Beside a `History` that is `epsilon_after(plan, history.evaluated, 1e-5)`.

    Args:
      plan: what a round releases; its own number of rounds is not read.
      rounds: `[E]` numbers of rounds, >= 0, counted from 1 as in a history.
      delta: in (0, 1).
      accountant: see `dflax.privacy.epsilon`.

    Returns:
      `[E]`; 0 before the first round. A matrix of correlated noise is charged as one, from the first
      round on.

    Raises:
      TypeError, ValueError: naming the argument.
      ImportError: dp-accounting is not installed.

    Warns:
      LargeDelta: see `dflax.privacy.epsilon`.
    """
    _check(plan, delta, accountant)
    numbers = validation.array("rounds", rounds, kind="integer", shape=("E",), low=0)
    known: dict[int, float] = {0: 0.0}
    for number in np.unique(numbers).tolist():
        if number and plan.sampling == "matrix":
            known[number] = epsilon(plan, delta, accountant=accountant)
        elif number:
            so_far = dataclasses.replace(plan, rounds=number)
            known[number] = epsilon(so_far, delta, accountant=accountant)
    return np.array([known[number] for number in numbers.tolist()])


def _epsilon(plan: Plan, delta: float, accountant: str) -> float:
    if plan.noise_multiplier == 0:
        return math.inf
    with _quiet():
        accounted = _accountant(plan, accountant).compose(plan.event())
    found = float(accounted.get_epsilon(float(delta)))
    # Epsilon and what is left of delta depend on each other; from below, until they agree.
    for _ in range(60 if plan.failure else 0):
        left = float(delta) - _lost(plan, found)
        if not left > 0:
            return math.inf
        again = float(accounted.get_epsilon(left))
        if again <= found + 1e-9:
            break
        found = again
    else:
        if plan.failure:
            return math.inf
    return found


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without a warning for each Rényi order whose series is too long: it is left out, no more."""

    def tells(record: logging.LogRecord) -> bool:
        return "failed to converge" not in record.getMessage()

    logger = logging.getLogger("absl")
    logger.addFilter(tells)
    try:
        yield
    finally:
        logger.removeFilter(tells)


def _lost(plan: Plan, found: float) -> float:
    """What failures take of delta."""
    return (1 + math.exp(min(found, 700.0))) * plan.failure * plan.rounds


def _left(plan: Plan, epsilon: float, delta: float) -> float:
    left = delta - _lost(plan, epsilon)
    if not left > 0:
        raise ValueError(
            f"plan must fail less often for delta={delta:g} at epsilon={epsilon:g}, got a probability "
            f"of {plan.failure * plan.rounds:g} that samples overflow or rounds are empty. "
            "Give minibatches more places, or cohorts more clients."
        )
    return left


def _accountant(plan: Plan, accountant: str) -> Any:
    accounting = imported("dp_accounting")
    relations = accounting.NeighboringRelation
    relation = {
        "fixed": relations.REPLACE_ONE,
        "tree": relations.REPLACE_SPECIAL,
        "matrix": relations.REPLACE_SPECIAL,
    }.get(plan.sampling, relations.ADD_OR_REMOVE_ONE)
    if accountant == "pld":
        return imported("dp_accounting.pld").PLDAccountant(relation)
    return imported("dp_accounting.rdp").RdpAccountant(neighboring_relation=relation)


def _check(plan: Any, delta: Any, accountant: Any) -> None:
    validation.instance("plan", plan, Plan, PLAN_FIX)
    validation.real("delta", delta, low=0.0, high=1.0, low_open=True, high_open=True, scalar=True)
    validation.choice("accountant", accountant, ACCOUNTANTS)
    if accountant == "pld" and plan.sampling in ("fixed", "tree"):
        raise ValueError(
            "accountant must be 'rdp' for cohorts of a fixed size and for trees, which privacy loss "
            f"distributions do not cover, got {accountant!r}."
        )


def _require_noise(plan: Plan, epsilon: float) -> None:
    if not plan.noise_multiplier:
        raise ValueError(
            f"plan must have a noise_multiplier above 0 for an epsilon of {float(epsilon):g}, got "
            f"{plan.noise_multiplier}. Without noise no epsilon is finite."
        )


def _warn(plan: Plan, delta: float) -> None:
    if float(delta) * plan.population >= 1:
        warnings.warn(
            f"delta={float(delta):g} is not below 1 / {plan.population}, one over the number of "
            f"{plan.unit}s: publishing one of them as it is would count as private. Take a smaller "
            "delta.",
            LargeDelta,
            stacklevel=3,
        )
