"""Requests to a language model, as a table in the order of their arrival."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Array, Float, Int

from dflax import validation
from dflax.algorithm import Algorithm

OPTIONAL = ("scenario", "prefix", "shared")
Numbers = Array | np.ndarray | Sequence[float]


class Requests(NamedTuple):
    """n requests, one a row.

    A trace on the host holds times in float64. Within a compiled program they are float32 and count
    from the beginning of a block of requests, which is where the block before it ended.

    Attributes:
      arrived: `[n]` seconds, not decreasing.
      prompt: `[n]` int32, tokens of the prompt, >= 1.
      output: `[n]` int32, tokens of the answer, >= 1.
      scenario: `[n]` int32, which kind of traffic the request belongs to.
      prefix: `[n]` int32, the number of the prefix that it shares with others; -1 for none.
      shared: `[n]` int32, how many of the prompt's first tokens are that prefix's.
    """

    arrived: Float[Array, " n"]
    prompt: Int[Array, " n"]
    output: Int[Array, " n"]
    scenario: Int[Array, " n"]
    prefix: Int[Array, " n"]
    shared: Int[Array, " n"]


def trace(
    arrived: Numbers,
    prompt: Numbers,
    output: Numbers,
    *,
    scenario: Numbers | None = None,
    prefix: Numbers | None = None,
    shared: Numbers | None = None,
) -> Requests:
    """A trace on the host, checked: times in float64, counts in int32.

    Args:
      arrived: `[n]` seconds, not decreasing; n >= 1.
      prompt: `[n]` tokens, >= 1.
      output: `[n]` tokens, >= 1.
      scenario: `[n]` numbers >= 0; default 0 for all.
      prefix: `[n]` numbers >= -1, -1 for none; default none.
      shared: `[n]` tokens of the prompt that are the prefix's, 0 where there is none; default 0.

    Returns:
      `Requests` of NumPy arrays.

    Raises:
      TypeError, ValueError: naming the argument; times out of order; more tokens shared than the
        prompt has; tokens shared with no prefix.
    """
    times: Any = validation.array("arrived", arrived, kind="real", shape=("n",)).astype(np.float64)
    if np.any(np.diff(times) < 0):
        row = int(np.argmax(np.diff(times) < 0)) + 1
        raise ValueError(
            f"arrived must not decrease, got {times[row]:g} after {times[row - 1]:g} in row {row}. "
            "Sort the rows by their time."
        )
    rows = (len(times),)
    fix = "Drop requests without tokens."
    most = validation.LARGEST_COUNT
    columns = {
        "prompt": (prompt, 1, fix),
        "output": (output, 1, fix),
        "scenario": (scenario, 0, ""),
        "prefix": (prefix, -1, ""),
        "shared": (shared, 0, ""),
    }
    found: dict[str, Any] = {}
    for name, (value, low, how) in columns.items():
        if value is None and name in OPTIONAL:
            found[name] = np.full(rows, low if name != "shared" else 0, np.int32)
            continue
        found[name] = validation.array(
            name, value, kind="integer", shape=rows, low=low, high=most, fix=how
        ).astype(np.int32)
    if np.any(found["shared"] > found["prompt"]):
        row = int(np.argmax(found["shared"] > found["prompt"]))
        raise ValueError(
            f"shared must not exceed the prompt, got {found['shared'][row]} of "
            f"{found['prompt'][row]} tokens in row {row}."
        )
    if np.any((found["shared"] > 0) & (found["prefix"] < 0)):
        row = int(np.argmax((found["shared"] > 0) & (found["prefix"] < 0)))
        raise ValueError(
            f"prefix must name the prefix whose tokens are shared, got -1 in row {row}."
        )
    return Requests(times, **found)


def blocks(requests: Requests, size: int) -> Requests:
    """Cuts a trace into blocks, the table of a `dflax.Events`: every round gets the next block.

    Times of a block count from the last arrival before it (those of the first from its own first
    arrival), as float32: a trace of weeks keeps its milliseconds.

    Args:
      requests: from `trace`, `read_trace` or a draw.
      size: requests of a block, >= 1; must divide n.

    Returns:
      `Requests` with leaves `[n / size, size]`.

    Raises:
      TypeError, ValueError: naming the argument; `size` does not divide n.
    """
    validation.instance("requests", requests, Requests, "Make them with dflax.inference.trace.")
    validation.integer("size", size, low=1)
    checked = trace(requests.arrived, requests.prompt, requests.output, **_others(requests))
    count = len(checked.arrived)
    if count % size:
        raise ValueError(
            f"size must divide the {count} requests, got {size}. Cut the trace to its first "
            f"{count - count % size} rows."
        )
    cut = jax.tree.map(lambda column: column.reshape(-1, size), checked)
    begins = np.concatenate([cut.arrived[:1, 0], cut.arrived[:-1, -1]])
    return cut._replace(arrived=(cut.arrived - begins[:, None]).astype(np.float32))


def at_rate(algorithm: Algorithm, rate: float | Float[Array, ""]) -> Algorithm:
    """The simulator with all arrivals `rate` times as dense, so that loads are a sweep.

    Args:
      algorithm: whose rounds are `(Requests, key)`.
      rate: > 0; traceable. Traffic of one request a second becomes traffic of `rate` requests.

    Raises:
      TypeError, ValueError: naming the argument.
    """
    validation.instance("algorithm", algorithm, Algorithm)
    validation.real("rate", rate, low=0.0, low_open=True, scalar=True)

    def step(state, round):
        requests, key = round
        return algorithm.step(state, (requests._replace(arrived=requests.arrived / rate), key))

    return Algorithm(algorithm.init, step)


def _others(requests: Requests) -> dict[str, Any]:
    return {name: getattr(requests, name) for name in OPTIONAL}
