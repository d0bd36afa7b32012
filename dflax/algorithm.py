"""The protocol that every system follows, and rounds as one scan."""

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int, Key, PyTree

Params = PyTree[Array]
State = Any
Metrics = dict[str, Any]


class Algorithm(NamedTuple):
    """A system as two pure functions, in the manner of `optax.GradientTransformation`.

    Hyper-parameters are arguments of the factory that builds the tuple. Federated optimisers, gossip
    methods, event-driven servers and simulators all have this shape, so one loop, one checkpointer,
    one benchmark and one sweep serve them all.

    Attributes:
      init: `init(key, params) -> state`. `key` is a typed key; `params` is one model's pytree (or
        whatever the system starts from).
      step: `step(state, round) -> (state, metrics)`. `round` is what the source of the run draws: a
        `Round` of a `Federation`, a row of an event table. `metrics` is a dict of arrays whose
        structure is the same in every round.
    """

    init: Callable[..., State]
    step: Callable[..., tuple[State, Metrics]]


class FederatedState(NamedTuple):
    """What every federated algorithm carries from one round to the next.

    This one rule is what sharding, cohort gather and scatter, checkpoints and evaluation rest on.

    Attributes:
      round: `[]` int32, rounds done so far.
      server: the algorithm's NamedTuple of what exists once; replicated over devices.
      clients: the algorithm's NamedTuple of what exists per client; every leaf has the leading axis
        n (all clients) and is sharded over the mesh axis "clients".
    """

    round: Int[Array, ""]
    server: Any
    clients: Any


class Source(Protocol):
    """Anything that hands out rounds: a pytree with a pure `draw`, so that `step` after `draw` scans."""

    def draw(self, key: Key[Array, ""], index: Int[Array, ""]) -> Any:
        """The round number `index` of the run whose key is `key`."""
        ...


class Events(NamedTuple):
    """A source that replays a table drawn beforehand, one row a step (asynchronous systems).

    Attributes:
      table: pytree of arrays `[T, ...]`: times, kinds, participants, delays, ... Row `t` is handed to
        step `t`; the table is data of the compiled program, not a constant in it.
    """

    table: PyTree[Array]

    def draw(self, key: Key[Array, ""], index: Int[Array, ""]) -> Any:
        """Row `index` of the table and the step's own key, as `(row, key)`."""
        row = jax.tree.map(lambda column: column[index], self.table)
        return row, jax.random.fold_in(key, index)


def rollout(
    algorithm: Algorithm,
    state: State,
    source: Source,
    key: Key[Array, ""],
    rounds: int,
    start: int | Int[Array, ""] = 0,
) -> tuple[State, Metrics]:
    """`rounds` rounds as one scan: pure, differentiable, and ready for `jax.jit` and `jax.vmap`.

    Computes, for t = start, ..., start + rounds - 1:
    `state, metrics[t] = algorithm.step(state, source.draw(key, t))`.

    Args:
      algorithm: what is run.
      state: from `algorithm.init` or an earlier rollout.
      source: hands out the rounds, for example a `Federation`.
      key: the run's typed key; round t uses only `source.draw(key, t)`.
      rounds: number of rounds, static, >= 0.
      start: number of the first round; pass `state.round` to go on after an earlier rollout.

    Returns:
      The state after the last round, and the metrics with a leading axis `[rounds]`.
    """

    def one_round(state: State, index: Int[Array, ""]) -> tuple[State, Metrics]:
        return algorithm.step(state, source.draw(key, index))

    return jax.lax.scan(one_round, state, start + jnp.arange(rounds, dtype=jnp.int32))
