"""When a run has done enough: rules on what it measures, looked at after every evaluation.

A rule is a fold over what was measured: `step(memory, measured) -> (memory, reason)`. It sees numbers
on the host and nothing else, so a run that is taken up again folds its stored history anew and ends
after the same round as one that was never interrupted. A rule of one's own must be as pure: no clock,
no file, no random number.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import PyTree

from dflax import validation
from dflax.running.sinks import flatten


class Measured(NamedTuple):
    """What a rule looks at.

    Attributes:
      round: the number of the round, counted from 1.
      metrics: of the algorithm in this round, leaves as NumPy values.
      evaluation: what `evaluate` measured after it; empty in a run without.
    """

    round: int
    metrics: PyTree[np.ndarray]
    evaluation: PyTree[np.ndarray]


class Objective(NamedTuple):
    """A number that is measured, and which way it gets better; made by `highest` or `lowest`.

    Attributes:
      name: of an evaluation, or else of a metric of the round; nested names are joined by "/".
      up: whether larger values are better.
    """

    name: str
    up: bool

    def read(self, measured: Measured) -> float:
        """The number."""
        for values in (measured.evaluation, measured.metrics):
            named = flatten(values)
            if self.name in named:
                return float(named[self.name])
        raise ValueError(f"name must be one of what is measured, got {self.name!r}.")

    def better(self, value: float, than: float | None) -> bool:
        """Whether a value is a number, and strictly better than another one, or the first."""
        if not np.isfinite(value):
            return False
        return than is None or (value > than if self.up else value < than)

    def __str__(self) -> str:
        return f"{'highest' if self.up else 'lowest'} {self.name}"


class Rule(NamedTuple):
    """When a run stops.

    Attributes:
      init: the memory before the first evaluation.
      step: `(memory, measured) -> (memory, reason)`; a reason, in words, ends the run, None does not.
      objectives: what it reads, so that a run without such a number is refused before it begins.
    """

    init: Any
    step: Callable[[Any, Measured], tuple[Any, str | None]]
    objectives: tuple[Objective, ...] = ()


def highest(name: str) -> Objective:
    """A number that gets better as it rises, such as an accuracy.

    Args:
      name: of an evaluation; where there is none of this name, of a metric of the round.

    Raises:
      TypeError, ValueError: `name` is no name.
    """
    return _objective(name, up=True)


def lowest(name: str) -> Objective:
    """A number that gets better as it falls, such as a loss; `name` as in `highest`.

    Raises:
      TypeError, ValueError: `name` is no name.
    """
    return _objective(name, up=False)


def patience(objective: Objective, evaluations: int, *, least: float = 0.0) -> Rule:
    """Stops once so many evaluations in a row were no better than the best before them.

    Better is more than `least` away from it, to the good side. NaN is never better.

    Args:
      objective: `highest("accuracy")` or `lowest("loss")`.
      evaluations: in a row, >= 1.
      least: >= 0, the smallest difference that counts.

    Returns:
      A `Rule`.

    Raises:
      TypeError, ValueError: naming the argument.
    """
    _verify_objective("objective", objective)
    validation.integer("evaluations", evaluations, low=1)
    validation.real("least", least, low=0.0, scalar=True)
    margin = float(least) if objective.up else -float(least)

    def step(memory: Any, measured: Measured) -> tuple[Any, str | None]:
        best, at, since = memory
        value = objective.read(measured)
        if objective.better(value, None if best is None else best + margin):
            return (value, measured.round, 0), None
        since += 1
        if since < evaluations:
            return (best, at, since), None
        way = "risen above" if objective.up else "fallen below"
        reached = "been a number" if best is None else f"{way} {best:.6g}, of round {at},"
        return (best, at, since), f"{objective.name} has not {reached} in {evaluations} evaluations"

    return Rule((None, 0, 0), step, (objective,))


def target(objective: Objective, value: float) -> Rule:
    """Stops once a number is as good as a value, or better.

    Args:
      objective: `highest("accuracy")` or `lowest("loss")`.
      value: finite.

    Returns:
      A `Rule`.

    Raises:
      TypeError, ValueError: naming the argument.
    """
    _verify_objective("objective", objective)
    validation.real("value", value, scalar=True)
    goal = float(value)

    def step(memory: Any, measured: Measured) -> tuple[Any, str | None]:
        found = objective.read(measured)
        reached = found == goal or objective.better(found, goal)
        return memory, f"{objective.name} reached {found:.6g}" if reached else None

    return Rule((), step, (objective,))


def when(predicate: Callable[[Measured], bool], reason: str = "its condition was met") -> Rule:
    """Stops once a function of one's own says so.

    Args:
      predicate: `measured -> bool`, see `Measured`; a pure function, or a resumed run ends elsewhere.
      reason: for `history.stopped`.

    Returns:
      A `Rule`.

    Raises:
      TypeError, ValueError: naming the argument.
    """
    validation.function("predicate", predicate, "It gets what was measured.", takes=1)
    validation.text("reason", reason)
    if not reason:
        raise ValueError("reason must be some words, got an empty string. Say why the run ends.")

    def step(memory: Any, measured: Measured) -> tuple[Any, str | None]:
        answer = predicate(measured)
        if isinstance(answer, (np.ndarray, jax.Array)) and answer.shape == ():
            answer = answer.item()
        if not isinstance(answer, (bool, np.bool_)):
            raise TypeError(
                f"predicate must return True or False, got {validation.shown(answer)}. Of several "
                "numbers take .all() or .any()."
            )
        return memory, reason if answer else None

    return Rule((), step)


def either(*rules: Rule) -> Rule:
    """Stops with the first of several rules.

    Raises:
      TypeError, ValueError: no rule, or something else among them.
    """
    if not rules:
        raise ValueError("rules must be at least one rule, got none.")
    for place, rule in enumerate(rules):
        _verify_rule(f"rules[{place}]", rule)

    def step(memories: Any, measured: Measured) -> tuple[Any, str | None]:
        stepped = [
            rule.step(memory, measured) for rule, memory in zip(rules, memories, strict=True)
        ]
        reasons = [reason for _, reason in stepped if reason is not None]
        return tuple(memory for memory, _ in stepped), reasons[0] if reasons else None

    objectives = tuple(objective for rule in rules for objective in rule.objectives)
    return Rule(tuple(rule.init for rule in rules), step, objectives)


def _verify_rule(name: str, rule: Any) -> None:
    """Refuse what is no `Rule`."""
    fix = 'For example dflax.stop.patience(dflax.stop.highest("accuracy"), 5).'
    validation.instance(name, rule, Rule, fix)


def _verify_objective(name: str, objective: Any) -> None:
    """Refuse what is no `Objective`, such as a bare name: it does not say which way is better."""
    fix = 'Say which way is better: dflax.stop.highest("accuracy") or dflax.stop.lowest("loss").'
    validation.instance(name, objective, Objective, fix)


def _objective(name: str, up: bool) -> Objective:
    validation.text("name", name)
    if not name:
        raise ValueError("name must be that of a metric or an evaluation, got an empty string.")
    return Objective(name, up)


__all__ = [
    "Measured",
    "Objective",
    "Rule",
    "either",
    "highest",
    "lowest",
    "patience",
    "target",
    "when",
]


def __dir__() -> list[str]:
    return __all__
