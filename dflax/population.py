"""A population: clients, who takes part, and the rounds drawn from both, with or without data."""

import functools
from typing import Any, NamedTuple, Self

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial
from jaxtyping import Array, Float, Int, Key

from dflax import counter, validation
from dflax.algorithm import Metrics
from dflax.clients import everywhere
from dflax.data.dataset import AnyArray
from dflax.participation import Cohort, Count, Participation, everyone


@jax.tree_util.register_static
class NoData:
    """What stands where a round has no data: whoever reads it is told so, by a `TypeError`."""

    def __getattr__(self, name: str) -> Any:
        # What Python and JAX ask of any object has its usual answer.
        if name.startswith("_"):
            raise AttributeError(name)
        return self[name]

    def __getitem__(self, place: Any) -> Any:
        raise TypeError(
            "the round must have data, which this method's local work reads, got one of a "
            "dflax.Population, whose clients own none. Use a dflax.Federation."
        )

    def __len__(self) -> int:
        return self[0]

    def __eq__(self, other: object) -> bool:
        return isinstance(other, NoData)

    def __hash__(self) -> int:
        return hash(NoData)


NO_DATA: Any = NoData()


class Assignment(NamedTuple):
    """What one client has to do in a round; stacked over the cohort, every leaf leads with m.

    Attributes:
      minibatches: `[K, B]` int32 indices into the data set; a `NoData` in a round without.
      local_steps: `[]` int32, how many of the K steps the client manages.
      key: the client's own typed key of this round.
      client: `[]` int32, the client's number in [0, n), so that an attack, a rate or a fault can be
        said of a client; None in work that is made up without a federation.
    """

    minibatches: Int[Array, "K B"]
    local_steps: Int[Array, ""]
    key: Key[Array, ""]
    client: Int[Array, ""] | None = None


class Round(NamedTuple):
    """What a population hands to a step.

    Attributes:
      key: the round's typed key, for everything random outside of the clients.
      number: `[]` int32, which round of the run this is, from 0.
      cohort: `[m]` int32 ids of the invited clients, distinct; None for all n clients in order.
      weights: `[m]` aggregation weights, float32, or float64 of a population made under
        `jax.enable_x64`; 0 for a client that was invited but did not report. Where all are 0 nobody
        reports, and what is a mean over clients in the round's metrics is NaN.
      reports: `[m]` 1 for clients that report, 0 for the others; None when every one of them does.
      assignments: the clients' work, leaves `[m, ...]`.
      data: the data set that the assignments' indices point into; a `NoData` in a round without.
      partition: who owns what, for methods that read more of a client than its assignment; a `NoData`
        in a round without data.
      clients: n, the number of all clients; static.
      largest: the largest client's number of examples, 0 without data; static.
      event: what the participation says of the round beside who takes part, see `Cohort.event`.
      counted: metrics of the draw itself, such as examples that had no place; runs join them to those
        of the step. {} for none.
    """

    key: Key[Array, ""]
    number: Int[Array, ""]
    cohort: Int[Array, " m"] | None
    weights: Float[Array, " m"]
    reports: Float[Array, " m"] | None
    assignments: Assignment
    data: Any
    partition: Any
    clients: Count
    largest: Count
    event: Any = None
    counted: Metrics = {}  # noqa: RUF012  # a default that nobody writes to

    @property
    def members(self) -> Int[Array, " m"]:
        """The numbers of the invited clients, `[m]` int32, also where they are all n in order."""
        if self.cohort is None:
            return jnp.arange(int(self.clients), dtype=jnp.int32)
        return self.cohort


@jax.tree_util.register_pytree_with_keys_class
class Population:
    """Clients without data, and the pure function that draws a round of them.

    The source of systems whose clients make their own experience (reinforcement learning, simulators,
    peers). `Federation` is a population whose clients own examples. Both are pytrees: hand them to
    compiled programs as arguments.

    Args:
      clients: n >= 1.
      participation: who takes part, see `dflax.participation`; default all.
      weights: `[n]` aggregation weights, >= 0; default 1 for everyone.
      local_steps: K >= 1 local steps per round; or `[n]`, each client's own, of which K is the largest.

    Raises:
      ValueError, TypeError: naming the argument, before anything is compiled.

    Examples:
      >>> import jax, dflax as dx
      >>> peers = dx.Population(6, participation=dx.participation.uniform(2), local_steps=3)
      >>> round = peers.draw(jax.random.key(0), 0)
      >>> round.cohort.shape, round.weights.tolist(), round.assignments.local_steps.tolist()
      ((2,), [1.0, 1.0], [3, 3])
    """

    # What a federation has beside.
    data: Any = NO_DATA
    partition: Any = NO_DATA
    strides: Any = None
    batch_size = 0
    replacement = False
    largest = 0

    def __init__(
        self,
        clients: int,
        *,
        participation: Participation | None = None,
        weights: Float[AnyArray, " n"] | None = None,
        local_steps: int | Int[AnyArray, " n"] = 1,
    ):
        validation.integer("clients", clients, low=1)
        if participation is not None:
            fix = "Use one of dflax.participation, such as uniform(10)."
            validation.function("participation", participation, fix, takes=3)
        shape = (clients,) if np.ndim(local_steps) else ()
        if not shape:
            validation.integer("local_steps", local_steps, low=1)
        steps = validation.array("local_steps", local_steps, kind="integer", low=1, shape=shape)
        given = jnp.ones(clients) if weights is None else weights
        validation.real("weights", given, low=0.0)
        validation.leading_axis("weights", given, clients)
        if np.ndim(given) != 1:
            raise ValueError(
                f"weights must have shape ({clients},), one number per client, got {np.shape(given)}."
            )
        if not validation.is_traced(given) and float(np.sum(given)) <= 0.0:
            raise ValueError("weights must be positive for at least one client, got zeros only.")

        self.clients = int(clients)
        participation = everyone() if participation is None else participation
        # A plain function is no pytree; wrapped, it becomes part of the structure.
        plain = jax.tree_util.all_leaves([participation])
        self.participation = Partial(participation) if plain else participation
        self.weights = jnp.asarray(given, float)
        self.weighted = weights is not None
        self.steps = jnp.broadcast_to(jnp.asarray(steps, jnp.int32), (clients,))
        self.local_steps = int(steps.max())
        # Refuses a cohort larger than the population, and tells m.
        drawn = jax.eval_shape(self.draw, jax.random.key(0), jnp.int32(0))
        self.cohort_size = drawn.weights.shape[0]
        if self.cohort_size == 0:
            raise ValueError("participation must invite at least one client, got a cohort of 0.")

    def draw(self, key: Key[Array, ""], index: Int[Array, ""]) -> Round:
        """Round number `index` of the run with this key: a pure function, ready to be scanned.

        Args:
          key: the run's typed key.
          index: `[]` int32 number of the round, >= 0.

        Returns:
          A `Round` of m clients; of a federation with K minibatches of B indices each.
        """
        validation.typed_key("key", key)
        number = jnp.asarray(index, jnp.int32)
        # The examples stay outside: compiled programs copy what they hand back.
        arrays = (self.partition, self.participation, self.weights, self.steps, self.strides)
        counts = (self.clients, self.local_steps, self.batch_size, self.replacement)
        step_key, cohort, weights, assignments, counted = _drawn(*arrays, key, number, counts)
        return Round(
            key=step_key,
            number=number,
            cohort=cohort.clients,
            weights=weights,
            reports=cohort.reports,
            assignments=assignments,
            data=self.data,
            partition=self.partition,
            clients=Count(self.clients),
            largest=Count(self.largest),
            event=cohort.event,
            counted=counted,
        )

    def replace(self, **changes: Any) -> Self:
        """The same with some of its arguments changed, and all checks made again.

        What is not named stays as it is; arrays are shared, not copied. Of a federation, weights that
        were not given follow the sizes of a new partition, and so do the steps of `local_epochs`; a
        new `local_steps` ends `local_epochs`, and the other way round.

        Args:
          **changes: arguments by name, for example `participation=other`.

        Raises:
          TypeError: a name that is no argument.
          ValueError, TypeError: as the class itself.
        """
        arguments = self._arguments(changes)
        for name, value in changes.items():
            if name not in arguments:
                raise TypeError(
                    f"{name} is no argument of {type(self).__name__}, got "
                    f"{name}={validation.shown(value)}. Allowed are {', '.join(arguments)}."
                )
        return type(self)(**(arguments | changes))

    def _arguments(self, changes: dict[str, Any]) -> dict[str, Any]:
        """The arguments that this was made with, as far as the changes leave them in force."""
        steps = self.steps if np.ptp(self.steps) else self.local_steps
        return {
            "clients": self.clients,
            "participation": self.participation,
            "weights": self.weights if self.weighted else None,
            "local_steps": steps,
        }

    def __repr__(self) -> str:
        return (
            f"Population(clients={self.clients}, cohort={self.cohort_size}, "
            f"local_steps={self.local_steps})"
        )

    _arrays: tuple[str, ...] = ("participation", "weights", "steps")
    _static: tuple[str, ...] = ("clients", "local_steps", "weighted", "cohort_size")

    def tree_flatten_with_keys(self) -> tuple[Any, Any]:
        """Arrays as children, counts as static structure."""
        children = [(jax.tree_util.GetAttrKey(n), getattr(self, n)) for n in self._arrays]
        return children, tuple(getattr(self, n) for n in self._static)

    @classmethod
    def tree_unflatten(cls, static: Any, children: Any) -> Self:
        """Rebuilds the source without checking again: its leaves may be traced."""
        source = object.__new__(cls)
        for name, value in (*zip(cls._arrays, children), *zip(cls._static, static)):  # noqa: B905
            setattr(source, name, value)
        return source


@functools.partial(jax.jit, static_argnames="counts", inline=True)
def _drawn(
    partition: Any,
    participation: Participation,
    weights: Float[Array, " n"],
    steps: Int[Array, " n"],
    strides: Any,
    key: Key[Array, ""],
    index: Int[Array, ""],
    counts: tuple[int, int, int, bool],
) -> tuple[Key[Array, ""], Cohort, Float[Array, " m"], Assignment, Metrics]:
    """What is random in a round, as one program: a draw on its own would else be some hundred.

    Returns:
      The round's key, who takes part, their weights, their work, and what the draw counted.
    """
    clients, local_steps, batch_size, replacement = counts
    # One call of the generator for all of the round's keys.
    numbers = 4 * index.astype(jnp.uint32) + jnp.arange(4, dtype=jnp.uint32)
    fold = jax.vmap(jax.random.fold_in, in_axes=(None, 0))
    cohort_key, clients_key, batch_key, step_key = fold(key, numbers)
    # A few numbers that every device needs whole: cut up they would travel time and again.
    cohort = participation(cohort_key, index, clients)
    validation.instance(
        "what participation returns", cohort, Cohort, "See dflax.participation.Cohort."
    )
    cohort = everywhere(cohort)
    ids = cohort.clients
    ids = jnp.arange(clients, dtype=jnp.int32) if ids is None else ids
    minibatches, left_out = NO_DATA, None
    if not isinstance(partition, NoData):
        # Without replacement the stream must outlive the round, so its seed is the run's.
        seed = counter.seed_of(batch_key if replacement else key)
        start = index * strides[ids]
        asked = (seed, ids, start, local_steps, batch_size, replacement)
        if hasattr(partition, "minibatches_and_left_out"):
            minibatches, left_out = partition.minibatches_and_left_out(*asked)
        else:
            minibatches = partition.minibatches(*asked)
    own_steps, own_weights = steps[ids], weights[ids]
    if cohort.effort is not None:
        managed = cohort.effort * own_steps.astype(cohort.effort.dtype)
        own_steps = jnp.ceil(managed - 1e-5).astype(jnp.int32)
    if cohort.reports is not None:
        own_steps = jnp.where(cohort.reports > 0, own_steps, 0)
        own_weights = own_weights * cohort.reports.astype(own_weights.dtype)
    counted: Metrics = {}
    if left_out is not None:
        done = jnp.arange(local_steps) < own_steps[:, None]
        dropped = jnp.sum(jnp.where(done, left_out, 0))
        counted["examples_dropped"] = dropped.astype(jnp.float32)
    assignments = Assignment(minibatches, own_steps, fold(clients_key, ids), ids)
    return step_key, cohort, own_weights, assignments, counted
