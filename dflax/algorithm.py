"""The protocol that every system follows, and rounds as one scan."""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol, TypeAlias

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int, Key, PyTree

from dflax import validation
from dflax.blame import blamed

Params: TypeAlias = PyTree[Array]
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


class Limit(NamedTuple):
    """Where a run ends, however many rounds are asked for.

    Attributes:
      rounds: number of the last round that may be done, counted from 1.
      reason: why, for the warning: "the budget of privacy is spent".
    """

    rounds: int
    reason: str


class Source(Protocol):
    """Anything that hands out rounds: a pytree with a pure `draw`, so that `step` after `draw` scans."""

    def draw(self, key: Key[Array, ""], index: Int[Array, ""]) -> Any:
        """The round number `index` of the run whose key is `key`."""
        ...


@jax.tree_util.register_pytree_with_keys_class
@dataclasses.dataclass(frozen=True)
class Events:
    """A source that replays a table drawn beforehand, one row a step (asynchronous systems).

    Attributes:
      table: pytree of arrays `[T, ...]`: times, kinds, participants, delays, ... Row `t` is handed to
        step `t`; the table is data of the compiled program, not a constant in it.

    Raises:
      ValueError: no columns, a scalar column, or columns of different lengths.
      TypeError: a column that holds no numbers.
    """

    table: PyTree[Array]

    def __post_init__(self):
        validation.leading_axis("table", self.table)
        validation.arrays("table", self.table)

    @property
    def rows(self) -> int:
        """T, how many steps the table holds."""
        return jax.tree.leaves(self.table)[0].shape[0]

    def draw(self, key: Key[Array, ""], index: Int[Array, ""]) -> Any:
        """Row `index` of the table and the step's own key, as `(row, key)`."""
        row = jax.tree.map(lambda column: column[index], self.table)
        return row, jax.random.fold_in(key, index)

    def tree_flatten_with_keys(self) -> tuple[Any, None]:
        """The table as the only child."""
        return ((jax.tree_util.GetAttrKey("table"), self.table),), None

    @classmethod
    def tree_unflatten(cls, static: None, children: Any) -> "Events":
        """Rebuilds the source without checking again: its leaves may be anything."""
        events = object.__new__(cls)
        object.__setattr__(events, "table", children[0])
        return events


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

    Raises:
      TypeError, ValueError: naming the argument; an `Events` table with too few rows.

    Examples:
      >>> import jax, jax.numpy as jnp, optax, dflax as dx
      >>> problem = dx.data.quadratics(jax.random.key(0), clients=4, dimension=3, condition=2.0)
      >>> federation = dx.Federation(problem.data, problem.partition, batch_size=1, local_steps=5)
      >>> algorithm = dx.server.fedavg(dx.data.quadratic_loss, optax.sgd(0.5))
      >>> state = algorithm.init(jax.random.key(0), jnp.zeros(3))
      >>> key = jax.random.key(1)
      >>> rounds = jax.jit(lambda state, source: dx.rollout(algorithm, state, source, key, 3))
      >>> state, metrics = rounds(state, federation)
      >>> int(state.round), metrics["loss"].shape
      (3, (3,))
    """
    verify_algorithm("algorithm", algorithm)
    validation.integer("rounds", rounds, low=0)
    validation.typed_key("key", key)
    first = validation.array(
        "start", start, kind="integer", shape=(), low=0, high=validation.LARGEST_COUNT
    )
    verify_source(source, None if validation.is_traced(start) else int(first) + rounds)
    validation.arrays("state", state, "Make one with algorithm.init(key, params).", some=True)

    def one_round(state: State, index: Int[Array, ""]) -> tuple[State, Metrics]:
        return stepped(algorithm, state, source.draw(key, index))

    indices = start + jnp.arange(rounds, dtype=jnp.int32)
    return blamed("algorithm.step", jax.lax.scan, one_round, state, indices)


def stepped(algorithm: Algorithm, state: State, round: Any) -> tuple[State, Metrics]:
    """`algorithm.step(state, round)`, its metrics joined by what was counted while the round was drawn.

    Whatever runs rounds runs them by this.
    """
    returned = algorithm.step(state, round)
    counted = getattr(round, "counted", {})
    # What is no pair of a state and metrics is for whoever checks it.
    if not counted or len(returned) != 2 or not isinstance(returned[1], dict):
        return returned
    after, metrics = returned
    twice = metrics.keys() & counted.keys()
    if twice:
        raise ValueError(
            f"metrics must have names of their own, got {min(twice)!r} from both algorithm.step and "
            "the round that was drawn. Rename that of algorithm.step."
        )
    return after, metrics | counted


def verify_algorithm(name: str, value: Any) -> None:
    """Refuse what is no `Algorithm`."""
    fix = "Pass what a factory such as dflax.server.fedavg returns."
    validation.instance(name, value, Algorithm, fix)


def verify_source(source: Any, stop: int | None = None, name: str = "source") -> None:
    """Refuse what draws no rounds, or a source with `rows` that ends before round `stop`.

    Args:
      source: of a run.
      stop: number of the last round, counted from 1; None when it is not known yet.
      name: of the argument, for the message.

    Raises:
      TypeError: the source has no method `draw`.
      ValueError: it has `rows`, as `Events` do, and fewer than `stop`.
    """
    if isinstance(source, type) or not callable(getattr(source, "draw", None)):
        raise TypeError(
            f"{name} must have a method draw(key, index), got {type(source).__name__}. Pass a "
            "dflax.Federation, made of the data and the partition, or dflax.Events."
        )
    rows = getattr(source, "rows", None)
    if rows is not None and stop is not None and stop > rows:
        raise ValueError(
            f"rounds must not go beyond the {rows} rows of the source's table, got a last round "
            f"{stop}. Ask for fewer rounds, or draw a longer table."
        )
