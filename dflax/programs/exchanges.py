"""The least that devices have to send each other: noted where the parts of a round are traced."""

import contextlib
import itertools
import math
import re
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from typing import Any

import jax

from dflax.programs.walk import Operation, Program, inner, operands, results

_numbers: ContextVar[Iterator[int] | None] = ContextVar("numbers", default=None)
_rows: ContextVar[int] = ContextVar("rows", default=1)
_NOTE = re.compile(r"sends\.(\d+)\.(\d+)")


@contextlib.contextmanager
def noting() -> Iterator[None]:
    """While this lasts, what is traced carries its `sends` in the names of its operations."""
    token = _numbers.set(itertools.count())
    try:
        yield
    finally:
        _numbers.reset(token)


@contextlib.contextmanager
def sends(least: Callable[[], float]) -> Iterator[None]:
    """Says of the operations within that together a device must send so many bytes for them.

    For exchanges that the compiler makes, which a traced program does not show. Elsewhere than under
    `noting` nothing is written down.

    Args:
      least: computes the number of bytes.
    """
    numbers = _numbers.get()
    if numbers is None:
        yield
    else:
        with jax.named_scope(f"sends.{next(numbers)}.{math.ceil(_rows.get() * least())}"):
            yield


@contextlib.contextmanager
def for_each_of(rows: int) -> Iterator[None]:
    """While this lasts, what is traced is for one of so many rows: of a `vmap`, that hides them."""
    token = _rows.set(_rows.get() * rows)
    try:
        yield
    finally:
        _rows.reset(token)


def size(tree: Any) -> int:
    """Bytes of all arrays of a tree together."""
    return sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


def mean_over(devices: int, bytes: float) -> float:
    """Of a sum over p devices of b bytes each, `2 b (p - 1) / p`: a reduce-scatter, an all-gather."""
    return 2 * bytes * (devices - 1) / devices


def gathered_by(devices: int, bytes: float) -> float:
    """Of b bytes on p devices that all of them need, `b (p - 1) / p`."""
    return bytes * (devices - 1) / devices


def least_sent(program: Program, devices: int) -> float:
    """Bytes that each of p devices must send for what is noted in a program, and for its own exchanges.

    A loop of unknown length counts once, and so does each branch of a conditional.

    Args:
      program: traced under `noting`.
      devices: p.
    """
    total, noted = 0.0, set()
    for operation in program.eqns:
        notes = dict(_NOTE.findall(str(operation.source_info.name_stack)))
        if notes:
            total += sum(float(bytes) for note, bytes in notes.items() if note not in noted)
            noted |= set(notes)
            continue
        total += _exchange(operation, devices)
        one_device = operation.primitive.name == "shard_map"
        for part in inner(operation):
            # Of the devices among which it is written out, those that share a model count together.
            times = max(1, part.times // devices) if one_device else part.times
            total += times * least_sent(part.program, devices)
    return total


def _exchange(operation: Operation, devices: int) -> float:
    """What an exchange that is written in the program sends; 0 for any other operation."""
    name = operation.primitive.name
    if name.startswith(("psum", "pmax", "pmin")) and "scatter" not in name:
        return mean_over(devices, sum(map(_bytes, operands(operation))))
    if name.startswith("all_gather"):
        return gathered_by(devices, sum(map(_bytes, results(operation))))
    if name in ("all_to_all", "reduce_scatter"):
        return gathered_by(devices, sum(map(_bytes, operands(operation))))
    return float(sum(map(_bytes, operands(operation)))) if name == "ppermute" else 0.0


def _bytes(array: Any) -> int:
    return math.prod(array.shape) * array.dtype.itemsize
