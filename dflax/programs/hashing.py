"""A hash of a traced program: the same in every process, another for every other computation."""

import hashlib
import re
from typing import Any

import jax
import numpy as np
from jax.extend.core import ClosedJaxpr, Jaxpr, Literal

# What these parameters of an operation say has no part in its result.
_COSMETIC = {"name", "debug_info"}


def of_program(traced: ClosedJaxpr) -> str:
    """Of every operation with its parameters, and of every constant by value."""
    return _closed(traced, {})


def of_text(value: Any) -> str:
    """Of what a value looks like, without the addresses in it."""
    return _sha256(_plain(value))


def _closed(traced: ClosedJaxpr, seen: dict[int, str]) -> str:
    return _sha256([_operations(traced.jaxpr, seen), *map(_constant, traced.consts)])


def _operations(program: Jaxpr, seen: dict[int, str]) -> str:
    """Variables are numbered in the order of their definition, whatever they are called."""
    if id(program) in seen:
        return seen[id(program)]
    numbers: dict[Any, int] = {}

    def define(variables: Any) -> list[str]:
        for variable in variables:
            numbers[variable] = len(numbers)
        return [str(variable.aval) for variable in variables]

    def use(variables: Any) -> list[Any]:
        return [
            _constant(variable.val) + str(variable.aval)
            if isinstance(variable, Literal)
            else numbers[variable]
            for variable in variables
        ]

    def parameter(value: Any) -> Any:
        if isinstance(value, ClosedJaxpr):
            return _closed(value, seen)
        if isinstance(value, Jaxpr):
            return _operations(value, seen)
        if isinstance(value, (tuple, list)):
            return [parameter(item) for item in value]
        if isinstance(value, (set, frozenset)):
            return sorted(map(_plain, value))
        if isinstance(value, (np.ndarray, jax.Array)):
            return _constant(value)
        return _plain(value)

    parts: list[Any] = [define(program.constvars), define(program.invars)]
    for operation in program.eqns:
        parameters = [
            [name, parameter(value)]
            for name, value in sorted(operation.params.items())
            if name not in _COSMETIC
        ]
        used = use(operation.invars)
        parts.append([operation.primitive.name, used, parameters, define(operation.outvars)])
    parts.append(use(program.outvars))
    seen[id(program)] = _sha256(parts)
    return seen[id(program)]


def _constant(value: Any) -> str:
    if isinstance(value, jax.Array) and jax.dtypes.issubdtype(value.dtype, jax.dtypes.prng_key):
        value = jax.random.key_data(value)
    if isinstance(value, jax.Array) and not value.is_fully_addressable:
        return _plain(jax.typeof(value))
    if not isinstance(value, (np.ndarray, np.generic, jax.Array, bool, int, float, complex)):
        return _plain(value)
    numbers = np.ascontiguousarray(value)
    return f"{numbers.dtype}{numbers.shape}{hashlib.sha256(numbers.tobytes()).hexdigest()}"


def _plain(value: Any) -> str:
    """A text that is the same in every process: no addresses in it."""
    return re.sub(r" ?(at )?0x[0-9a-fA-F]+", "", str(value))


def _sha256(value: Any) -> str:
    return hashlib.sha256(repr(value).encode()).hexdigest()[:16]
