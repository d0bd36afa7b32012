"""FedCompass: the server gives clients as many local steps as let groups of them arrive together."""

import dataclasses
import heapq
import math
from collections.abc import Callable, Iterator

import numpy as np
from jaxtyping import Float

from dflax import validation
from dflax.asynchronous.durations import require_durations
from dflax.asynchronous.schedules import scaled
from dflax.asynchronous.timetable import Arrival, Timetable, collected
from dflax.data.dataset import AnyArray

# Times that differ by less are equal: quotients of times are rounded down.
SLACK = 1e-9


@dataclasses.dataclass(eq=False)
class Group:
    """Clients that shall arrive together.

    Attributes:
      expected: seconds at which its members are expected; 0 once it was closed.
      latest: seconds until which it waits for them; 0 once it was closed.
      out: members at work.
      here: members that have arrived.
    """

    expected: float
    latest: float
    out: set[int] = dataclasses.field(default_factory=set)
    here: list[int] = dataclasses.field(default_factory=list)

    @property
    def open(self) -> bool:
        """Whether somebody may still arrive in time."""
        return self.latest > 0


class Scheduler:
    """The decisions of FedCompass: from the times of arrivals to local steps. No arrays, no clock.

    Args:
      least: Q_min >= 1, local steps.
      most: Q_max >= Q_min.
      slack: lambda >= 1, how much longer than expected a group waits.
      momentum: mu in (0, 1], the weight of the newest speed.

    Raises:
      TypeError, ValueError: naming the argument.
    """

    def __init__(self, least: int, most: int, slack: float, momentum: float):
        validation.integer("least", least, low=1)
        validation.integer("most", most, low=least)
        validation.real("slack", slack, low=1.0, scalar=True)
        validation.real("momentum", momentum, low=0.0, high=1.0, low_open=True, scalar=True)
        self.least, self.most = least, most
        self.slack, self.momentum = float(slack), float(momentum)
        self.speed: dict[int, float] = {}
        self.steps: dict[int, int] = {}
        self.start: dict[int, float] = {}
        self.group: dict[int, Group] = {}
        self.groups: list[Group] = []

    def measure(self, client: int, time: float) -> None:
        """Learns seconds a local step from an arrival; refuses one that is not after its work began."""
        began = self.start.get(client, 0.0)
        if not began < time < math.inf:
            raise ValueError(
                f"time must be seconds after {began}, when client {client} began, got {time}."
            )
        seen = (time - began) / self.steps.get(client, self.most)
        old = self.speed.get(client)
        self.speed[client] = (
            seen if old is None else (1 - self.momentum) * old + self.momentum * seen
        )

    def assign(self, client: int, time: float) -> Group | None:
        """Gives the client its next steps and its group; returns the group if it is a new one."""
        if client not in self.speed:
            raise ValueError(f"client must have been measured before, got {client}. Call measure.")
        joined = self._joinable(client, time)
        if joined is not None:
            self.group[client], self.steps[client] = joined
            joined[0].out.add(client)
            self.start[client] = time
            return None
        steps = self._own_steps(client, time)
        seconds = steps * self.speed[client]
        group = Group(time + seconds, time + self.slack * seconds, {client})
        self.groups.append(group)
        self.group[client], self.steps[client], self.start[client] = group, steps, time
        return group

    def leave(self, client: int) -> None:
        """The client is back too late for its group."""
        group = self.group.pop(client)
        group.out.discard(client)
        self._drop(group)

    def close(self, group: Group, time: float) -> list[Group]:
        """The group's members that are here are sent to work again; returns new groups."""
        members, group.here = sorted(group.here, key=lambda i: (self.speed[i], i)), []
        group.expected = group.latest = 0.0
        made = [new for client in members if (new := self.assign(client, time)) is not None]
        self._drop(group)
        return made

    def _drop(self, group: Group) -> None:
        if not group.out and not group.here and group in self.groups:
            self.groups.remove(group)

    def _joinable(self, client: int, time: float) -> tuple[Group, int] | None:
        """The open group in which the client can do most; the newest of several."""
        found = None
        for group in self.groups:
            steps = _floor((group.expected - time) / self.speed[client])
            fits = group.open and self.least <= steps <= self.most
            if fits and (found is None or steps >= found[1]):
                found = group, steps
        return found

    def _own_steps(self, client: int, time: float) -> int:
        """Steps after which a group's fastest member comes back from its next work."""
        best = -1
        for group in self.groups:
            if time >= group.latest:
                continue
            fastest = min(self.speed[i] for i in (*group.out, *group.here))
            meets = group.latest + fastest * self.most
            steps = _floor((meets - time) / self.speed[client])
            if steps <= self.most:
                best = max(best, steps)
        return self.most if best < 0 else max(best, self.least)


def fedcompass(
    speeds: Float[AnyArray, " n"] | Float[AnyArray, "n r"],
    horizon: float,
    *,
    least: int = 20,
    most: int = 100,
    slack: float = 1.2,
    momentum: float = 0.9,
    alpha: float = 0.9,
    importance: Float[AnyArray, " n"] | None = None,
) -> Timetable:
    """FedCompass: groups of clients arrive together, each with as many local steps as its speed allows.

    A client's first piece of work has Q_max steps and is applied at once. From then on it joins the
    group that will arrive when it can have done at least Q_min and at most Q_max steps, or opens one. A
    group is applied when its last member arrives, or lambda times its expected time has passed. Whoever
    comes later keeps its change until the next step of any group, and is sent the current model. The
    weights are `alpha p_i`; give the algorithm a discount, such as `polynomial(0.5)`.

    Args:
      speeds: `[n]` seconds of a local step, > 0; or `[n, r]`, of piece of work k mod r. The server
        does not know them, but learns them.
      horizon: seconds > 0.
      least: Q_min >= 1.
      most: Q_max >= Q_min; the federation's `local_steps`.
      slack: lambda >= 1.
      momentum: mu in (0, 1], weight of the newest measured speed.
      alpha: > 0.
      importance: `[n]` p, >= 0, scaled to sum to 1; default 1 / n.

    Raises:
      TypeError, ValueError: naming the argument.

    References:
      Li et al., FedCompass: Efficient Cross-Silo Federated Learning on Heterogeneous Client Devices
      Using a Computing Power-Aware Scheduler, arXiv 2309.14675.
    """
    seconds = require_durations("speeds", speeds)
    validation.real("horizon", horizon, low=0.0, low_open=True, scalar=True)
    validation.real("alpha", alpha, low=0.0, low_open=True, scalar=True)
    scheduler = Scheduler(least, most, slack, momentum)
    shares = float(alpha) * scaled(importance, len(seconds), "speeds")

    def speed(client: int, piece: int) -> float:
        return float(seconds[client, piece % seconds.shape[1]])

    steps = _simulated(scheduler, speed, shares, float(horizon) + SLACK)
    return collected(len(seconds), steps)


def _simulated(
    scheduler: Scheduler,
    speed: Callable[[int, int], float],
    shares: Float[np.ndarray, " n"],
    horizon: float,
) -> Iterator[tuple[float, list[Arrival]]]:
    """The server's steps, and steps of no weight for those who keep their change."""
    count = len(shares)
    version, pieces, taken = [0] * count, [0] * count, 0
    waiting: dict[int, Arrival] = {}
    late: dict[int, int] = {}
    due: list[tuple[float, int, int, int, Group | None]] = [
        (scheduler.most * speed(client, 0), 0, client, client, None) for client in range(count)
    ]
    heapq.heapify(due)
    made = 0

    def push(time: float, client: int, group: Group | None) -> None:
        nonlocal made
        # Who arrives goes before who waits, clients by their numbers, groups by their age.
        heapq.heappush(
            due, (time, int(group is not None), client if group is None else made, client, group)
        )
        made += group is not None

    def sent(client: int, time: float) -> None:
        """The client goes to work from the current model."""
        version[client] = taken
        pieces[client] += 1
        push(time + scheduler.steps[client] * speed(client, pieces[client]), client, None)

    def arrival(client: int, time: float, *, later: bool = False) -> Arrival:
        steps = scheduler.steps.get(client, scheduler.most)
        weight = 0.0 if later else float(shares[client])
        busy = time - scheduler.start.get(client, 0.0)
        return Arrival(client, version[client], steps, weight, later, busy)

    def applied(group: Group, time: float) -> tuple[float, list[Arrival]]:
        """A group's changes, and those kept before of clients that are not in it."""
        nonlocal taken
        members = list(group.here)
        brought = [waiting.pop(client) for client in members]
        brought += [
            Arrival(client, made_from, 0, float(shares[client]))
            for client, made_from in late.items()
            if client not in members
        ]
        late.clear()
        taken += 1
        opened = scheduler.close(group, time)
        for client in sorted(members, key=lambda i: (scheduler.speed[i], i)):
            sent(client, time)
        for new in opened:
            push(new.latest, -1, new)
        return time, sorted(brought)

    while due and due[0][0] <= horizon:
        time, _, _, client, group = heapq.heappop(due)
        if group is not None:
            if group.here:
                yield applied(group, time)
            continue
        scheduler.measure(client, time)
        own = scheduler.group.get(client)
        if own is None:
            step = time, [arrival(client, time)]
            taken += 1
        elif time > own.latest + SLACK:
            late[client] = version[client]
            step = time, [arrival(client, time, later=True)]
            taken += 1
            scheduler.leave(client)
        else:
            waiting[client] = arrival(client, time)
            own.out.discard(client)
            own.here.append(client)
            if not own.out:
                yield applied(own, time)
            continue
        yield step
        opened_now = scheduler.assign(client, time)
        sent(client, time)
        if opened_now is not None:
            push(opened_now.latest, -1, opened_now)


def _floor(value: float) -> int:
    return math.floor(value + SLACK * max(1.0, abs(value)))
