"""What tells two runs apart: the shapes of their trees, the values in them, and what they compute."""

import hashlib
import re
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import ClosedJaxpr, Jaxpr, Literal
from jaxtyping import Array, Key, PyTree

from dflax.algorithm import Algorithm, Metrics, Source, State

# What these parameters of an operation say has no part in its result.
_COSMETIC = {"name", "debug_info"}
_UNSIGNED = {1: jnp.uint8, 2: jnp.uint16, 4: jnp.uint32, 8: jnp.uint32}


def run(
    algorithm: Algorithm,
    state: State,
    source: Source,
    evaluate: Callable[[State], Metrics] | None,
    *,
    key: Key[Array, ""],
    start: int,
    every: int | None,
) -> tuple[dict[str, Any], PyTree[jax.ShapeDtypeStruct]]:
    """What makes a run the run it is, in JSON's types, and the shapes of what it measures in a round.

    Neither depends on the number of rounds, on chunks, or on the number of devices; programs do
    depend on their kind, as on a CPU large clients run one after another.

    Args:
      algorithm: hashed as the operations and constants of one round.
      state: before the first round; its types, and a checksum of its values.
      source: its types, its static parts, and a checksum of its values.
      evaluate: hashed as `algorithm` is; a `jax.tree_util.Partial` or None.
      key: the run's typed key.
      start: number of the first round.
      every: rounds between evaluations.

    Returns:
      The facts under names that a message can show, and (metrics, evaluations, whether there was an
      evaluation) of one round.
    """

    def one_round(state: State, source: Source, key: Array, index: Array) -> tuple[State, Metrics]:
        return algorithm.step(state, source.draw(key, index))

    def measure(evaluate: Callable[[State], Metrics] | None, state: State) -> Metrics:
        return {} if evaluate is None else evaluate(state)

    computed, (_, metrics) = computation(one_round, state, source, key, np.int32(0))
    measured, evaluations = computation(measure, evaluate, state)
    identity = {
        "start": start,
        "state": layout(state),
        "metrics": layout(metrics),
        "evaluations": layout(evaluations),
        "key": f"{jax.random.key_impl(key)} {np.asarray(jax.random.key_data(key)).tolist()}",
        "every": every,
        "source": layout(source),
        "static parts of source": structure(source),
        "values in source": contents(source),
        "values in state at the start": contents(state),
        "algorithm or its hyper-parameters": computed,
        "evaluate": measured,
        "values in evaluate": contents(evaluate),
    }
    return identity, (metrics, evaluations, jax.ShapeDtypeStruct((), np.bool_))


def layout(tree: PyTree[Array]) -> dict[str, str]:
    """The type of every leaf under its path, for example `{".server['w']": "float32[5,3]"}`."""
    return {
        jax.tree_util.keystr(path): f"{leaf.dtype}[{','.join(map(str, leaf.shape))}]"
        for path, leaf in jax.tree_util.tree_leaves_with_path(abstract(tree))
    }


def structure(tree: PyTree[Array]) -> str:
    """A hash of a tree's node types and static parts."""
    return _sha256(_plain(jax.tree.structure(tree)))


def abstract(tree: PyTree[Array]) -> PyTree[jax.ShapeDtypeStruct]:
    """Shapes and types instead of arrays; where the arrays live is forgotten."""

    def describe(leaf: Any) -> jax.ShapeDtypeStruct:
        kind = jax.typeof(leaf)
        return jax.ShapeDtypeStruct(kind.shape, kind.dtype, weak_type=kind.weak_type)

    return jax.tree.map(describe, tree)


def contents(tree: PyTree[Array]) -> str:
    """A checksum of the values of all leaves, computed where they live, the same on any devices.

    Per leaf, with bits b_j as unsigned integers and a mixing function h:
    `sum_j h(b_j xor 2654435769 j) mod 2^32`. Integers, so the order of summation does not matter.
    Two trees that differ have the same checksum with a chance of about 2^-32.
    """
    return _sha256([int(value) for value in jax.device_get(_checksums(jax.tree.leaves(tree)))])


def computation(function: Callable[..., Any], *arguments: Any) -> tuple[str, Any]:
    """A hash of what a function computes, and the shapes of its result.

    Traces the function and hashes every operation with its parameters, and every constant in it by
    value, such as the hyper-parameters that a factory closed over. The same in every process and
    on every device. Not seen are functions that run outside of the compiled program (callbacks).

    Args:
      function: pure.
      *arguments: pytrees of arrays or of `jax.ShapeDtypeStruct`.
    """
    traced, result = jax.make_jaxpr(function, return_shape=True)(*map(abstract, arguments))
    return _closed(traced, {}), result


def differences(name: str, stored: Any, wanted: Any) -> list[str]:
    """Where two trees of dicts differ, a line each: `"name['w']: stored float32[3], wanted None"`."""
    if isinstance(stored, dict) and isinstance(wanted, dict):
        keys = {**wanted, **stored}
        return [line for k in keys for line in differences(name + k, stored.get(k), wanted.get(k))]
    return [] if stored == wanted else [f"{name}: stored {stored}, wanted {wanted}"]


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


@jax.jit
def _checksums(leaves: list[Array]) -> list[Array]:
    return [_checksum(leaf) for leaf in leaves]


def _checksum(leaf: Array) -> Array:
    leaf = jnp.asarray(leaf)
    if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        leaf = jax.random.key_data(leaf)
    if jnp.iscomplexobj(leaf):
        leaf = jnp.stack([leaf.real, leaf.imag])
    if leaf.dtype == jnp.bool_ or jax.dtypes.itemsize_bits(leaf.dtype) < 8:
        leaf = leaf.astype(jnp.float32)
    bits = jax.lax.bitcast_convert_type(leaf, _UNSIGNED[leaf.dtype.itemsize]).astype(jnp.uint32)
    position = jnp.uint32(0)
    for axis, length in enumerate(bits.shape):
        steps = jax.lax.broadcasted_iota(jnp.uint32, bits.shape, axis)
        position = position * jnp.uint32(length) + steps
    mixed = (bits ^ (position * jnp.uint32(0x9E3779B9))) * jnp.uint32(0x85EBCA6B)
    mixed = (mixed ^ (mixed >> 15)) * jnp.uint32(0xC2B2AE35)
    return jnp.sum(mixed ^ (mixed >> 13), dtype=jnp.uint32)


def _plain(value: Any) -> str:
    """A text that is the same in every process: no addresses in it."""
    return re.sub(r" ?(at )?0x[0-9a-fA-F]+", "", str(value))


def _sha256(value: Any) -> str:
    return hashlib.sha256(repr(value).encode()).hexdigest()[:16]
