"""Many rounds, few rows: stretches of rounds as one step, what they measure reduced in the program."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int, Key, PyTree

from dflax import validation
from dflax.algorithm import (
    Algorithm,
    FederatedState,
    Metrics,
    Source,
    State,
    rollout,
    verify_algorithm,
    verify_source,
)
from dflax.participation import Count

Reduction = Callable[..., Array]


class Stretch(NamedTuple):
    """Some rounds in a row, yet to be drawn.

    Attributes:
      source: draws them.
      key: the run's typed key.
      first: `[]` int32, number of the first of them.
      every: how many; static.
    """

    source: Any
    key: Key[Array, ""]
    first: Int[Array, ""]
    every: Count


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Stretches:
    """The rounds of a source, `every` of them a step, for a `condensed` algorithm.

    Step t gets rounds t every, ..., (t + 1) every - 1 of the same run, drawn one at a time.

    Attributes:
      source: hands out the single rounds, for example `Events` or a `Federation`.
      every: rounds a step, >= 1 (static).

    Raises:
      TypeError, ValueError: naming the argument.
    """

    source: Any
    every: int = dataclasses.field(default=1000, metadata={"static": True})

    @property
    def rows(self) -> int | None:
        """How many steps there are; None where the source has no end."""
        rows = getattr(self.source, "rows", None)
        return None if rows is None else rows // self.every

    def draw(self, key: Key[Array, ""], index: Int[Array, ""]) -> Stretch:
        """The stretch number `index`."""
        first = jnp.asarray(index, jnp.int32) * self.every
        return Stretch(self.source, key, first, Count(self.every))


def stretches(source: Source, every: int = 1000) -> Stretches:
    """`Stretches`, with its arguments checked."""
    verify_source(source)
    validation.integer("every", every, low=1)
    return Stretches(source, int(every))


def condensed(
    algorithm: Algorithm, reduce: Mapping[str, Reduction] | Reduction = jnp.nanmean
) -> Algorithm:
    """The algorithm with a stretch of rounds for one step: a run of a million rounds, a thousand rows.

        for t = first, ..., first + every - 1:   state, metrics_t = algorithm.step(state, draw(key, t))
        metrics = reduce(metrics_first, ..., metrics_(first + every - 1))

    The state after n steps is that of n `every` rounds of the same run, bit for bit. Only its number
    `state.round` counts steps, so that runs go on, evaluate and resume as others do. Memory holds the
    metrics of one stretch and one row for each of the others. Stretches of stretches are allowed.

    Args:
      algorithm: whose rounds they are.
      reduce: of each metric its `values [every, ...]` to one value, `reduce(values, axis=0)`:
        `jnp.nanmean`, the default, `jnp.nansum`, `jnp.nanmax`, or a function of your own such as
        `lambda values, axis: values[-1]`. JAX's three leave out the NaN of rounds that measured
        nothing, and are NaN if all did (the sum: 0); `jnp.mean` passes a NaN on. One for all, or a
        dict of them by metric; who is not named has its mean.

    Returns:
      An `Algorithm` whose source is `dflax.stretches(source, every)`.

    Raises:
      TypeError, ValueError: naming the argument; and, while a step is traced, a name in `reduce` of
        nothing that is measured.
    """
    verify_algorithm("algorithm", algorithm)
    by_name = reduce if isinstance(reduce, Mapping) else {}
    for name, given in by_name.items():
        validation.function(f"reduce[{name!r}]", given, "For example jnp.nansum.")
    if not isinstance(reduce, Mapping):
        validation.function("reduce", reduce, "For example jnp.nanmean, or a dict of such by name.")
    others = jnp.nanmean if isinstance(reduce, Mapping) else reduce

    def step(state: State, stretch: Stretch) -> tuple[State, Metrics]:
        validation.instance(
            "the round", stretch, Stretch, "Run it on dflax.stretches(source, every)."
        )
        numbered = isinstance(state, FederatedState)
        begin = state._replace(round=state.round * stretch.every) if numbered else state
        end, metrics = rollout(
            algorithm, begin, stretch.source, stretch.key, int(stretch.every), stretch.first
        )
        unknown = sorted(set(by_name) - set(metrics))
        if unknown:
            raise ValueError(
                f"reduce must name metrics of the algorithm, {sorted(metrics)}, got {unknown}."
            )

        def reduced(name: str, values: PyTree[Array]) -> PyTree[Array]:
            rule = by_name.get(name, others)
            return jax.tree.map(lambda column: rule(column, axis=0), values)

        if numbered:
            end = end._replace(round=state.round + 1)
        return end, {name: reduced(name, values) for name, values in metrics.items()}

    return Algorithm(algorithm.init, step)
