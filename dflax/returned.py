"""What users' functions hand back, looked at while a program is traced and refused by name."""

from typing import Any

import jax
import numpy as np


def parts(name: str, value: Any, expected: tuple[str, ...], optional: int = 0) -> tuple[Any, ...]:
    """The value as the tuple that it must be.

    Args:
      name: the call that returned it, for the message: "work(assignment, client, data, index)".
      value: what it returned.
      expected: what its entries are called.
      optional: how many of the last entries may be missing.

    Raises:
      TypeError: no plain tuple of as many entries.
    """
    plain = isinstance(value, tuple) and not hasattr(value, "_fields")
    if plain and len(expected) - optional <= len(value) <= len(expected):
        return value
    given = f"a tuple of {len(value)}" if plain else type(value).__name__
    least = f", of which the last {optional} may be left out" if optional else ""
    raise TypeError(f"{name} must return ({', '.join(expected)}){least}, got {given}.")


def alike(name: str, value: Any, wanted: Any, what: str, *, dtypes: bool = True) -> None:
    """Refuse a tree whose structure, shapes or types differ from those of another.

    Args:
      name: of the tree, for the message.
      value: what was returned.
      wanted: a tree of the form that is wanted.
      what: what `wanted` is, for the message: "the client before".
      dtypes: whether types must agree, too.

    Raises:
      TypeError: another structure, or a leaf of another type.
      ValueError: a leaf of another shape.
    """
    given: Any = jax.tree.structure(value)
    asked: Any = jax.tree.structure(wanted)
    if given != asked:
        raise TypeError(f"{name} must have the structure of {what}, {asked}, got {given}.")
    found = jax.tree_util.tree_leaves_with_path(value)
    for (path, leaf), like in zip(found, jax.tree.leaves(wanted), strict=True):
        place = f"{name}{jax.tree_util.keystr(path)}"
        if np.shape(leaf) != np.shape(like):
            raise ValueError(
                f"{place} must have the shape of {what}, {np.shape(like)}, got {np.shape(leaf)}."
            )
        if dtypes and _type(leaf) != _type(like):
            raise TypeError(
                f"{place} must have the dtype of {what}, {_type(like)}, got {_type(leaf)}. Values are "
                "not cast: give both one type, for example by x.astype(...)."
            )


def metrics(name: str, value: Any) -> None:
    """Refuse metrics that are no dict.

    Raises:
      TypeError: anything else.
    """
    if not isinstance(value, dict):
        raise TypeError(
            f"{name} must be a dict of numbers, got {type(value).__name__}. Return {{}} for none."
        )


def _type(leaf: Any) -> Any:
    return leaf.dtype if hasattr(leaf, "dtype") else jax.dtypes.result_type(leaf)
