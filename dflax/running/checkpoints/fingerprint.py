"""What tells two runs apart: the shapes of their trees, the values in them, and what they compute."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Key, PyTree

from dflax.algorithm import Algorithm, Metrics, Source, State, stepped
from dflax.mesh import collect
from dflax.programs import hashing
from dflax.running.settings import SHOWN, settings, shown

# What a stored run has in common with the one that resumes it, strict or not.
ALWAYS = ("start", "state", "metrics", "evaluations")
# Where the settings lie that tell what a hash hides.
_EXPLAINED = {
    "static parts of source": "source",
    "algorithm or its hyper-parameters": "algorithm",
    "evaluate": "evaluate",
}
_CHECKSUM = "checksum "
_UNSIGNED = {1: jnp.uint8, 2: jnp.uint16, 4: jnp.uint32, 8: jnp.uint32}


class Fingerprint(NamedTuple):
    """What makes a run the run it is.

    Attributes:
      identity: facts in JSON's types, under names that a message can show; equal for equal runs.
      settings: the hyper-parameters behind the hashes among them, by name; for messages only.
    """

    identity: dict[str, Any]
    settings: dict[str, dict[str, str]]


def run(
    algorithm: Algorithm,
    state: State,
    source: Source,
    evaluate: Callable[[State], Metrics] | None,
    *,
    key: Key[Array, ""],
    start: int,
    every: int | None,
) -> Fingerprint:
    """What a run is, whatever its number of rounds, its chunks and the number of its devices.

    Programs do depend on the kind of device, as on a CPU large clients run one after another.

    Args:
      algorithm: hashed as the operations and constants of one round.
      state: before the first round; its types, and checksums of its values.
      source: its types, its static parts, and checksums of its values.
      evaluate: hashed as `algorithm` is; a `jax.tree_util.Partial` or None.
      key: the run's typed key.
      start: number of the first round.
      every: rounds between evaluations.
    """

    def one_round(state: State, source: Source, key: Array, index: Array) -> tuple[State, Metrics]:
        return stepped(algorithm, state, source.draw(key, index))

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
    named = {
        "algorithm": settings("algorithm.step", algorithm.step),
        "source": settings("source", source),
        "evaluate": settings("evaluate", evaluate),
    }
    return Fingerprint(identity, named)


def layout(tree: PyTree[Array]) -> dict[str, str]:
    """The type of every leaf under its path, for example `{".server['w']": "float32[5,3]"}`."""
    return {
        jax.tree_util.keystr(path): f"{leaf.dtype}[{','.join(map(str, leaf.shape))}]"
        for path, leaf in jax.tree_util.tree_leaves_with_path(abstract(tree))
    }


def structure(tree: PyTree[Array]) -> str:
    """A hash of a tree's node types and static parts."""
    return hashing.of_text(jax.tree.structure(tree))


def abstract(tree: PyTree[Array]) -> PyTree[jax.ShapeDtypeStruct]:
    """Shapes and types instead of arrays; where the arrays live is forgotten."""

    def describe(leaf: Any) -> jax.ShapeDtypeStruct:
        kind = jax.typeof(leaf)
        return jax.ShapeDtypeStruct(kind.shape, kind.dtype, weak_type=kind.weak_type)

    return jax.tree.map(describe, tree)


def contents(tree: PyTree[Array]) -> dict[str, str]:
    """The values of every leaf under its path: small ones as they are, of large ones a checksum.

    The checksum is computed where the values live and is the same on any devices. With bits b_j as
    unsigned integers and a mixing function h it is `sum_j h(b_j xor 2654435769 j) mod 2^32`. Integers,
    so the order of summation does not matter. Two leaves that differ have the same checksum with a
    chance of about 2^-32.
    """
    named = jax.tree_util.tree_leaves_with_path(tree)
    paths = [jax.tree_util.keystr(path) for path, _ in named]
    small = {place for place, (_, leaf) in enumerate(named) if np.size(leaf) <= SHOWN}
    large = [leaf for place, (_, leaf) in enumerate(named) if place not in small]
    checksums = iter(jax.device_get(_checksums(large)))
    return {
        path: str(shown(np.asarray(collect(_numbers(leaf)))))
        if place in small
        else f"{_CHECKSUM}{int(next(checksums)):08x}"
        for place, (path, (_, leaf)) in enumerate(zip(paths, named, strict=True))
    }


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
    return hashing.of_program(traced), result


def differences(
    identity: dict[str, Any], named: Any, wanted: Fingerprint, strict: bool
) -> list[str]:
    """What a stored run and this one do not have in common, a line each.

    For example `"algorithm.step.learning_rate: stored 0.3, wanted 0.2"`.

    Args:
      identity: of the stored run.
      named: its settings; anything, if a stranger wrote them.
      wanted: of this run.
      strict: compare everything, not only what `ALWAYS` lists.
    """
    lines = []
    for name in wanted.identity if strict else ALWAYS:
        stored, mine = identity.get(name), wanted.identity[name]
        if stored != mine and name in _EXPLAINED:
            part = _EXPLAINED[name]
            told = named.get(part) if isinstance(named, dict) else None
            lines += _differing_settings(told, wanted.settings[part])
            # Another source, too, makes another program.
            if not lines:
                lines.append(
                    f"{part}: it computes something else, with the same settings as far as they have "
                    "names (the code of a function may have changed)"
                )
        else:
            lines += [f"{place}: {told}" for place, told in _differing(name, stored, mine)]
    return lines


def _differing(name: str, stored: Any, wanted: Any) -> list[tuple[str, str]]:
    """Where two trees of dicts differ, and how."""
    if isinstance(stored, dict) and isinstance(wanted, dict):
        keys = {**wanted, **stored}
        return [
            line
            for key in keys
            for line in _differing(f"{name}{key}", stored.get(key), wanted.get(key))
        ]
    if stored == wanted:
        return []
    if all(isinstance(value, str) and value.startswith(_CHECKSUM) for value in (stored, wanted)):
        return [(name, "other values than the stored ones")]
    return [(name, f"stored {str(stored)[:200]}, wanted {str(wanted)[:200]}")]


def _differing_settings(stored: Any, wanted: dict[str, str]) -> list[str]:
    """One line a setting, single values first, under the shortest of the names that lead to it."""
    lines: dict[tuple[str, str], str] = {}
    pairs = _differing("", stored if isinstance(stored, dict) else {}, wanted)
    for name, told in sorted(pairs, key=lambda pair: ("[" in pair[1], len(pair[0]))):
        lines.setdefault((name.rpartition(".")[2], told), f"{name}: {told}")
    return list(lines.values())


def _numbers(leaf: Any) -> Any:
    is_key = jax.dtypes.issubdtype(getattr(leaf, "dtype", None), jax.dtypes.prng_key)
    return jax.random.key_data(leaf) if is_key else leaf


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
