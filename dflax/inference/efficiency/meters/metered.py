"""Compiled programs under a meter, and a meter that is sampled while something runs."""

import math
import threading
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Float

from dflax import validation
from dflax.inference.efficiency.meters.meter import Meter
from dflax.programs.arithmetic import operations

FIX = "For example dflax.inference.efficiency.modelled(...)."


class Run(NamedTuple):
    """A program that was called again and again. From `metered`.

    Attributes:
      latency: `[calls]` s of each call, waited for.
      energy: J of a call, the mean.
      power: W, mean over all calls.
      flops: operations of a call, loops multiplied out.
      meter: name of the meter that told the energy.
    """

    latency: Float[np.ndarray, " calls"]
    energy: float
    power: float
    flops: float
    meter: str


class Recording(NamedTuple):
    """What a meter said while something ran. From `recorded`.

    Attributes:
      returned: what the work returned.
      time: `[S]` s of `time.perf_counter`.
      power: `[S]` W, mean since the sample before.
      counter: `[S]` J since the beginning.
      meter: its name.
    """

    returned: Any
    time: Float[np.ndarray, " S"]
    power: Float[np.ndarray, " S"]
    counter: Float[np.ndarray, " S"]
    meter: str


def metered(
    function: Callable[..., Any], *arguments: Any, meter: Meter, seconds: float = 0.3
) -> Run:
    """Latency, energy and arithmetic of `function(*arguments)`, compiled, one call after another.

    A call is often far shorter than a meter's resolution, so energy is that of all calls, divided.

    Args:
      function: a pure function of arrays.
      *arguments: its arguments.
      meter: that tells the energy.
      seconds: how long to call, > 0; at least one call is made after one that warms up.

    Raises:
      TypeError, ValueError: naming the argument.
    """
    validation.function("function", function, takes=len(arguments))
    validation.instance("meter", meter, Meter, FIX)
    validation.real("seconds", seconds, low=0.0, low_open=True, scalar=True)
    for place, argument in enumerate(arguments):
        validation.arrays(f"arguments[{place}]", argument)
    traced = jax.jit(function).trace(*arguments)
    program = traced.lower().compile()
    jax.block_until_ready(program(*arguments))
    took: list[float] = []
    mark = meter.begin()
    began = now = time.perf_counter()
    while not took or now - began < seconds:
        jax.block_until_ready(program(*arguments))
        after = time.perf_counter()
        took.append(after - now)
        now = after
    spent = meter.since(mark)
    count = len(took)
    return Run(
        np.asarray(took), spent.joules / count, spent.watts, operations(traced.jaxpr), spent.meter
    )


def recorded(meter: Meter, work: Callable[[], Any], *, every: float = 0.05) -> Recording:
    """Samples the meter in a thread of its own while `work()` runs, for `telemetry`.

    Args:
      meter: whose marks may be asked again and again.
      work: what runs meanwhile.
      every: s between samples, > 0.

    Raises:
      TypeError, ValueError: naming the argument; whatever `work` raises.
    """
    validation.instance("meter", meter, Meter, FIX)
    validation.function("work", work, takes=0)
    validation.real("every", every, low=0.0, low_open=True, scalar=True)
    rows: list[tuple[float, float]] = []
    stop, mark = threading.Event(), meter.begin()

    def sample() -> None:
        rows.append((time.perf_counter(), meter.since(mark).joules))

    def sampling() -> None:
        while not stop.wait(every):
            sample()

    sample()
    thread = threading.Thread(target=sampling, daemon=True)
    thread.start()
    try:
        returned = work()
    finally:
        stop.set()
        thread.join()
    sample()
    times, counter = np.asarray(rows, np.float64).T
    steps = np.diff(times)
    watts = np.diff(counter) / np.where(steps > 0, steps, math.nan)
    return Recording(returned, times, np.append(watts[:1], watts), counter, meter.name)
