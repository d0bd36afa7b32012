"""How a peer's time is taken: as ours is, without JAX."""

import time
from collections.abc import Callable
from typing import Any


def milliseconds(
    work: Callable[..., Any],
    repeats: int = 5,
    units: int = 1,
    fresh: Callable[[], tuple] = tuple,
) -> float:
    """The least of several timings of `work()`, which must wait for its result, per unit.

    A first call warms up. `fresh` makes the arguments of each call, which is not timed: for work that
    overwrites them.
    """
    work(*fresh())
    times = []
    for _ in range(repeats):
        given = fresh()
        began = time.perf_counter()
        work(*given)
        times.append(time.perf_counter() - began)
    return 1e3 * min(times) / units


def timed(work: Callable[[], Any], units: int) -> tuple[float, float, Any]:
    """Milliseconds of a long `work()` per unit, by the clock and of CPU, and what it found.

    A first call warms up. `work` must return NumPy's arrays or JAX's, which are waited for.
    """
    for _ in range(2):
        began, began_cpu = time.perf_counter(), time.process_time()
        found = work()
        for leaf in found.values():
            getattr(leaf, "block_until_ready", lambda: None)()
        ended, ended_cpu = time.perf_counter(), time.process_time()
    return 1e3 * (ended - began) / units, 1e3 * (ended_cpu - began_cpu) / units, found
