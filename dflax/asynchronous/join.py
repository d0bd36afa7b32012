"""A federation whose rounds are the waves of a timetable."""

from typing import Any

import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial
from jaxtyping import Array, Int, Key

from dflax import participation, validation
from dflax.asynchronous.timetable import Timetable
from dflax.asynchronous.waves import Waves, waves
from dflax.federation import Federation
from dflax.participation import Cohort, Count, Participation


def join(federation: Federation, cut: Timetable | Waves) -> Federation:
    """The federation whose rounds are a timetable's waves, one after another.

    Args:
      federation: of n clients, with at least as many local steps as any arrival has.
      cut: a timetable, or its `waves`.

    Returns:
      The federation with its participation replaced; `waves(timetable).rounds` rounds are all of it,
      and in those after them nothing happens.

    Raises:
      TypeError, ValueError: naming the argument.
    """
    validation.instance("federation", federation, Federation, "Make a dflax.Federation.")
    cut = waves(cut) if isinstance(cut, Timetable) else cut
    validation.instance("cut", cut, Waves, "Make it with dflax.asynchronous.waves.")
    population, most = cut.timetable.population, int(cut.timetable.steps.max(initial=1))
    if federation.clients != population:
        raise ValueError(
            f"federation must have the {population} clients of the timetable, got "
            f"{federation.clients}."
        )
    if federation.local_steps < most or (np.asarray(federation.steps) < most).any():
        raise ValueError(
            f"federation must have local_steps >= {most} for all clients, as many as the timetable's "
            f"arrivals have, got {federation.local_steps}."
        )
    return federation.replace(participation=_rows(cut, federation.local_steps))


def _rows(cut: Waves, local_steps: int) -> Participation:
    """The table of all waves, see `participation.from_table`."""
    table, rounds, width = cut.timetable, cut.rounds, cut.width
    low = table.first[cut.begins[:-1]]
    counts = table.first[cut.begins[1:]] - low
    place = np.arange(width)
    there = place < counts[:, None]
    index = np.minimum(low[:, None] + place, max(0, len(table.clients) - 1))
    moved = np.cumsum(np.r_[0, table.moves])

    def column(values: np.ndarray, empty: float = 0) -> np.ndarray:
        taken = values[index] if len(values) else np.zeros(index.shape, values.dtype)
        return np.where(there, taken, np.asarray(empty, values.dtype))

    steps_there = np.diff(cut.begins)
    step = np.arange(cut.most_steps)
    happens = step < steps_there[:, None]
    number = np.minimum(cut.begins[:-1, None] + step, len(table.time) - 1)
    # Half a step less, so that no rounding of the share makes one more of it.
    effort = np.maximum(column(table.steps) - 0.5, 0) / local_steps
    rows = participation.from_table(
        jnp.asarray(_filled(column(table.clients, -1), table.population)),
        reports=jnp.asarray(there, jnp.float32),
        effort=jnp.asarray(effort, jnp.float32),
        start=column(cut.start),
        weight=column(table.weights).astype(np.float32),
        staleness=column(table.staleness.astype(np.int32)),
        kept=there & (column(table.steps) == 0),
        later=column(table.later),
        first=np.where(happens, table.first[number] - low[:, None], 0).astype(np.int32),
        count=np.where(happens, np.diff(table.first)[number], 0).astype(np.int32),
        write=np.where(happens, cut.write[number], cut.slots).astype(np.int32),
        time=table.time[cut.begins[1:] - 1].astype(np.float32),
        steps_taken=np.diff(moved[cut.begins]).astype(np.int32),
        # No numbers: by its shape an algorithm sees whether it has room for these rows.
        room=np.zeros((rounds, *cut.room, 0), bool),
    )
    return Partial(_until_the_end, Count(rounds), rows)


def _until_the_end(
    rounds: int, rows: Participation, key: Key[Array, ""], index: Int[Array, ""], clients: int
) -> Cohort:
    """The rows in their order; after the last one nobody comes."""
    cohort = rows(key, jnp.minimum(index, rounds - 1), clients)
    event: Any = cohort.event
    reports: Any = cohort.reports
    still = jnp.asarray(index < rounds)
    counts = {name: jnp.where(still, event[name], 0) for name in ("count", "steps_taken")}
    reports = jnp.where(still, reports, 0.0)
    return cohort._replace(reports=reports, event=event | counts)


def _filled(clients: Int[np.ndarray, "W m"], population: int) -> Int[np.ndarray, "W m"]:
    """Empty places, -1, filled with clients that are not in the wave."""
    filled = clients.copy()
    for place in np.flatnonzero((filled < 0).any(1)):
        row = clients[place]
        empty = row < 0
        absent = np.setdiff1d(np.arange(population), row[~empty])
        filled[place, empty] = absent[: empty.sum()]
    return filled
