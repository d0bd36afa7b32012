"""Timetables of servers that wait for all, for none, for some, or for the clock."""

import heapq
import warnings
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from dflax import validation
from dflax.asynchronous.durations import Durations, require_durations
from dflax.asynchronous.timetable import Arrival, Timetable, collected
from dflax.data.dataset import AnyArray

# Times that are equal in exact arithmetic count as equal: the shares d_i rest on it.
SLACK = 1e-6
IDENTICAL, BY_IMPORTANCE = "identical", "importance"


class SurrogateWarning(UserWarning):
    """The clients' weights in the loss that is minimised differ from their importances."""


class _Clients:
    """Clients who work without a pause, each from the model that it was sent last."""

    def __init__(self, durations: Float[np.ndarray, "n r"]):
        count = len(durations)
        self.durations, self.pieces = durations, [0] * count
        self.began, self.version = [0.0] * count, [0] * count

    def seconds(self, client: int) -> float:
        """Of the piece of work that the client is at."""
        return float(self.durations[client, self.pieces[client] % self.durations.shape[1]])

    def returns(self, client: int) -> float:
        return self.began[client] + self.seconds(client)

    def arrival(self, client: int, steps: int, weight: float) -> Arrival:
        return Arrival(client, self.version[client], steps, weight, busy=self.seconds(client))

    def restart(self, client: int, time: float, version: int) -> None:
        self.pieces[client] += 1
        self.began[client], self.version[client] = time, version


def synchronous(
    durations: Durations,
    horizon: float,
    *,
    local_steps: int = 1,
    importance: Float[AnyArray, " n"] | None = None,
) -> Timetable:
    """FedAvg: the server waits for all clients; `d_i = p_i`.

    Args:
      durations: `[n]` or `[n, r]` seconds > 0 of a client's piece of work.
      horizon: seconds > 0; steps at or before it count.
      local_steps: K >= 1.
      importance: `[n]` p, >= 0, scaled to sum to 1; default 1 / n.

    Raises:
      TypeError, ValueError: naming the argument.
    """
    made = _made(durations, horizon, local_steps, importance)

    def steps() -> Iterator[tuple[float, list[Arrival]]]:
        clients, number = _Clients(made.durations), 0
        everyone = range(len(made.durations))
        while (time := max(map(clients.returns, everyone))) <= made.horizon:
            yield time, [clients.arrival(i, local_steps, made.importance[i]) for i in everyone]
            number += 1
            for client in everyone:
                clients.restart(client, time, number)

    return collected(len(made.durations), steps())


def immediate(
    durations: Durations,
    horizon: float,
    *,
    local_steps: int = 1,
    weights: str | Float[AnyArray, " n"] = BY_IMPORTANCE,
    importance: Float[AnyArray, " n"] | None = None,
) -> Timetable:
    """Asynchronous FedAvg and FedAsync: the server steps at every arrival, the earliest first.

    Args:
      durations: see `synchronous`.
      horizon: seconds > 0.
      local_steps: K >= 1.
      weights: "importance", `d_i = p_i T_i sum_j 1 / T_j` with T the mean times: without bias;
        "identical", `d_i = 1`; or `[n]` numbers, such as `alpha p` of FedAsync.
      importance: p, see `synchronous`.

    Raises:
      TypeError, ValueError: naming the argument.

    Warns:
      SurrogateWarning: weights with which another loss is minimised than the federation's.

    References:
      Fraboni et al., arXiv 2206.10189; Xie et al., arXiv 1903.03934.
    """
    made = _made(durations, horizon, local_steps, importance)
    mean = made.durations.mean(axis=1)
    shares = _weights(weights, made.importance * mean * (1 / mean).sum())
    _warn(shares / mean, made.importance, "immediate")

    def steps() -> Iterator[tuple[float, list[Arrival]]]:
        clients, number = _Clients(made.durations), 0
        due = [(clients.returns(client), client) for client in range(len(mean))]
        heapq.heapify(due)
        while due[0][0] <= made.horizon:
            time, client = heapq.heappop(due)
            yield time, [clients.arrival(client, local_steps, shares[client])]
            number += 1
            clients.restart(client, time, number)
            heapq.heappush(due, (clients.returns(client), client))

    return collected(len(mean), steps())


def fedfix(
    durations: Durations,
    tick: float,
    horizon: float,
    *,
    local_steps: int = 1,
    importance: Float[AnyArray, " n"] | None = None,
) -> Timetable:
    """FedFix: the server steps every dt seconds, with whoever has arrived; `d_i = p_i ceil(T_i / dt)`.

    Whoever arrives before the tick waits for it. With a tick of the slowest client's time it is FedAvg.

    Args:
      durations: see `synchronous`. Where times are random, d_i is the mean of the ceiling.
      tick: dt > 0 seconds.
      horizon: seconds > 0.
      local_steps: K >= 1.
      importance: p, see `synchronous`.

    Raises:
      TypeError, ValueError: naming the argument.

    Warns:
      UserWarning: a tick below the shortest time, with which the server's gain a second grows without
        bound.

    References:
      Fraboni et al., arXiv 2206.10189.
    """
    made = _made(durations, horizon, local_steps, importance)
    validation.real("tick", tick, low=0.0, low_open=True, scalar=True)
    if tick < made.durations.min() - SLACK:
        warnings.warn(
            f"tick should be at least the shortest time of a client, {made.durations.min():.3g}, got "
            f"{tick}: weights grow as 1 / tick.",
            stacklevel=2,
        )
    ticks = np.ceil(made.durations / tick - SLACK).mean(axis=1)
    shares = made.importance * ticks

    def steps() -> Iterator[tuple[float, list[Arrival]]]:
        clients = _Clients(made.durations)
        for number in range(int(np.floor(made.horizon / tick + SLACK))):
            time = (number + 1) * tick
            here = [i for i in range(len(shares)) if clients.returns(i) <= time + SLACK]
            yield time, [clients.arrival(i, local_steps, shares[i]) for i in here]
            for client in here:
                clients.restart(client, time, number + 1)

    return collected(len(shares), steps())


def fedbuff(
    durations: Durations,
    buffer: int,
    horizon: float,
    *,
    local_steps: int = 1,
    weights: str = IDENTICAL,
    importance: Float[AnyArray, " n"] | None = None,
) -> Timetable:
    """FedBuff: the server steps when c clients have arrived, who wait for it.

    In the original a client whose change is in the buffer starts anew at once, and may fill several
    places: that is `dflax.recipes.fedbuff`, an arrival a round.

    Args:
      durations: see `synchronous`.
      buffer: c in [1, n].
      horizon: seconds > 0.
      local_steps: K >= 1.
      weights: "identical", `d_i = 1 / c`; or "importance", `d_i = p_i / f_i` with f_i the share of the
        server's steps to which client i contributes in this timetable: without bias.
      importance: p, see `synchronous`.

    Raises:
      TypeError, ValueError: naming the argument; "importance" with a client that never contributes.

    Warns:
      SurrogateWarning: weights with which another loss is minimised than the federation's.

    Examples:
      >>> import numpy as np, dflax as dx
      >>> seconds = np.array([1.0, 1.0, 2.5])
      >>> table = dx.asynchronous.fedbuff(seconds, buffer=2, horizon=10.0, weights="importance")
      >>> table.time.tolist()[:3], table.clients.tolist()[:6]  # two arrivals a step
      ([1.0, 2.0, 3.0], [0, 1, 0, 1, 2, 0])

    References:
      Nguyen et al., Federated Learning with Buffered Asynchronous Aggregation, arXiv 2106.06639.
    """
    made = _made(durations, horizon, local_steps, importance)
    count = len(made.durations)
    fix = "The server cannot wait for more clients than there are."
    validation.integer("buffer", buffer, low=1, high=count, fix=fix)
    validation.choice("weights", weights, (IDENTICAL, BY_IMPORTANCE))

    def steps() -> Iterator[tuple[float, list[Arrival]]]:
        clients, number = _Clients(made.durations), 0
        while True:
            order = sorted(range(count), key=lambda i: (clients.returns(i), i))[:buffer]
            time = clients.returns(order[-1])
            if time > made.horizon:
                return
            yield time, [clients.arrival(i, local_steps, 1.0 / buffer) for i in order]
            number += 1
            for client in order:
                clients.restart(client, time, number)

    table = collected(count, steps())
    if weights == IDENTICAL:
        _warn(table.surrogate(), made.importance, "fedbuff")
        return table
    often = table.frequencies()
    if not often.all():
        never = np.flatnonzero(often == 0).tolist()
        raise ValueError(
            f"horizon must be long enough for every client to contribute, got {horizon} in which "
            f"clients {never[:5]} never do. Raise it, or take weights='identical'."
        )
    return table._replace(weights=(made.importance / often)[table.clients])


class _Made(NamedTuple):
    durations: Float[np.ndarray, "n r"]
    horizon: float
    importance: Float[np.ndarray, " n"]


def _made(
    durations: Durations,
    horizon: float,
    local_steps: int,
    importance: Float[AnyArray, " n"] | None,
) -> _Made:
    times = require_durations("durations", durations)
    validation.real("horizon", horizon, low=0.0, low_open=True, scalar=True)
    validation.integer("local_steps", local_steps, low=1)
    return _Made(times, float(horizon) + SLACK / 1000, scaled(importance, len(times), "durations"))


def scaled(
    importance: Float[AnyArray, " n"] | None, clients: int, counted: str
) -> Float[np.ndarray, " n"]:
    """Importances that sum to 1, equal ones for None; refused by name.

    Args:
      importance: `[n]`, >= 0, or None.
      clients: n.
      counted: the argument that says how many clients there are.
    """
    given = np.ones(clients) if importance is None else importance
    validation.real("importance", given, low=0.0)
    numbers = np.asarray(given, np.float64)
    if numbers.shape != (clients,) or numbers.sum() <= 0:
        raise ValueError(
            f"importance must be a number for each of the {clients} clients of {counted}, not all 0, "
            f"got shape {numbers.shape}."
        )
    return numbers / numbers.sum()


def _weights(
    weights: str | Float[AnyArray, " n"], unbiased: Float[np.ndarray, " n"]
) -> Float[np.ndarray, " n"]:
    if isinstance(weights, str):
        validation.choice("weights", weights, (IDENTICAL, BY_IMPORTANCE))
        return unbiased if weights == BY_IMPORTANCE else np.ones(len(unbiased))
    validation.real("weights", weights, low=0.0)
    numbers = np.asarray(weights, np.float64)
    if numbers.shape != unbiased.shape or numbers.sum() <= 0:
        raise ValueError(
            f"weights must be a number for each of the {len(unbiased)} clients, not all 0, got shape "
            f"{numbers.shape}."
        )
    return numbers


def _warn(rates: Float[np.ndarray, " n"], importance: Float[np.ndarray, " n"], name: str) -> None:
    """Says so where the clients' mean weights are not their importances."""
    surrogate = rates / rates.sum()
    if np.abs(surrogate - importance).max() > 0.02 * importance.max():
        shown = np.array2string(surrogate, precision=3, threshold=6, edgeitems=2)
        warnings.warn(
            f"{name} minimises the loss with the clients' weights {shown}, not with their importances. "
            "Take weights='importance' where the optimum of the federation is wanted.",
            SurrogateWarning,
            stacklevel=3,
        )


__all__ = ["SurrogateWarning", "fedbuff", "fedfix", "immediate", "scaled", "synchronous"]
