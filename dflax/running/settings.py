"""Hyper-parameters by the names that they have in the code: what closures, tuples and objects hold."""

import dataclasses
import functools
import inspect
import re
from typing import Any

import jax
import numpy as np

# Names found, and steps from one value into the next, at most.
MOST = 2000
DEEPEST = 14
# Numbers of an array that are shown one by one.
SHOWN = 8


def settings(name: str, value: Any) -> dict[str, str]:
    """What a function or object was made with, for messages: `{"algorithm.step.work.rate": "0.1"}`.

    Follows closures, default arguments, partial functions, named tuples, containers and the attributes
    of objects. Large arrays count by shape. Two factories' results with the same settings need not
    compute the same; what they compute is what `fingerprint.computation` hashes.
    """
    found: dict[str, str] = {}
    _look(name, value, found, set(), 0)
    return found


def shown(value: Any) -> str | None:
    """The numbers of a small array; None of a large one or of something else."""
    if isinstance(value, jax.core.Tracer):
        return None
    if isinstance(value, jax.Array) and jax.dtypes.issubdtype(value.dtype, jax.dtypes.prng_key):
        value = jax.random.key_data(value)
    if isinstance(value, jax.Array) and not value.is_fully_addressable:
        return None
    if not isinstance(value, (jax.Array, np.ndarray, np.generic)) or np.size(value) > SHOWN:
        return None
    return str(np.asarray(value).tolist())


def _look(name: str, value: Any, found: dict[str, str], seen: set[int], depth: int) -> None:
    if len(found) >= MOST or depth > DEEPEST:
        return
    if value is None or isinstance(value, (bool, int, float, complex, str)):
        found[name] = repr(value)[:80]
        return
    if isinstance(value, (jax.Array, np.ndarray, np.generic)):
        found[name] = shown(value) or f"{value.dtype}{list(value.shape)}"
        return
    if id(value) in seen or inspect.ismodule(value) or inspect.isclass(value):
        return
    seen.add(id(value))
    if code := getattr(value, "__qualname__", None):
        found[name] = re.sub(r"\.?<locals>\.?", ".", f"{value.__module__}.{code}")
    for part, inner in _parts(value):
        _look(f"{name}{part}", inner, found, seen, depth + 1)


def _parts(value: Any) -> list[tuple[str, Any]]:
    if isinstance(value, functools.partial):
        given = [("", value.func), *((f"[{n}]", item) for n, item in enumerate(value.args))]
        return given + [(f".{name}", item) for name, item in value.keywords.items()]
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return [(f".{name}", item) for name, item in zip(value._fields, value, strict=True)]
    if isinstance(value, dict):
        return [(f"[{key!r}]", item) for key, item in value.items()]
    if isinstance(value, (list, tuple)):
        return [(f"[{number}]", item) for number, item in enumerate(value)]
    if inspect.ismethod(value):
        return [("", value.__func__), (".self", value.__self__)]
    if inspect.isfunction(value):
        return _closed_over(value)
    if hasattr(value, "__wrapped__"):
        return [("", value.__wrapped__)]
    if dataclasses.is_dataclass(value):
        fields = [field.name for field in dataclasses.fields(value)]
        return [(f".{name}", getattr(value, name, None)) for name in fields]
    return [(f".{name}", item) for name, item in getattr(value, "__dict__", {}).items()]


def _closed_over(function: Any) -> list[tuple[str, Any]]:
    names = function.__code__.co_freevars
    cells = zip(names, function.__closure__ or (), strict=True)
    parts = []
    for name, cell in cells:
        try:
            parts.append((f".{name}", cell.cell_contents))
        except ValueError:  # a cell that is not filled yet
            continue
    positional = function.__code__.co_varnames[: function.__code__.co_argcount]
    defaults = function.__defaults__ or ()
    given = dict(zip(positional[len(positional) - len(defaults) :], defaults, strict=True))
    given |= function.__kwdefaults__ or {}
    return parts + [(f".{name}", item) for name, item in given.items()]
