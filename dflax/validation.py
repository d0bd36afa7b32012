"""Checks at the door: every public factory refuses bad input before anything is compiled.

One check per kind of argument:

    real, probability   a hyper-parameter, traceable
    integer, seed       a count, static
    flag, choice, text  a switch, one of some words, any words
    path                a file or a folder
    function, instance  something to call, something of a type
    sequence            several of a kind
    array               numbers of a shape and a type
    dtype               of floating-point numbers
    model, arrays, leading_axis   a pytree of arrays
    typed_key           randomness
    at_once             clients that one device computes at the same time

A message names the argument, the value it got, what is allowed and, where that helps, what to do. It
is short whatever the value is. Traced values pass unseen, so that hyper-parameters can be swept with
`jax.vmap`. `tests/test_doors.py` tries every public callable with wrong values of every kind.
"""

import inspect
import math
import os
import reprlib
from collections.abc import Iterable
from typing import Any, Literal

import jax
import numpy as np

# Counts are 32-bit integers in compiled programs.
LARGEST_COUNT = 2**31 - 1
LONGEST_VALUE = 80

_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxother = _SHORT.maxlong = 4 * LONGEST_VALUE
_SHORT.maxlist = _SHORT.maxtuple = _SHORT.maxset = _SHORT.maxdict = 32

_KINDS = {
    "real": (jax.numpy.floating, jax.numpy.integer),
    "integer": (jax.numpy.integer,),
    "boolean": (np.bool_,),
    "complex": (jax.numpy.floating, jax.numpy.integer, jax.numpy.complexfloating),
}
_KIND_NAMES = {
    "real": "real numbers",
    "integer": "integers",
    "boolean": "booleans",
    "complex": "real or complex numbers",
}


def is_traced(value: Any) -> bool:
    """Whether `value` is known only when the compiled program runs."""
    return isinstance(value, jax.core.Tracer)


def real(
    name: str,
    value: Any,
    *,
    low: float = -math.inf,
    high: float = math.inf,
    low_open: bool = False,
    high_open: bool = False,
    scalar: bool = False,
    fix: str = "",
) -> None:
    """Refuse a real hyper-parameter (number or array) that is NaN, infinite or outside its range.

    Booleans, complex numbers, strings and None are no real numbers here, though NumPy would convert
    some of them.

    Args:
      name: the argument's name, for the message.
      value: a number or an array of at least one number; tracers are let through.
      low: smallest allowed value.
      high: largest allowed value.
      low_open: whether `low` itself is refused.
      high_open: whether `high` itself is refused.
      scalar: whether only a single number will do, also of a tracer.
      fix: a closing sentence that tells what to do.

    Raises:
      TypeError: `value` is not a real number or an array of real numbers.
      ValueError: some entry is NaN, infinite or out of range, or there is no entry.
    """
    if scalar and np.ndim(value) != 0:
        raise ValueError(_message(name, value, "a single real number", fix))
    if is_traced(value):
        return
    allowed = _interval(low, high, low_open, high_open)
    if isinstance(value, int) and not isinstance(value, bool) and abs(value) > LARGEST_COUNT:
        point = "Write it with a decimal point: integers have 32 bits in compiled programs."
        raise ValueError(_message(name, value, f"a real number {allowed}", point))
    numbers = _real_numbers(value)
    if numbers is None:
        raise TypeError(_message(name, value, f"a real number {allowed}", fix))
    if numbers.size == 0:
        raise ValueError(_message(name, value, "an array of at least one number", fix))
    below = numbers <= low if low_open else numbers < low
    above = numbers >= high if high_open else numbers > high
    if bool(np.any(below | above | ~np.isfinite(numbers))):
        raise ValueError(_message(name, value, f"a finite number {allowed}", fix))


def probability(
    name: str, value: Any, *, low_open: bool = False, high_open: bool = False, fix: str = ""
) -> None:
    """Refuse anything but one real number in [0, 1]; an end may be open. Raises as `real` does."""
    real(
        name,
        value,
        low=0.0,
        high=1.0,
        low_open=low_open,
        high_open=high_open,
        scalar=True,
        fix=fix,
    )


def integer(name: str, value: Any, *, low: int, high: int | None = None, fix: str = "") -> None:
    """Refuse a count that is not a Python or NumPy integer in `[low, high]` (counts are static).

    Without `high` the largest is 2^31 - 1, as counts are 32-bit integers in compiled programs.

    Raises:
      TypeError: `value` is not an integer (booleans and floats are refused).
      ValueError: it is out of range.
    """
    allowed = f"an integer >= {low}" if high is None else f"an integer in [{low}, {high}]"
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)):
        raise TypeError(_message(name, value, allowed, fix))
    if value < low or (high is not None and value > high):
        raise ValueError(_message(name, value, allowed, fix))
    if high is None and value > LARGEST_COUNT:
        raise ValueError(_message(name, value, f"{allowed} and at most {LARGEST_COUNT}", fix))


def seed(name: str, value: Any) -> None:
    """Refuse a seed of a host's generator that is no integer in [0, 2^63)."""
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)):
        raise TypeError(
            _message(name, value, "an integer >= 0", "A key goes where a key is asked.")
        )
    if not 0 <= value < 2**63:
        raise ValueError(_message(name, value, "an integer in [0, 2^63)", ""))


def at_once(value: Any) -> None:
    """Refuse a number of clients at the same time that is neither None nor an integer >= 1."""
    if value is not None:
        integer("at_once", value, low=1, fix="None chooses by device and size of the model.")


def typed_key(name: str, key: Any) -> None:
    """Refuse anything that is not one typed JAX key, such as a raw integer or a legacy uint32 key."""
    is_key = hasattr(key, "dtype") and jax.dtypes.issubdtype(key.dtype, jax.dtypes.prng_key)
    if not is_key or key.shape != ():
        raise TypeError(
            _message(name, key, "one typed JAX key", "Make one with jax.random.key(seed).")
        )


def function(name: str, value: Any, fix: str = "", *, takes: int | None = None) -> None:
    """Refuse a value that cannot be called, or not with as many arguments as it will get.

    Args:
      name: the argument's name, for the message.
      value: a function; where Python knows no signature of it, any is let through.
      fix: a closing sentence that tells what to do.
      takes: how many positional arguments it will get; None: unknown.

    Raises:
      TypeError: no function, or one of other arguments.
    """
    if not callable(value):
        raise TypeError(_message(name, value, "a function", fix))
    if takes is None:
        return
    try:
        signature = inspect.signature(value)
    except (TypeError, ValueError):
        return
    try:
        signature.bind(*range(takes))
    except TypeError:
        count = f"{takes} argument{'s' * (takes != 1)}"
        raise TypeError(
            _message(name, value, f"a function of {count}", f"Its own are {signature}. {fix}")
        ) from None


def instance(name: str, value: Any, kind: type | tuple[type, ...], fix: str = "") -> None:
    """Refuse a value of another kind; the message names the kind that is wanted and the one given."""
    if not isinstance(value, kind):
        kinds = kind if isinstance(kind, tuple) else (kind,)
        wanted = " or ".join(k.__name__ for k in kinds)
        given = f"of type {wanted}, not {type(value).__name__}"
        raise TypeError(_message(name, value, given, fix))


def flag(name: str, value: Any) -> None:
    """Refuse a switch that is neither True nor False: what is merely true-ish is often a mistake."""
    if not isinstance(value, (bool, np.bool_)):
        raise TypeError(_message(name, value, "True or False", ""))


def text(name: str, value: Any) -> None:
    """Refuse a name or title that is no string."""
    if not isinstance(value, str):
        raise TypeError(_message(name, value, "a string", ""))


def path(name: str, value: Any) -> None:
    """Refuse what cannot be the path of a file or folder."""
    if not isinstance(value, (str, os.PathLike)):
        raise TypeError(_message(name, value, "a path (a string or a pathlib.Path)", ""))


def sequence(name: str, value: Any, of: str, *, least: int = 1, fix: str = "") -> list:
    """The items of a list, tuple or array; refuses what has no order, and strings.

    Args:
      name: the argument's name, for the message.
      value: what should hold the items. The items themselves are for the caller to check.
      of: what the items are, for the message: "graphs".
      least: how many there must be at least.
      fix: a closing sentence that tells what to do.

    Raises:
      TypeError: no list, tuple or array.
      ValueError: too few items.
    """
    unordered = isinstance(value, (str, bytes, dict, set, frozenset))
    if unordered or not isinstance(value, Iterable) or getattr(value, "shape", None) == ():
        raise TypeError(_message(name, value, f"a list of {of}", fix))
    items = list(value)
    if len(items) < least:
        raise ValueError(_message(name, value, f"a list of at least {_number(least)} {of}", fix))
    return items


def array(
    name: str,
    value: Any,
    *,
    kind: Literal["real", "integer", "boolean", "complex"],
    shape: tuple[int | str, ...] | None = None,
    low: float = -math.inf,
    high: float = math.inf,
    fix: str = "",
) -> np.ndarray:
    """The numbers as a NumPy array; refuses those of another type, shape or range, and NaN.

    Args:
      name: the argument's name, for the message.
      value: numbers in any form that NumPy reads; a tracer is returned as it is, if its shape fits.
      kind: real numbers (integers count as such), integers, booleans, or complex numbers (real ones
        count as such, and there are no bounds); nothing is converted.
      shape: per axis its length, or a letter where any length of at least 1 will do. None: any shape.
      low: smallest allowed entry.
      high: largest allowed entry.
      fix: a closing sentence that tells what to do.

    Raises:
      TypeError: no array, or entries of another type.
      ValueError: another shape, NaN, infinite, or an entry out of range.
    """
    allowed = f"{_KIND_NAMES[kind]}{_of_shape(shape)}"
    given = value if is_traced(value) else _host_array(value)
    # What is empty has no type that was meant.
    if given is None or not (_is_kind(given, kind) or given.size == 0):
        given_type = f"{allowed}, not {given.dtype}" if given is not None else allowed
        raise TypeError(_message(name, value, given_type, fix))
    if shape is not None and not _has_shape(given.shape, shape):
        raise ValueError(f"{name} must be {allowed}, got shape {given.shape}. {fix}".rstrip())
    if not is_traced(given) and kind == "complex" and not np.isfinite(given).all():
        raise ValueError(f"{name} must be finite numbers, got NaN or infinity. {fix}".rstrip())
    if not is_traced(given) and kind in ("real", "integer") and given.size:
        least, most = given.min(), given.max()
        if not (least >= low and most <= high and np.isfinite(least) and np.isfinite(most)):
            bounds = _interval(low, high, False, False)
            raise ValueError(
                f"{name} must be finite numbers {bounds}, got {least} to {most}. {fix}".rstrip()
            )
    return given


def choice(name: str, value: Any, allowed: tuple[str, ...]) -> None:
    """Refuse a value that is none of the names allowed."""
    # A comparison of an array with a word is an array of comparisons.
    if not isinstance(value, str) or value not in allowed:
        raise ValueError(_message(name, value, f"one of {', '.join(map(repr, allowed))}", ""))


def dtype(name: str, value: Any) -> None:
    """Refuse what names no floating-point dtype; None leaves the choice to the inputs."""
    try:
        floating = value is None or jax.numpy.issubdtype(np.dtype(value), jax.numpy.floating)
    except (TypeError, ValueError):
        floating = False
    if not floating:
        raise TypeError(_message(name, value, "a floating-point dtype or None", ""))


def model(name: str, params: Any) -> None:
    """Refuse a model that is no pytree of real-valued arrays: it could be neither trained nor averaged.

    Raises:
      TypeError: no leaves, or a leaf that holds no real numbers; the message names the leaf.
    """
    leaves = jax.tree_util.tree_leaves_with_path(params)
    for path, leaf in leaves:
        dtype = getattr(leaf, "dtype", None)
        if dtype is None or not jax.numpy.issubdtype(dtype, jax.numpy.floating):
            given = f"{type(leaf).__name__}" if dtype is None else f"{dtype}"
            raise TypeError(
                f"{name}{jax.tree_util.keystr(path)} must be an array of real numbers, got {given}. "
                'For a linen model pass model.init(key, inputs)["params"].'
            )
    if not leaves:
        raise TypeError(
            f"{name} must be a pytree with at least one array of real numbers, got {shown(params)}."
        )


def arrays(name: str, tree: Any, fix: str = "", *, some: bool = False) -> None:
    """Refuse a pytree with a leaf that is neither array nor number; shapes count as arrays.

    Args:
      name: the argument's name, for the message.
      tree: any pytree.
      fix: a closing sentence that tells what to do.
      some: whether a tree without leaves is refused, too.

    Raises:
      TypeError: such a leaf, by its path; no leaves.
      ValueError: an integer of Python's that 32 bits do not hold.
    """
    if some and not jax.tree.leaves(tree):
        raise TypeError(_message(name, tree, "a pytree with at least one array", fix))
    for at, leaf in jax.tree_util.tree_leaves_with_path(tree):
        place = f"{name}{jax.tree_util.keystr(at)}"
        dtype, shape = getattr(leaf, "dtype", None), getattr(leaf, "shape", None)
        known = dtype is not None and shape is not None
        is_key = known and jax.dtypes.issubdtype(dtype, jax.dtypes.prng_key)
        known = is_key or (known and getattr(dtype, "kind", None) not in ("O", "S", "U", "M"))
        if not known and not isinstance(leaf, (bool, int, float, complex)):
            raise TypeError(_message(place, leaf, "an array or a number", fix))
        if isinstance(leaf, int) and abs(leaf) > LARGEST_COUNT:
            raise ValueError(_message(place, leaf, "an integer of 32 bits", fix))


def leading_axis(name: str, tree: Any, size: int | None = None, *, least: int = 0) -> int:
    """The common length of the leading axes of all leaves; refuses a tree in which they differ.

    Args:
      name: the argument's name, for the message.
      tree: a pytree of arrays, each with at least one axis.
      size: the length that is required, if one is.
      least: the shortest length that will do.

    Raises:
      ValueError: no leaves, a scalar leaf, lengths that differ from each other or from `size`, or
        that are below `least`.
    """
    lengths = {
        jax.tree_util.keystr(path) or "(the array itself)": np.shape(leaf)[:1]
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }
    distinct = set(lengths.values())
    required = None if size is None else (size,)
    if not distinct or () in distinct or len(distinct) > 1 or distinct == {None}:
        raise ValueError(
            f"{name} must have leaves that share one leading axis, got "
            f"{'no leaves' if not lengths else 'lengths ' + _listed(lengths)}."
        )
    (length,) = distinct
    if required is not None and length != required:
        raise ValueError(
            f"{name} must have a leading axis of length {size}, got {length[0]}. "
            "Every leaf carries one row per item of that axis."
        )
    if length[0] < least:
        raise ValueError(f"{name} must have a leading axis of at least {least}, got {length[0]}.")
    return length[0]


def _real_numbers(value: Any) -> np.ndarray | None:
    """The value in float64; None where it holds anything but integers and floating-point numbers."""
    given = _host_array(value)
    if given is None or not _is_kind(given, "real"):
        return None
    return given.astype(np.float64)


def _interval(low: float, high: float, low_open: bool, high_open: bool) -> str:
    if math.isinf(low) and math.isinf(high):
        return "(any finite value)"
    left = "(" if low_open or math.isinf(low) else "["
    right = ")" if high_open or math.isinf(high) else "]"
    return f"in {left}{low:g}, {high:g}{right}"


def _number(count: int) -> str:
    return "one" if count == 1 else f"{count}"


def _listed(lengths: dict[str, tuple[int, ...]]) -> str:
    """The first few of the leaves' lengths."""
    few = dict(list(lengths.items())[:8])
    return f"{few}" if len(few) == len(lengths) else f"{few} and {len(lengths) - len(few)} more"


def _host_array(value: Any) -> np.ndarray | None:
    """The value as NumPy reads it; None where it makes no array of it."""
    try:
        return np.asarray(value)
    except (TypeError, ValueError):
        return None


def _is_kind(given: Any, kind: str) -> bool:
    return any(jax.numpy.issubdtype(given.dtype, one) for one in _KINDS[kind])


def _of_shape(shape: tuple[int | str, ...] | None) -> str:
    if shape is None:
        return ""
    free = ", ".join(axis for axis in shape if isinstance(axis, str))
    return f" of shape [{', '.join(map(str, shape))}]" + (f" with {free} >= 1" if free else "")


def _has_shape(given: tuple[int, ...], wanted: tuple[int | str, ...]) -> bool:
    return len(given) == len(wanted) and all(
        size >= 1 if isinstance(axis, str) else size == axis
        for size, axis in zip(given, wanted, strict=True)
    )


def shown(value: Any) -> str:
    """A value as messages show it: its `repr`, of which at most 80 characters are made and kept."""
    words = _SHORT.repr(value)
    return words if len(words) <= LONGEST_VALUE else words[: LONGEST_VALUE - 3] + "..."


def _message(name: str, value: Any, allowed: str, fix: str) -> str:
    return f"{name} must be {allowed}, got {shown(value)}. {fix}".rstrip()
