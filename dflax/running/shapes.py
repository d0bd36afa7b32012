"""Shapes of a run's arguments, and where on a mesh each of them lies."""

from typing import Any

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from dflax.algorithm import State
from dflax.mesh import state_sharding


def laid_out(mesh: Mesh, state: State, *others: Any) -> tuple[Any, Any]:
    """Shapes with their places on a mesh, and the places: the state dealt, the others replicated."""
    given = shapes((state, *others))
    everywhere = NamedSharding(mesh, PartitionSpec())
    rest = jax.tree.map(lambda leaf: leaf.sharding if _lies_on(leaf, mesh) else everywhere, others)
    layout = (state_sharding(given[0], mesh), *rest)
    placed = jax.tree.map(lambda leaf, sharding: leaf.update(sharding=sharding), given, layout)
    return placed, layout


def shapes(tree: Any) -> Any:
    """The tree with shapes for arrays, wherever these lie."""
    return jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, weak_type=leaf.weak_type),
        jax.eval_shape(lambda tree: tree, tree),
    )


def _lies_on(leaf: Any, mesh: Mesh) -> bool:
    """Whether an array has been dealt over this mesh already, and stays where it is."""
    sharding = getattr(leaf, "sharding", None)
    return isinstance(sharding, NamedSharding) and sharding.mesh == mesh
