"""Checks at the door: every public factory refuses bad input before anything is compiled.

A message names the argument, the value it got, what is allowed and, where that helps, what to do.
Traced values pass unseen, so that hyper-parameters can be swept with `jax.vmap`.
"""

import math
from typing import Any

import jax
import numpy as np


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
    numbers = _real_numbers(value)
    if numbers is None:
        raise TypeError(_message(name, value, f"a real number {allowed}", fix))
    if numbers.size == 0:
        raise ValueError(_message(name, value, "an array of at least one number", fix))
    below = numbers <= low if low_open else numbers < low
    above = numbers >= high if high_open else numbers > high
    if bool(np.any(below | above | ~np.isfinite(numbers))):
        raise ValueError(_message(name, value, f"a finite number {allowed}", fix))


def integer(name: str, value: Any, *, low: int, high: int | None = None, fix: str = "") -> None:
    """Refuse a count that is not a Python or NumPy integer in `[low, high]` (counts are static).

    Raises:
      TypeError: `value` is not an integer (booleans and floats are refused).
      ValueError: it is out of range.
    """
    allowed = f"an integer >= {low}" if high is None else f"an integer in [{low}, {high}]"
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)):
        raise TypeError(_message(name, value, allowed, fix))
    if value < low or (high is not None and value > high):
        raise ValueError(_message(name, value, allowed, fix))


def typed_key(name: str, key: Any) -> None:
    """Refuse anything that is not one typed JAX key, such as a raw integer or a legacy uint32 key."""
    is_key = hasattr(key, "dtype") and jax.dtypes.issubdtype(key.dtype, jax.dtypes.prng_key)
    if not is_key or key.shape != ():
        raise TypeError(
            _message(name, key, "one typed JAX key", "Make one with jax.random.key(seed).")
        )


def function(name: str, value: Any, fix: str = "") -> None:
    """Refuse a value that cannot be called."""
    if not callable(value):
        raise TypeError(_message(name, value, "a function", fix))


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


def choice(name: str, value: Any, allowed: tuple[str, ...]) -> None:
    """Refuse a value that is none of the names allowed."""
    # A comparison of an array with a word is an array of comparisons.
    if not isinstance(value, str) or value not in allowed:
        raise ValueError(_message(name, value, f"one of {', '.join(map(repr, allowed))}", ""))


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
            f"{name} must be a pytree with at least one array of real numbers, got {params!r}."
        )


def leading_axis(name: str, tree: Any, size: int | None = None) -> int:
    """The common length of the leading axes of all leaves; refuses a tree in which they differ.

    Args:
      name: the argument's name, for the message.
      tree: a pytree of arrays, each with at least one axis.
      size: the length that is required, if one is.

    Raises:
      ValueError: no leaves, a scalar leaf, or lengths that differ from each other or from `size`.
    """
    lengths = {
        jax.tree_util.keystr(path) or "(the array itself)": np.shape(leaf)[:1]
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }
    distinct = set(lengths.values())
    required = None if size is None else (size,)
    if not distinct or () in distinct or len(distinct) > 1 or distinct == {None}:
        raise ValueError(
            f"{name} must have leaves that share one leading axis, got lengths {lengths}."
        )
    (length,) = distinct
    if required is not None and length != required:
        raise ValueError(
            f"{name} must have a leading axis of length {size}, got {length[0]}. "
            "Every leaf carries one row per item of that axis."
        )
    return length[0]


def _real_numbers(value: Any) -> np.ndarray | None:
    """The value in float64; None where it holds anything but integers and floating-point numbers."""
    try:
        given = np.asarray(value)
    except (TypeError, ValueError):
        return None
    kinds = (jax.numpy.integer, jax.numpy.floating)
    known = any(jax.numpy.issubdtype(given.dtype, kind) for kind in kinds)
    return given.astype(np.float64) if known else None


def _interval(low: float, high: float, low_open: bool, high_open: bool) -> str:
    if math.isinf(low) and math.isinf(high):
        return "(any finite value)"
    left = "(" if low_open or math.isinf(low) else "["
    right = ")" if high_open or math.isinf(high) else "]"
    return f"in {left}{low:g}, {high:g}{right}"


def _message(name: str, value: Any, allowed: str, fix: str) -> str:
    shown = repr(value)
    shown = shown if len(shown) <= 80 else shown[:77] + "..."
    return f"{name} must be {allowed}, got {shown}. {fix}".rstrip()
