"""Timetables of anarchy: clients alone decide when they take part, and how much they do."""

import heapq
from collections.abc import Iterator

import numpy as np
from jaxtyping import Float, Int

from dflax import validation
from dflax.asynchronous.timetable import Arrival, Timetable, collected
from dflax.data.dataset import AnyArray


def arrivals(
    clients: int,
    collect: int,
    rounds: int,
    *,
    probabilities: Float[AnyArray, " n"] | None = None,
    adversary: Int[AnyArray, "T m"] | None = None,
    delay: int = 0,
    local_steps: int | tuple[int, int] | Int[AnyArray, " n"] = 1,
    memory: bool = False,
    seed: int,
) -> Timetable:
    """Every step of the server collects m of n clients; their models are up to tau steps old.

    A step's clients are drawn one after another without replacement, with fixed probabilities, or an
    adversary has named them. A delay is uniform on {0, ..., min(tau, t)}. Weights are 1 / m; with a
    memory of all clients 1 / n, see `dflax.recipes.afa`.

    Args:
      clients: n >= 1.
      collect: m in [1, n].
      rounds: T >= 1, steps of the server; step t is at t + 1 seconds.
      probabilities: `[n]` > 0, scaled to sum to 1; default equal ones.
      adversary: `[T, m]` numbers of distinct clients in [0, n), who come to each step; default drawn.
      delay: tau >= 0.
      local_steps: K >= 1; (least, most), each piece of work uniform between them; or `[n]`, each
        client's own.
      memory: whether the server remembers all clients.
      seed: of NumPy's generator.

    Raises:
      TypeError, ValueError: naming the argument.

    References:
      Yang et al., Anarchic Federated Learning, arXiv 2108.09875.
    """
    validation.integer("clients", clients, low=1)
    validation.integer("collect", collect, low=1, high=clients)
    validation.integer("rounds", rounds, low=1)
    validation.integer("delay", delay, low=0)
    validation.flag("memory", memory)
    validation.seed("seed", seed)
    given = np.ones(clients) if probabilities is None else probabilities
    validation.real("probabilities", given, low=0.0, low_open=True)
    validation.leading_axis("probabilities", given, clients)
    named = None if adversary is None else _named(adversary, (rounds, collect), clients)
    if named is not None and probabilities is not None:
        raise ValueError(
            "probabilities must be None with an adversary, who leaves nothing to chance."
        )
    chances = np.log(np.asarray(given, np.float64))
    generator = np.random.default_rng(seed)
    steps = _local_steps(local_steps, clients)
    weight = 1.0 / (clients if memory else collect)

    def server_steps() -> Iterator[tuple[float, list[Arrival]]]:
        for number in range(rounds):
            scores = chances + generator.gumbel(size=clients)
            chosen = np.sort(np.argsort(-scores, kind="stable")[:collect])
            chosen = chosen if named is None else named[number]
            late = generator.integers(0, min(delay, number) + 1, collect)
            own = generator.integers(steps[0][chosen], steps[1][chosen] + 1)
            yield (
                number + 1.0,
                [
                    Arrival(int(i), number - int(u), int(k), weight, busy=1.0)
                    for i, u, k in zip(chosen, late, own, strict=True)
                ],
            )

    return collected(clients, server_steps())


def clocks(
    idle: Float[AnyArray, " n"],
    step_seconds: Float[AnyArray, " n"],
    collect: int,
    horizon: float,
    *,
    local_steps: int | tuple[int, int] | Int[AnyArray, " n"] = 1,
    memory: bool = False,
    seed: int,
) -> Timetable:
    """Clients pause `Exp(a_i)` seconds, then do K local steps of `c_i` seconds; m results are a step.

    A client whose result waits for the step pauses and works on; of its results the newest counts.

    Args:
      idle: `[n]` a, mean seconds of a pause, > 0.
      step_seconds: `[n]` c, seconds of a local step, > 0.
      collect: m in [1, n], clients of a step of the server.
      horizon: seconds > 0.
      local_steps: K, see `arrivals`.
      memory: whether the server remembers all clients.
      seed: of NumPy's generator.

    Raises:
      TypeError, ValueError: naming the argument.
    """
    validation.real("idle", idle, low=0.0, low_open=True)
    pauses = np.asarray(idle, np.float64)
    if pauses.ndim != 1:
        raise ValueError(f"idle must have shape (n,), got {pauses.shape}.")
    count = len(pauses)
    validation.real("step_seconds", step_seconds, low=0.0, low_open=True)
    validation.leading_axis("step_seconds", step_seconds, count)
    validation.integer("collect", collect, low=1, high=count)
    validation.real("horizon", horizon, low=0.0, low_open=True, scalar=True)
    validation.flag("memory", memory)
    validation.seed("seed", seed)
    speeds = np.asarray(step_seconds, np.float64)
    generator = np.random.default_rng(seed)
    steps = _local_steps(local_steps, count)
    weight = 1.0 / (count if memory else collect)

    def server_steps() -> Iterator[tuple[float, list[Arrival]]]:
        # (time, client, whether it is back; else it fetches the model)
        due = [(generator.exponential(pauses[i]), i, False) for i in range(count)]
        heapq.heapify(due)
        working: dict[int, tuple[int, int]] = {}
        results: dict[int, Arrival] = {}
        number = 0
        while True:
            time, client, back = heapq.heappop(due)
            if time > horizon:
                return
            if not back:
                own = int(generator.integers(steps[0][client], steps[1][client] + 1))
                working[client] = (number, own)
                heapq.heappush(due, (time + own * speeds[client], client, True))
                continue
            version, own = working.pop(client)
            results[client] = Arrival(client, version, own, weight, busy=own * speeds[client])
            heapq.heappush(due, (time + generator.exponential(pauses[client]), client, False))
            if len(results) == collect:
                yield time, [results[i] for i in sorted(results)]
                number, results = number + 1, {}

    return collected(count, server_steps())


def _named(
    adversary: Int[AnyArray, "T m"], shape: tuple[int, int], clients: int
) -> Int[np.ndarray, "T m"]:
    """The clients of every step in their order, each once a step."""
    rows = validation.array(
        "adversary", adversary, kind="integer", shape=shape, low=0, high=clients - 1
    )
    ordered = np.sort(np.asarray(rows), axis=1)
    twice = np.flatnonzero((np.diff(ordered, axis=1) == 0).any(1))
    if twice.size:
        raise ValueError(
            f"adversary must name distinct clients in each step, got {ordered[twice[0]].tolist()} for "
            f"step {twice[0]}."
        )
    return ordered


def _local_steps(
    given: int | tuple[int, int] | Int[AnyArray, " n"], clients: int
) -> tuple[Int[np.ndarray, " n"], Int[np.ndarray, " n"]]:
    """The least and the most local steps of each client."""
    if isinstance(given, tuple):
        if len(given) != 2:
            raise ValueError(f"local_steps must be (least, most), got {given}.")
        most = validation.LARGEST_COUNT
        validation.integer("local_steps[0]", given[0], low=1, high=most)
        validation.integer("local_steps[1]", given[1], low=given[0], high=most)
        return np.full(clients, given[0]), np.full(clients, given[1])
    shape = (clients,) if np.ndim(given) else ()
    most = validation.LARGEST_COUNT
    own = validation.array("local_steps", given, kind="integer", low=1, high=most, shape=shape)
    steps = np.broadcast_to(np.asarray(own), (clients,))
    return steps, steps
