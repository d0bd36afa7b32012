"""Who takes part in a round, who reports back, and how much work each one manages.

A participation is a pure function `(key, index, clients) -> Cohort`, packed as a
`jax.tree_util.Partial` so that its tables and probabilities travel as data. The wrappers `dropout` and
`stragglers` compose with every rule, and any function of the same signature does as well.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial
from jaxtyping import Array, Bool, Float, Int, Key, PyTree

from dflax import counter, validation

# Numbers are int32.
LARGEST = 2**31 - 1
# Up to this many clients, sorting random bits is cheaper than Floyd's sampling step by step.
SORTED_DRAW = 4096
# Up to this many, comparing all pairs is cheaper than sorting, with the same result.
RANKED_DRAW = 128
PARTICIPATION_FIX = "Make one with dflax.participation, for example uniform(10) or everyone()."


@jax.tree_util.register_static
class Count(int):
    """An integer that is part of a pytree's structure: static wherever the tree goes."""


class Cohort(NamedTuple):
    """The clients of one round.

    Attributes:
      clients: `[m]` distinct int32 client ids; None for all n clients in order.
      reports: `[m]` 1 for a client that sends its result, 0 for one that was invited and did not;
        None when all of them report.
      effort: `[m]` in [0, 1], the share of its local steps that a client manages; None when everyone
        manages all.
      event: what else is said of the round, any pytree of arrays: a time, who started from which
        model. It travels as `Round.event`; None for nothing.
    """

    clients: Int[Array, " m"] | None
    reports: Float[Array, " m"] | None = None
    effort: Float[Array, " m"] | None = None
    event: PyTree[Array] | None = None


Participation = Callable[[Key[Array, ""], Int[Array, ""], int], Cohort]


def everyone() -> Participation:
    """All n clients in every round.

    Examples:
      >>> import jax, dflax as dx
      >>> cohort = dx.participation.everyone()(jax.random.key(0), 0, 10)
      >>> cohort.clients is None  # all n in order
      True
    """
    return Partial(_everyone)


def uniform(cohort: int) -> Participation:
    """Draws m of the n clients, uniformly without replacement.

    Args:
      cohort: m, in [1, n]. The cost grows with m, and with n only up to 4096 clients.

    Examples:
      >>> import jax, dflax as dx
      >>> cohort = dx.participation.uniform(3)(jax.random.key(0), 0, 10)
      >>> len(set(cohort.clients.tolist()))
      3
    """
    validation.integer("cohort", cohort, low=1)
    return Partial(_uniform, Count(cohort))


def bernoulli(
    probability: float, *, capacity: int | None = None, nonempty: bool = False
) -> Participation:
    """Every client joins independently with the same probability.

    Args:
      probability: of joining, in [0, 1]; traceable.
      capacity: the most clients one round can hold (static); the first `capacity` of those who
        joined, in a random order, are taken. Empty places are filled with clients of weight 0 that
        do no local step. None computes all n clients and cuts nobody off.
      nonempty: draw from the law conditioned on at least one client joining.

    Examples:
      >>> import jax, dflax as dx
      >>> cohort = dx.participation.bernoulli(0.5, capacity=4)(jax.random.key(0), 0, 10)
      >>> cohort.clients.shape, set(cohort.reports.tolist()) <= {0.0, 1.0}
      ((4,), True)
    """
    validation.flag("nonempty", nonempty)
    validation.real(
        "probability", probability, low=0.0, high=1.0, low_open=bool(nonempty), scalar=True
    )
    if capacity is not None:
        validation.integer("capacity", capacity, low=1)
    places = None if capacity is None else Count(capacity)
    return Partial(_bernoulli, places, Count(nonempty), probability)


def weighted(cohort: int, probabilities: Float[Array, " n"]) -> Participation:
    """Draws m distinct clients, one by one, with probability proportional to their weights.

    Computed as the m largest of `log p_i + Gumbel_i`; the cost grows with n.

    Args:
      cohort: m, in [1, n].
      probabilities: `[n]`, >= 0, at least m of them positive; they need not sum to 1.

    Examples:
      >>> import jax, jax.numpy as jnp, dflax as dx
      >>> chances = jnp.array([0.0, 1.0, 0.0, 2.0])
      >>> cohort = dx.participation.weighted(2, chances)(jax.random.key(0), 0, 4)
      >>> sorted(cohort.clients.tolist())
      [1, 3]
    """
    validation.integer("cohort", cohort, low=1)
    validation.real("probabilities", probabilities, low=0.0)
    if np.ndim(probabilities) != 1:
        raise ValueError(
            f"probabilities must have shape [clients], got {np.shape(probabilities)}. Give one number "
            "per client."
        )
    if not validation.is_traced(probabilities):
        positive = int(np.count_nonzero(np.asarray(probabilities)))
        if positive < cohort:
            raise ValueError(
                f"probabilities must have at least cohort={cohort} positive entries, got {positive}."
            )
    return Partial(_weighted, Count(cohort), jnp.asarray(probabilities, float))


def availability(cohort: int, table: Bool[Array, "T n"]) -> Participation:
    """Up to m clients, uniformly among those that a table says are there.

    Args:
      cohort: m, in [1, n]. When fewer are available, the places left over hold clients of weight 0.
      table: `[T, n]` booleans or zeros and ones, T >= 1; round t reads row t mod T.

    Examples:
      >>> import jax, jax.numpy as jnp, dflax as dx
      >>> table = jnp.array([[1, 1, 0, 0], [0, 0, 0, 1]])
      >>> cohort = dx.participation.availability(2, table)(jax.random.key(0), 1, 4)
      >>> cohort.clients[cohort.reports > 0].tolist()
      [3]
    """
    validation.integer("cohort", cohort, low=1)
    if np.ndim(table) != 2 or np.shape(table)[0] < 1:
        raise ValueError(
            f"table must have shape [rounds, clients], got {np.shape(table)}. Give one row per round, "
            "at least one; they repeat."
        )
    fix = "Say 1 where a client is there and 0 where not; threshold probabilities first."
    if not validation.is_traced(table) and np.asarray(table).dtype != bool:
        validation.real("table", table, low=0.0, high=1.0, fix=fix)
        values = np.asarray(table)
        other = values[~np.isin(values, (0, 1))]
        if other.size:
            given = validation.shown(other[0])
            raise ValueError(f"table must hold booleans or zeros and ones, got {given}. {fix}")
    return Partial(_availability, Count(cohort), jnp.asarray(table, bool))


def present(table: Bool[Array, "T n"]) -> Participation:
    """All clients in order, those of which a table says they are there report: traces of churn.

    Args:
      table: `[T, n]` booleans or zeros and ones, T >= 1; round t reads row t mod T; traceable.

    Examples:
      >>> import jax, jax.numpy as jnp, dflax as dx
      >>> table = jnp.array([[1, 1, 0], [0, 1, 1]])
      >>> dx.participation.present(table)(jax.random.key(0), 1, 3).reports.tolist()
      [0.0, 1.0, 1.0]
    """
    availability(1, table)
    return Partial(_present, jnp.asarray(table, bool))


def from_table(
    clients: Int[Array, "T m"],
    *,
    reports: Float[Array, "T m"] | None = None,
    effort: Float[Array, "T m"] | None = None,
    **event: PyTree[Array],
) -> Participation:
    """The rounds of a table drawn beforehand, one row a round: traces, schedules, asynchronous systems.

    Args:
      clients: `[T, m]` client numbers, distinct within a row, T >= 1; round t reads row t mod T.
      reports: `[T, m]` 1 for a client that sends its result, else 0; default all do.
      effort: `[T, m]` shares in [0, 1] of their local steps that clients manage; default all of them.
      **event: further columns, pytrees with leaves `[T, ...]`: times, delays, kinds. A round's row of
        them, a dict by their names, is its `Round.event`; without columns that is None.

    Returns:
      A participation whose table is data of compiled programs, never a constant in them.

    Examples:
      >>> import jax, jax.numpy as jnp, dflax as dx
      >>> rule = dx.participation.from_table(jnp.array([[0, 1], [2, 3]]), time=jnp.array([0.5, 1.5]))
      >>> cohort = rule(jax.random.key(0), 1, 4)
      >>> cohort.clients.tolist(), float(cohort.event["time"])
      ([2, 3], 1.5)
    """
    fix = "Give one row per round, at least one; they repeat."
    shape = ("T", "m")
    numbers = validation.array(
        "clients", clients, kind="integer", shape=shape, low=0, high=LARGEST, fix=fix
    )
    highest = 0
    if not validation.is_traced(numbers):
        highest = int(numbers.max())
        if (np.diff(np.sort(numbers, axis=1), axis=1) == 0).any():
            raise ValueError("clients must be distinct within each row, got one twice.")
    for name, column in (("reports", reports), ("effort", effort)):
        if column is not None:
            validation.array(name, column, kind="real", shape=numbers.shape, low=0.0, high=1.0)
    for name, column in event.items():
        validation.arrays(name, column)
        validation.leading_axis(name, column, numbers.shape[0])
    cohort = Cohort(jnp.asarray(numbers, jnp.int32), reports, effort, event or None)
    return Partial(_from_table, Count(highest), jax.tree.map(jnp.asarray, cohort))


def dropout(participation: Participation, probability: float) -> Participation:
    """Each invited client fails to report, independently.

    Args:
      participation: who is invited.
      probability: of failing, in [0, 1]; traceable.

    Examples:
      >>> import jax, dflax as dx
      >>> rule = dx.participation.dropout(dx.participation.uniform(3), probability=1.0)
      >>> rule(jax.random.key(0), 0, 10).reports.tolist()
      [0.0, 0.0, 0.0]
    """
    validation.function("participation", participation, PARTICIPATION_FIX)
    validation.real("probability", probability, low=0.0, high=1.0, scalar=True)
    return Partial(_dropout, participation, probability)


def stragglers(
    participation: Participation, probability: float, least: float | Float[Array, " n"] = 0.0
) -> Participation:
    """Some clients manage only part of their local steps.

    Each member is slow with the same probability, independently in every round; a slow one manages a
    share of its K steps that is uniform between its `least` and 1 (rounded up to whole steps).

    Args:
      participation: who is invited.
      probability: of being slow, in [0, 1]; traceable.
      least: smallest share, in [0, 1]: one number, or `[n]`, one per client.

    Examples:
      >>> import jax, dflax as dx
      >>> rule = dx.participation.stragglers(dx.participation.uniform(3), 1.0, least=0.5)
      >>> bool((rule(jax.random.key(0), 0, 10).effort >= 0.5).all())
      True
    """
    validation.function("participation", participation, PARTICIPATION_FIX)
    validation.real("probability", probability, low=0.0, high=1.0, scalar=True)
    validation.real("least", least, low=0.0, high=1.0)
    if np.ndim(least) > 1:
        raise ValueError(
            f"least must be one number or have shape [clients], got shape {np.shape(least)}. Give one "
            "share for all clients or one per client."
        )
    return Partial(_stragglers, participation, probability, jnp.asarray(least, float))


def at_least_one(
    join_key: Key[Array, ""],
    first_key: Key[Array, ""],
    probability: float | Float[Array, ""],
    among: Bool[Array, " n"],
) -> Bool[Array, " n"]:
    """Each of some joins independently, given that at least one does; nobody where there is nobody.

    Args:
      join_key: a typed key.
      first_key: another one.
      probability: of joining, in (0, 1]; traceable.
      among: `[n]` who may join.

    Returns:
      `[n]` who does.

    Raises:
      TypeError, ValueError: naming the argument.
    """
    validation.typed_key("join_key", join_key)
    validation.typed_key("first_key", first_key)
    validation.probability("probability", probability, low_open=True)
    validation.array("among", among, kind="boolean", shape=("n",))
    joined = jax.random.bernoulli(join_key, probability, among.shape)
    # The first client that joins is at f with probability ~ (1 - p)^f; those behind it stay free.
    # The law of everything else is untouched, so this is the conditional law exactly.
    order = jnp.arange(len(among))
    rank = jnp.cumsum(among) - 1
    stays_out = jnp.log1p(-jnp.minimum(jnp.asarray(probability, float), 1.0 - 1e-7))
    logits = jnp.where(among, rank.astype(stays_out.dtype) * stays_out, -jnp.inf)
    first = jax.random.categorical(first_key, logits)
    return among & jnp.where(order > first, joined, order == first)


def rule_of(participation: Participation) -> tuple[str, tuple]:
    """The name of the factory that made a participation, and what it was made with.

    For those who must know the law of a cohort, such as an accountant of privacy.

    Args:
      participation: who takes part.

    Returns:
      For example `("uniform", (10,))`, `("bernoulli", (capacity, nonempty, probability))` or
      `("dropout", (participation, probability))`; `("", ())` of what is made elsewhere.
    """
    validation.function("participation", participation, PARTICIPATION_FIX)
    function = getattr(participation, "func", None)
    if not isinstance(participation, Partial) or function not in _RULES:
        return "", ()
    return _RULES[function], participation.args


def distinct(key: Key[Array, ""], count: int, population: int) -> Int[Array, " m"]:
    """`count` distinct numbers in [0, population), every ordered choice equally likely.

    Small populations sort random bits. Large ones use Floyd's algorithm, whose cost depends on
    `count` alone: for j = N - m, ..., N - 1 draw t in [0, j] and take t unless it is taken, else j;
    the result is then put in random order.

    Args:
      key: one typed key.
      count: m, in [1, N], static.
      population: N in [1, 2^31 - 1], static.

    Returns:
      `[m]` int32.

    Raises:
      TypeError: a key that is not typed, or counts that are no integers.
      ValueError: counts out of range.
    """
    validation.typed_key("key", key)
    validation.integer("population", population, low=1, high=LARGEST)
    fix = f"Only {population} distinct numbers exist: draw fewer or raise population."
    validation.integer("count", count, low=1, high=population, fix=fix)
    if population <= SORTED_DRAW:
        bits = counter.bits(key, population)
        if population <= RANKED_DRAW:
            return _ranked(bits, count)
        return jnp.argsort(bits)[:count].astype(jnp.int32)
    draw_key, order_key = jax.random.split(key)
    tops = jnp.arange(population - count, population, dtype=jnp.int32)
    # An upper end that is included: tops + 1 would overflow at the largest population.
    draws = jax.random.randint(draw_key, (count,), -1, tops, jnp.int32) + 1

    def take(chosen: Array, scanned: tuple[Array, Array, Array]) -> tuple[Array, None]:
        place, draw, top = scanned
        taken = jnp.any(chosen == draw)
        return chosen.at[place].set(jnp.where(taken, top, draw)), None

    empty = jnp.full((count,), -1, jnp.int32)
    chosen, _ = jax.lax.scan(take, empty, (jnp.arange(count), draws, tops))
    return chosen[jnp.argsort(jax.random.bits(order_key, (count,), jnp.uint32))]


def _ranked(bits: Array, count: int) -> Int[Array, " m"]:
    """The places of the `count` smallest numbers, in order: the start of a stable argsort."""
    places = jnp.arange(bits.shape[0], dtype=jnp.int32)
    earlier = (bits < bits[:, None]) | ((bits == bits[:, None]) & (places < places[:, None]))
    ranks = jnp.sum(earlier, axis=1, dtype=jnp.int32)
    found = ranks == jnp.arange(count, dtype=jnp.int32)[:, None]
    return jnp.sum(jnp.where(found, places, 0), axis=1, dtype=jnp.int32)


def _everyone(key: Key[Array, ""], index: Int[Array, ""], clients: int) -> Cohort:
    return Cohort(None)


def _uniform(cohort: int, key: Key[Array, ""], index: Int[Array, ""], clients: int) -> Cohort:
    _at_most(cohort, clients)
    return Cohort(distinct(key, cohort, clients))


def _bernoulli(
    capacity: int | None,
    nonempty: bool,
    probability: Float[Array, ""],
    key: Key[Array, ""],
    index: Int[Array, ""],
    clients: int,
) -> Cohort:
    join_key, first_key, order_key = jax.random.split(key, 3)
    if nonempty:
        joined = at_least_one(join_key, first_key, probability, jnp.ones(clients, bool))
    else:
        joined = jax.random.bernoulli(join_key, probability, (clients,))
    if capacity is None:
        return Cohort(None, joined.astype(jnp.float32))
    _at_most(capacity, clients, "capacity")
    return _first(order_key, joined, capacity)


def _weighted(
    cohort: int,
    probabilities: Float[Array, " n"],
    key: Key[Array, ""],
    index: Int[Array, ""],
    clients: int,
) -> Cohort:
    _at_most(cohort, clients)
    _table_width("probabilities", probabilities.shape[0], clients)
    scores = jnp.log(probabilities) + jax.random.gumbel(key, (clients,))
    _, ids = jax.lax.top_k(scores, cohort)
    return Cohort(ids.astype(jnp.int32))


def _availability(
    cohort: int,
    table: Bool[Array, "T n"],
    key: Key[Array, ""],
    index: Int[Array, ""],
    clients: int,
) -> Cohort:
    _at_most(cohort, clients)
    _table_width("table", table.shape[1], clients)
    return _first(key, table[index % table.shape[0]], cohort)


def _present(
    table: Bool[Array, "T n"], key: Key[Array, ""], index: Int[Array, ""], clients: int
) -> Cohort:
    _table_width("table", table.shape[1], clients)
    return Cohort(None, table[index % table.shape[0]].astype(jnp.float32))


def _from_table(
    highest: int, table: Cohort, key: Key[Array, ""], index: Int[Array, ""], clients: int
) -> Cohort:
    if highest >= clients:
        raise ValueError(
            f"clients of the table must be numbers in [0, {clients}), got up to {highest}. Count them "
            "from 0, or make a population of as many."
        )
    row = index % jax.tree.leaves(table)[0].shape[0]
    return jax.tree.map(lambda column: column[row], table)


def _dropout(
    participation: Participation,
    probability: Float[Array, ""],
    key: Key[Array, ""],
    index: Int[Array, ""],
    clients: int,
) -> Cohort:
    inner_key, drop_key = jax.random.split(key)
    cohort = participation(inner_key, index, clients)
    size = clients if cohort.clients is None else cohort.clients.shape[0]
    stays = 1.0 - jax.random.bernoulli(drop_key, probability, (size,)).astype(jnp.float32)
    return cohort._replace(reports=stays if cohort.reports is None else cohort.reports * stays)


def _stragglers(
    participation: Participation,
    probability: Float[Array, ""],
    least: Float[Array, "..."],
    key: Key[Array, ""],
    index: Int[Array, ""],
    clients: int,
) -> Cohort:
    inner_key, slow_key, share_key = jax.random.split(key, 3)
    cohort = participation(inner_key, index, clients)
    if least.ndim:
        _table_width("least", least.shape[0], clients)
        least = least if cohort.clients is None else least[cohort.clients]
    size = clients if cohort.clients is None else cohort.clients.shape[0]
    share = least + (1.0 - least) * jax.random.uniform(share_key, (size,))
    slow = jax.random.bernoulli(slow_key, probability, (size,))
    effort = jnp.where(slow, share, 1.0)
    return cohort._replace(effort=effort if cohort.effort is None else cohort.effort * effort)


def _first(key: Key[Array, ""], present: Bool[Array, " n"], places: int) -> Cohort:
    """`places` distinct clients, the present ones first, in random order; the others do not report."""
    scores = jax.random.uniform(key, present.shape)
    scores += present.astype(scores.dtype)
    _, ids = jax.lax.top_k(scores, places)
    reports = present[ids].astype(jnp.float32)
    return Cohort(ids.astype(jnp.int32), reports)


def _at_most(cohort: int, clients: int, name: str = "cohort") -> None:
    if cohort > clients:
        raise ValueError(
            f"{name} must be an integer in [1, {clients}], the number of clients, got {cohort}. "
            "Invite fewer clients a round or partition the data over more."
        )


def _table_width(name: str, width: int, clients: int) -> None:
    if width != clients:
        raise ValueError(f"{name} must have one entry per client, {clients}, got {width}.")


_RULES = {
    _everyone: "everyone",
    _uniform: "uniform",
    _bernoulli: "bernoulli",
    _weighted: "weighted",
    _availability: "availability",
    _present: "present",
    _from_table: "from_table",
    _dropout: "dropout",
    _stragglers: "stragglers",
}

__all__ = [
    "Cohort",
    "Count",
    "at_least_one",
    "availability",
    "bernoulli",
    "distinct",
    "dropout",
    "everyone",
    "from_table",
    "present",
    "rule_of",
    "stragglers",
    "uniform",
    "weighted",
]


def __dir__() -> list[str]:
    return __all__
