"""What the host's loop looks at between chunks: whether to stop, and whether this is the best state."""

import warnings
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from dflax import validation
from dflax.algorithm import State
from dflax.running.history import Best, Rows
from dflax.running.stop import Measured, Objective, Rule

A_RULE = 'For example dflax.stop.patience(dflax.stop.highest("accuracy"), 5).'
A_WAY = 'Say which way is better: dflax.stop.highest("accuracy") or dflax.stop.lowest("loss").'


class Watch:
    """A rule and an objective, and how far both have come.

    Args:
      rule: ends the run; None for none.
      objective: by which the best state is kept; None keeps none.
      every: rounds between looks; must be given with either.

    Raises:
      TypeError, ValueError: naming the argument of `run`.
    """

    def __init__(self, rule: Rule | None, objective: Objective | None, every: int | None):
        if rule is not None:
            validation.instance("stop", rule, Rule, A_RULE)
        if objective is not None:
            validation.instance("keep_best", objective, Objective, A_WAY)
        for name, value in (("stop", rule), ("keep_best", objective)):
            if value is not None and every is None:
                raise ValueError(
                    f"{name} needs every, got every=None. Say after how many rounds to look, for "
                    "example every=10."
                )
        self._rule, self._objective, self._every = rule, objective, every or 1
        self._memory = None if rule is None else rule.init
        self.reason: str | None = None
        self.best: Best | None = None

    @property
    def by(self) -> str:
        """By what the best state is chosen, in words; empty where none is kept."""
        return "" if self._objective is None else str(self._objective)

    @property
    def active(self) -> bool:
        """Whether there is anything to look for."""
        return self._rule is not None or self._objective is not None

    def verify(self, row: PyTree[Any], evaluation: PyTree[Any]) -> None:
        """Refuse names of what is not measured, and of what is no single real number.

        Args:
          row: shapes of a round's metrics.
          evaluation: shapes of an evaluation.
        """
        named = _shapes(row) | _shapes(evaluation)
        read = () if self._rule is None else self._rule.objectives
        kept = () if self._objective is None else (self._objective,)
        for argument, objectives in (("stop", read), ("keep_best", kept)):
            for objective in objectives:
                shape = named.get(objective.name)
                if shape is None:
                    raise ValueError(
                        f"{argument} must name what is measured, one of {sorted(named)}, got "
                        f"{objective.name!r}. Evaluations are what evaluate returns."
                    )
                if shape != ():
                    raise ValueError(
                        f"{argument} must name a single number, got {objective.name!r} of shape "
                        f"{list(shape)}. Have evaluate return its mean."
                    )

    def cut(self, done: int, until: int) -> int:
        """`until`, or an earlier round after `done` at which there is something to look at."""
        return min(until, (done // self._every + 1) * self._every) if self.active else until

    def replay(self, rows: Rows, evaluations: Rows, best: Best | None) -> None:
        """Takes up what a stored run has measured, and the best state that was stored with it."""
        self.best = best
        for place, number in enumerate(rows.numbers):
            if self._rule is not None and self.reason is None and number % self._every == 0:
                self._judge(_measured(rows, evaluations, place))
                if self.reason is not None and number < rows.numbers[-1]:
                    self.reason += f" (in round {number}; the run had gone on without this rule)"
        if self._objective is not None and best is None and self._had(rows, evaluations):
            warnings.warn(
                f"keep_best finds no best state by {self.by} in the checkpoint: the run was not asked "
                f"for it until round {int(rows.numbers[-1])}. The best of later states is kept.",
                RuntimeWarning,
                stacklevel=3,
            )

    def look(self, rows: Rows, evaluations: Rows, state: State, *, last: bool) -> None:
        """After a chunk: judges what was measured in its last round, and keeps the state if best.

        Args:
          rows: of the chunk.
          evaluations: of the chunk.
          state: after it.
          last: whether no further round is asked for; the best state may be the last one.
        """
        scheduled = int(rows.numbers[-1]) % self._every == 0
        if not self.active or not (scheduled or last):
            return
        measured = _measured(rows, evaluations, len(rows.numbers) - 1)
        if self._rule is not None and scheduled:
            self._judge(measured)
        if self._objective is not None:
            value = self._objective.read(measured)
            if self._objective.better(value, None if self.best is None else self.best.value):
                # The old one goes first: there are never three states.
                self.best = None
                self.best = Best(measured.round, value, _copied(state))

    def _had(self, rows: Rows, evaluations: Rows) -> bool:
        """Whether there was a state that could have been the best."""
        assert self._objective is not None
        return any(
            self._objective.better(self._objective.read(_measured(rows, evaluations, place)), None)
            for place, number in enumerate(rows.numbers)
            if number % self._every == 0
        )

    def _judge(self, measured: Measured) -> None:
        assert self._rule is not None
        self._memory, reason = self._rule.step(self._memory, measured)
        if reason is not None and not isinstance(reason, str):
            raise TypeError(
                f"stop must give a reason in words or None, got {validation.shown(reason)}. A rule's "
                "step returns (memory, reason)."
            )
        self.reason = reason


def _measured(rows: Rows, evaluations: Rows, place: int) -> Measured:
    """What there is of the row number `place`."""
    number = rows.numbers[place]
    (found,) = np.nonzero(evaluations.numbers == number)
    return Measured(
        int(number),
        jax.tree.map(lambda leaf: leaf[place], rows.values),
        jax.tree.map(lambda leaf: leaf[found[0]], evaluations.values) if len(found) else {},
    )


@jax.jit
def _copied(state: State) -> State:
    """The same in other memory, on the same devices: the original is donated to the next rounds."""
    return jax.tree.map(jnp.copy, state)


def _shapes(tree: PyTree[Any]) -> dict[str, tuple[int, ...]]:
    named = jax.tree_util.tree_leaves_with_path(tree)
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): leaf.shape for path, leaf in named
    }
