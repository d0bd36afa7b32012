"""How a row is measured."""

import dataclasses
import time
from collections.abc import Callable
from typing import Any

import jax


@dataclasses.dataclass(frozen=True)
class Row:
    """One line of the table.

    Attributes:
      name: what is timed.
      ours_ms: our time in milliseconds.
      peer: what it is compared with, and its version; None where there is nothing, or what is missing.
      peer_ms: the peer's time for the same work in the same run.
      limit_ms: the least time the hardware needs for the work, by ceilings measured in the same run.
      compile_ms: tracing and compiling.
      peak_bytes: memory that the compiled program needs at once: arguments, results, temporaries.
      flops: operations of the work, loops multiplied out.
      bytes: memory traffic of the compiled program as XLA estimates it, the body of a loop once.
      ceiling: operations per second of a matrix product around this row's measurement, see `load.py`.
      others: share of all cores' time that other processes took meanwhile.
      beside_load: whether either says that the row did not have the machine to itself.
    """

    name: str
    ours_ms: float
    peer: str | None = None
    peer_ms: float | None = None
    limit_ms: float | None = None
    compile_ms: float | None = None
    peak_bytes: int | None = None
    flops: float | None = None
    bytes: float | None = None
    ceiling: float | None = None
    others: float | None = None
    beside_load: bool = False

    @property
    def ratio(self) -> float | None:
        """How many times faster than the peer."""
        return None if self.peer_ms is None else self.peer_ms / self.ours_ms

    @property
    def share_of_limit(self) -> float | None:
        """Which part of the hardware's speed is reached."""
        return None if self.limit_ms is None else self.limit_ms / self.ours_ms

    def beside(self, *measured: dict[str, Any] | None) -> list["Row"]:
        """A row for each peer that `benchmarks.peers.run` measured; the row alone where none was."""
        found = [peer for peer in measured if peer is not None]
        rows = [dataclasses.replace(self, peer=p["peer"], peer_ms=p["ms"]) for p in found]
        return rows or [self]

    def as_json(self) -> dict[str, Any]:
        """The row as it stands in results/benchmarks.json."""
        return dataclasses.asdict(self) | {
            "ratio": self.ratio,
            "share_of_limit": self.share_of_limit,
        }


def milliseconds(work: Callable[[], Any], repeats: int = 5, units: int = 1) -> float:
    """The least of several timings of `work()`, waited for, per unit; a first call warms up."""
    jax.block_until_ready(work())
    times = []
    for _ in range(repeats):
        began = time.perf_counter()
        jax.block_until_ready(work())
        times.append(time.perf_counter() - began)
    return 1e3 * min(times) / units


def alternately(*works: Callable[[], Any], repeats: int = 5) -> list[float]:
    """The least milliseconds of each of several works that take turns, so that noise meets all."""
    for work in works:
        jax.block_until_ready(work())
    least = [float("inf")] * len(works)
    for _ in range(repeats):
        for number, work in enumerate(works):
            began = time.perf_counter()
            jax.block_until_ready(work())
            least[number] = min(least[number], 1e3 * (time.perf_counter() - began))
    return least
