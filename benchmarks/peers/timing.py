"""How a peer's time is taken: as ours is, without JAX."""

import time
from collections.abc import Callable
from typing import Any


def milliseconds(work: Callable[[], Any], repeats: int = 5, units: int = 1) -> float:
    """The least of several timings of `work()`, which must wait for its result, per unit.

    A first call warms up.
    """
    work()
    times = []
    for _ in range(repeats):
        began = time.perf_counter()
        work()
        times.append(time.perf_counter() - began)
    return 1e3 * min(times) / units
