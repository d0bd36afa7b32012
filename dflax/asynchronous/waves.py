"""A timetable as rounds: steps of the server whose clients can be trained together share one."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Int

from dflax import validation
from dflax.asynchronous.timetable import Timetable

# How much work of empty places a timetable may cost beside its own.
WASTE = 0.1
# How many widths are tried.
WIDTHS = 32


class Waves(NamedTuple):
    """How a timetable's steps are cut into rounds.

    A wave is a run of steps of the server whose arrivals start from models that exist before it, each
    client once. So they are trained side by side, and applied one step after another.

    Attributes:
      timetable: what is cut.
      width: m, how many clients a wave has room for; static.
      chunk: how many clients are trained at the same time; it divides the width. A chunk of a wave in
        which nobody is does nothing.
      begins: `[W + 1]` the number of the first step of each wave, and the number of all steps.
      start: `[A]` in which of the server's places for models an arrival's model lies.
      write: `[T]` where the model after each step goes; S for a model that nobody starts from.
      slots: S, how many models the server keeps for those who work on them; static.
      most_steps: room for the server's steps of a wave; static.
      most_arrivals: room for the arrivals of a step; static.
      keeps: whether clients have room for changes that are kept for later; static.
    """

    timetable: Timetable
    width: int
    chunk: int
    begins: Int[np.ndarray, " W+1"]
    start: Int[np.ndarray, " A"]
    write: Int[np.ndarray, " T"]
    slots: int
    most_steps: int
    most_arrivals: int
    keeps: bool

    @property
    def room(self) -> tuple[int, int, int, int, int]:
        """What an algorithm has room for: places, steps, arrivals of a step, models, kept changes."""
        return self.width, self.most_steps, self.most_arrivals, self.slots, int(self.keeps)

    @property
    def rounds(self) -> int:
        """W, how many rounds the timetable takes."""
        return len(self.begins) - 1

    @property
    def counts(self) -> Int[np.ndarray, " W"]:
        """How many clients each wave has."""
        return np.diff(self.timetable.first[self.begins])

    @property
    def together(self) -> float:
        """How many clients are trained at the same time, on average."""
        return float(self.counts.sum() / max(1, (-(-self.counts // self.chunk)).sum()))

    @property
    def waste(self) -> float:
        """The share of places that cost as much as a client and hold none, of the arrivals."""
        return _spent(self.counts, self.chunk) / max(1, int(self.counts.sum())) - 1.0


def waves(
    timetable: Timetable,
    width: int | None = None,
    chunk: int | None = None,
    *,
    steps: int | None = None,
) -> Waves:
    """The waves of a timetable.

    Args:
      timetable: see `dflax.asynchronous.fedfix` and its siblings.
      width: how many clients a wave has room for, at least the arrivals of the largest step and at
        most n. Default the one with the largest chunk, then the narrowest.
      chunk: how many are trained at the same time; it divides the width. Default the largest with
        which less than a tenth of the work is of empty places.
      steps: how many steps of the server a wave has at most; 1 to see the model after every step.
        Default any number.

    Raises:
      TypeError, ValueError: naming the argument.
    """
    validation.instance("timetable", timetable, Timetable, "Make one with dflax.asynchronous.")
    population = timetable.population
    least = max(1, int(np.diff(timetable.first).max()))
    if steps is not None:
        validation.integer("steps", steps, low=1)
    if width is not None:
        validation.integer("width", width, low=least, high=population)
        tried = [width]
    else:
        between = range(population, least, -max(1, population // WIDTHS))
        tried = sorted({least, *between}, reverse=True)
    if chunk is not None:
        validation.integer("chunk", chunk, low=1, high=tried[0])
    best: tuple[int, int, Int[np.ndarray, " W+1"]] | None = None
    for room in tried:
        begins = _cut(timetable, room, steps)
        counts = np.diff(timetable.first[begins])
        side = _chunk(counts, room) if chunk is None else chunk
        if best is None or (side, -room) > (best[1], -best[0]):
            best = room, side, begins
    assert best is not None
    room, side, begins = best
    if room % side:
        raise ValueError(f"chunk must divide the width, {room}, got {side}.")
    slots, start, write = _places(timetable, begins)
    most = int(np.diff(begins).max())
    return Waves(timetable, room, side, begins, start, write, slots, most, least, timetable.keeps)


def alike(cuts: Sequence[Waves]) -> list[Waves]:
    """The same waves with equal shapes: one program then runs several timetables side by side.

        cuts = alike([waves(table, width=n) for table in tables])
        sources = [join(federation, cut) for cut in cuts]        # for `dflax.sweep` or `side_by_side`
        algorithm = asynchronous_server(loss, optimizer, cuts[0])

    Shorter ones get empty waves at their ends, in which nothing happens.

    Args:
      cuts: waves of as many clients and of one width.

    Raises:
      TypeError, ValueError: naming the argument.
    """
    given = validation.sequence("cuts", cuts, "waves, see dflax.asynchronous.waves")
    for cut in given:
        validation.instance("cuts", cut, Waves, "Make them with dflax.asynchronous.waves.")
    sizes = {(cut.timetable.population, cut.width) for cut in given}
    if len(sizes) > 1:
        raise ValueError(
            f"cuts must have one number of clients and one width, got {sorted(sizes)}. Say the width: "
            "dflax.asynchronous.waves(timetable, width=n)."
        )
    counts, width = np.concatenate([cut.counts for cut in given]), given[0].width
    slots = max(cut.slots for cut in given)
    shared = {
        "chunk": _chunk(counts, width),
        "slots": slots,
        "most_steps": max(cut.most_steps for cut in given),
        "most_arrivals": max(cut.most_arrivals for cut in given),
        "keeps": any(cut.keeps for cut in given),
    }
    rounds = max(cut.rounds for cut in given)
    return [
        cut._replace(
            begins=np.pad(cut.begins, (0, rounds - cut.rounds), mode="edge"),
            write=np.where(cut.write == cut.slots, slots, cut.write).astype(np.int32),
            **shared,
        )
        for cut in given
    ]


def _cut(timetable: Timetable, width: int, steps: int | None) -> Int[np.ndarray, " W+1"]:
    """Greedily: a wave ends where a step's model does not exist before it, or a client comes twice."""
    begins, here, seen = [0], 0, set[int]()
    spans = list(zip(timetable.first[:-1], timetable.first[1:], strict=True))
    clients, versions = timetable.clients.tolist(), timetable.versions.tolist()
    for number, (low, high) in enumerate(spans):
        arrived = clients[low:high]
        fits = (
            len(seen) + high - low <= width
            and (steps is None or number - begins[-1] < steps)
            and max(versions[low:high], default=0) <= here
            and seen.isdisjoint(arrived)
        )
        if not fits:
            begins.append(number)
            here, seen = number, set()
        seen.update(arrived)
    return np.array([*begins, len(spans)])


def _chunk(counts: Int[np.ndarray, " W"], width: int) -> int:
    """The largest divisor of the width that wastes little."""
    work = int(counts.sum())
    sizes = [size for size in range(width, 0, -1) if width % size == 0]
    return next(size for size in sizes if _spent(counts, size) <= (1 + WASTE) * max(1, work))


def _spent(counts: Int[np.ndarray, " W"], chunk: int) -> int:
    """Clients' worth of work, with that of empty places of chunks that are not quite empty."""
    return int((-(-counts // chunk) * chunk).sum())


def _places(
    timetable: Timetable, begins: Int[np.ndarray, " W+1"]
) -> tuple[int, Int[np.ndarray, " A"], Int[np.ndarray, " T"]]:
    """Where models lie until the last wave that starts from them, in as few places as will do."""
    waves_of_steps = np.repeat(np.arange(len(begins) - 1), np.diff(begins))
    wave_of_arrival = waves_of_steps[timetable.of_step]
    last = np.full(len(timetable.time) + 1, -1)
    trained = timetable.steps > 0
    np.maximum.at(last, timetable.versions[trained], wave_of_arrival[trained])
    place = np.zeros(len(last), np.int32)
    # Version 0 lies in place 0 from the start.
    free, used = list[int](), 1
    ends: dict[int, list[int]] = {}
    if last[0] >= 0:
        ends[int(last[0])] = [0]
    else:
        free.append(0)
    for wave in range(len(begins) - 1):
        # What this wave starts from is read before anything is written.
        free += ends.pop(wave, [])
        for version in range(begins[wave] + 1, begins[wave + 1] + 1):
            if last[version] < 0:
                place[version] = -1
                continue
            if not free:
                free.append(used)
                used += 1
            place[version] = free.pop()
            ends.setdefault(int(last[version]), []).append(int(place[version]))
    write = np.where(place[1:] < 0, used, place[1:]).astype(np.int32)
    return used, np.where(trained, place[timetable.versions], 0).astype(np.int32), write
