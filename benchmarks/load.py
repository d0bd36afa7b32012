"""What else ran on the machine while something was measured."""

import os
import pathlib
import resource
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from benchmarks.measure import milliseconds
from benchmarks.peers import watched

# Shares from which a row says that it ran beside other load.
OTHERS, KEPT = 0.1, 0.9
STAT = pathlib.Path("/proc/stat")


class Load(NamedTuple):
    """What a measurement met.

    Attributes:
      ceiling: operations per second of a matrix product, the lesser of before and after.
      others: share of all cores' time that went to processes other than this one and its children;
        None where the system does not tell.
    """

    ceiling: float
    others: float | None

    def beside(self, best: float) -> bool:
        """Whether others ran, or the ceiling was clearly below the best of the whole run."""
        return (self.others or 0.0) > OTHERS or self.ceiling < KEPT * best


def under_watch(measure: Callable[[], Any]) -> tuple[Any, Load]:
    """What `measure()` returns, and the load beside it."""
    ceiling, began = _ceiling(), _times()
    found = measure()
    ended = _times()
    others = None
    if began is not None and ended is not None:
        busy, whole, own = (after - before for after, before in zip(ended, began, strict=True))
        others = max(busy - own, 0.0) / max(whole, 1e-9)
    return found, Load(min(ceiling, _ceiling()), others)


def _ceiling() -> float:
    """Operations per second of a product that takes some milliseconds."""
    size = 1024 if jax.default_backend() == "cpu" else 8192
    matrix = jnp.ones((size, size))
    product = jax.jit(jnp.matmul)
    return 2.0 * size**3 / (1e-3 * milliseconds(lambda: product(matrix, matrix), repeats=9))


def _times() -> tuple[float, float, float] | None:
    """Seconds since the start: of busy cores, of all cores, of this process with all below it."""
    if not STAT.exists():
        return None
    # user, nice, system, idle, waiting, interrupts, soft interrupts, stolen: of all cores together.
    ticks = [int(word) for word in STAT.read_text().split("\n", 1)[0].split()[1:9]]
    whole = sum(ticks) / os.sysconf("SC_CLK_TCK")
    idle = (ticks[3] + ticks[4]) / os.sysconf("SC_CLK_TCK")
    own = watched.lost
    for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN):
        usage = resource.getrusage(who)
        own += usage.ru_utime + usage.ru_stime
    return whole - idle, whole, own
