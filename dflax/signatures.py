"""What a user's functions hand back is checked while the program is traced, and refused by name."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree


def returned(name: str, value: Any, form: str, *counts: int) -> Any:
    """Refuse what is no tuple of so many parts; `form` shows what it should have been."""
    if not isinstance(value, tuple) or len(value) not in counts:
        raise TypeError(f"{name} must return {form}, got {_kind(value)}.")
    return value


def dictionary(name: str, value: Any) -> None:
    """Refuse metrics that are no dict."""
    if not isinstance(value, dict):
        raise TypeError(f"{name} must be a dict of arrays, got {_kind(value)}.")


def alike(
    name: str, value: PyTree, wanted: PyTree, what: str, *, rows: int | None = None, dtypes=True
) -> None:
    """Refuse a tree of another structure, or with leaves of other shapes or dtypes.

    Args:
      name: of the value, for the message.
      value: what was handed back.
      wanted: a tree of arrays or of shapes.
      what: what is wanted, in words.
      rows: length of a leading axis that the value's leaves have in addition; None for none.
      dtypes: whether dtypes must agree, too.

    Raises:
      ValueError: naming the first leaf that differs.
    """
    given: Any = jax.tree.structure(value)
    right: Any = jax.tree.structure(wanted)
    if given != right:
        raise ValueError(f"{name} must have the structure of {what}, {right}, got {given}.")
    leaves = jax.tree_util.tree_leaves_with_path(value)
    for (path, leaf), one in zip(leaves, jax.tree.leaves(wanted), strict=True):
        shape = np.shape(one) if rows is None else (rows, *np.shape(one))
        if np.shape(leaf) != shape:
            raise ValueError(
                f"{name}{jax.tree_util.keystr(path)} must have the shape of {what}, {shape}, got "
                f"{np.shape(leaf)}."
            )
        if dtypes and _dtype(leaf) != _dtype(one):
            raise ValueError(
                f"{name}{jax.tree_util.keystr(path)} must have the dtype of {what}, {_dtype(one)}, "
                f"got {_dtype(leaf)}. Cast it, for example with .astype({_dtype(one)})."
            )


def _kind(value: Any) -> str:
    if isinstance(value, tuple) and not hasattr(value, "_fields"):
        return f"a tuple of {len(value)}"
    return "None" if value is None else f"a value of type {type(value).__name__}"


def _dtype(leaf: Any) -> Any:
    return leaf.dtype if hasattr(leaf, "dtype") else jnp.result_type(leaf)
