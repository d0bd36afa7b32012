"""Every public callable, called with one argument wrong at a time."""

import ast
import contextlib
import enum
import inspect
import pathlib
import re
import signal
import threading
import traceback
import types
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np

import dflax

PACKAGE = str(pathlib.Path(dflax.__file__).parent)
LONGEST_MESSAGE = 1_000
LONGEST_CALL = 20.0

# A name and a value for every kind of mistake. What a value of one kind is right for is found in
# `rightful` below, or listed one by one in `legitimate.py`.
WRONG = {
    "None": None,
    "True": True,
    "word": "no",
    "digit": "3",
    "bytes": b"3",
    "complex": 0.5 + 0.5j,
    "nan": float("nan"),
    "inf": float("inf"),
    "-1": -1,
    "0.5": 0.5,
    "3": 3,
    "2^40": 2**40,
    "[]": [],
    "{}": {},
    "array[0]": np.zeros(0),
    "array[2,3,4]": np.full((2, 3, 4), 0.5),
    "array-of-words": np.array(["no", "yes"]),
    "array-of-NaN": np.full(3, np.nan),
    "rows": [[0.5] * 40] * 100,
    "object": object(),
    "function": lambda: 3,
}


class Call(NamedTuple):
    """One wrong call: what is called, which argument is wrong, and in what way."""

    name: str
    argument: str
    kind: str


def public() -> dict[str, Callable]:
    """All callables that a user reaches from `dflax`, by their shortest names without "dflax.".

    Of a package these are the names that its `__init__` imports, of a module those that it defines.
    Types of values (NamedTuples, enumerations, protocols, type aliases) are no doors.
    """
    found: dict[int, tuple[str, Callable]] = {}
    # Breadth first, so that the shortest way to a name is found first.
    modules = [("", dflax)]
    for path, module in modules:
        for name in _names(module):
            value = getattr(module, name)
            if isinstance(value, types.ModuleType):
                if value not in [known for _, known in modules]:
                    modules.append((f"{path}{name}.", value))
            elif callable(value) and not _is_type_of_values(value):
                found.setdefault(id(value), (f"{path}{name}", value))
    return dict(sorted(found.values()))


def _names(module: types.ModuleType) -> Iterator[str]:
    if hasattr(module, "__path__"):
        # What `test_public_names` holds equal to the names that a package imports.
        yield from module.__all__
        return
    for node in ast.parse(inspect.getsource(module)).body:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)) and not node.name.startswith("_"):
            yield node.name


def _is_type_of_values(value: Any) -> bool:
    if not isinstance(value, type):
        return not inspect.isfunction(value)
    plain = issubclass(value, (tuple, enum.Enum, BaseException)) or getattr(
        value, "_is_protocol", False
    )
    return plain or value.__module__ == "typing"


def calls(function: Callable, right: dict[str, Any]) -> Iterator[tuple[str, str, Callable]]:
    """Every wrong call of one function: the argument, the kind, and what makes the call."""
    parameters = inspect.signature(function).parameters
    for argument, value in arguments(function, right).items():
        # What is not in the signature is one of the `**options`, all of which may be left out.
        optional = argument not in parameters or parameters[argument].default is None
        for kind, wrong in WRONG.items():
            if not (rightful(kind, value) or (optional and wrong is None)):
                yield argument, kind, bound(function, {**right, argument: wrong})


def arguments(function: Callable, right: dict[str, Any]) -> dict[str, Any]:
    """Right values of all arguments: those of the call, and defaults."""
    parameters = inspect.signature(function).parameters.values()
    defaults = {
        one.name: one.default
        for one in parameters
        if one.default is not one.empty and not _of_flax(one.name, function)
    }
    return {**defaults, **right}


def _of_flax(argument: str, function: Callable) -> bool:
    return isinstance(function, type) and argument in ("parent", "name")


def bound(function: Callable, values: dict[str, Any]) -> Callable:
    """The call with these values by name; a starred argument gets its one value alone."""
    starred = [
        one.name
        for one in inspect.signature(function).parameters.values()
        if one.kind is one.VAR_POSITIONAL
    ]
    if not starred or starred[0] not in values:
        return lambda: function(**values)
    names = list(inspect.signature(function).parameters)
    before = [values[name] for name in names[: names.index(starred[0])]]
    named = {name: values[name] for name in values if name not in names[: len(before) + 1]}
    return lambda: function(*before, values[starred[0]], **named)


def rightful(kind: str, right: Any) -> bool:
    """Whether a value of this kind may well be right where `right` is."""
    if kind == "None":
        return right is None
    if kind == "True":
        return isinstance(right, bool)
    if kind == "function":
        return callable(right)
    if isinstance(right, bool) or right is None:
        return False
    if isinstance(right, int):
        return kind == "3"
    return isinstance(right, float) and kind == "0.5"


def refusal(call: Callable, argument: str) -> str | None:
    """None for a call that is refused well, else what is wrong with what happened."""
    try:
        with _time_limit():
            call()
    except (TypeError, ValueError) as error:
        raised_by = traceback.extract_tb(error.__traceback__)[-1].filename
        message = str(error)
        if not raised_by.startswith(PACKAGE):
            where = pathlib.Path(raised_by).name
            return f"{type(error).__name__} of {where}: {_line(message)}"
        if not re.search(rf"\b{re.escape(argument)}\b", message):
            return f"not named: {_line(message)}"
        if len(message) > LONGEST_MESSAGE:
            return f"{len(message)} characters: {_line(message)}"
        return None
    except Exception as error:
        return f"{type(error).__name__}: {_line(str(error))}"
    return "accepted"


def _line(message: str) -> str:
    return " ".join(message[:300].split())[:140]


@contextlib.contextmanager
def _time_limit() -> Iterator[None]:
    """A call that goes to work on a wrong value must not hold up the walk."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(*_: Any) -> None:
        raise TimeoutError(f"still at work after {LONGEST_CALL:g} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, LONGEST_CALL)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0.0)
        signal.signal(signal.SIGALRM, before)
