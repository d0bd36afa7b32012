"""Parts of a tree: some of its leaves, with None, which is no leaf, in the place of the others."""

from collections.abc import Callable
from typing import Any

import jax
from jaxtyping import PyTree

Chooser = Callable[[str], bool]


def name_of(path: Any) -> str:
    """The names on the way to a leaf, joined by "/": "params/Dense_1/kernel"."""
    return jax.tree_util.keystr(path, simple=True, separator="/")


def part(tree: PyTree, chosen: Chooser) -> PyTree:
    """The leaves whose path, as `name_of` writes it, is chosen."""
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf: leaf if chosen(name_of(path)) else None, tree
    )


def joined(part: PyTree, whole: PyTree) -> PyTree:
    """The whole with the leaves of the part where it has any."""
    return jax.tree.map(
        lambda some, other: other if some is None else some,
        part,
        whole,
        is_leaf=lambda node: node is None,
    )
