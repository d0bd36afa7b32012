"""Sources of equal shapes as one pytree: what they share once, what is their own with a leading axis."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from dflax import validation
from dflax.algorithm import Source, verify_source
from dflax.federation import Federation

FIX = (
    "Derive them from one federation with federation.replace(partition=...), so that they share "
    "everything else."
)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class SideBySide:
    """S sources; make it with `side_by_side`, and pass it to compiled programs as an argument.

    `jax.vmap` or `jax.lax.map` goes over `own`; `source(slice)` is then the source of one lane.

    Attributes:
      own: `[S]` the sources' numbers, so that there is always an axis to go over, then the leaves that
        differ, each `[S, ...]`.
      shared: the leaves that all have in common, stored once.
      places: whether each leaf of a source is its own (static).
      structure: of a source (static).
    """

    own: tuple[Any, ...]
    shared: tuple[Any, ...]
    places: tuple[bool, ...] = dataclasses.field(metadata={"static": True})
    structure: Any = dataclasses.field(metadata={"static": True})

    def source(self, own: tuple[Any, ...]) -> Any:
        """The source whose own leaves these are, without the axis S."""
        mine, common = iter(own[1:]), iter(self.shared)
        leaves = [next(mine) if is_own else next(common) for is_own in self.places]
        return jax.tree.unflatten(self.structure, leaves)


def side_by_side(sources: Sequence[Source]) -> SideBySide:
    """S sources of equal structure and shapes as one pytree, for a program over all of them.

    A leaf that is the same object in all sources is stored once; the others are stacked to
    `[S, ...]`. Of federations only the largest client may differ, and with `local_epochs` the steps that
    it takes: all get the largest bound.

    Args:
      sources: at least one; for example the federations of several seeds.

    Returns:
      A `SideBySide`.

    Raises:
      TypeError: no sequence of sources.
      ValueError: none, or sources of different structures, shapes or dtypes, with the leaf's name.
    """
    validation.instance("sources", sources, Sequence, "Pass a list of federations.")
    if not sources:
        raise ValueError("sources must list at least one source, got none.")
    for place, source in enumerate(sources):
        verify_source(source, name=f"sources[{place}]")
    alike = _with_one_bound(list(sources))
    structure: Any = jax.tree.structure(alike[0])
    for place, source in enumerate(alike):
        if jax.tree.structure(source) != structure:
            raise ValueError(
                f"sources must have equal structures and static settings, but sources[{place}] "
                f"differs from sources[0]: {_difference(alike[0], source)}. {FIX}"
            )
    named, leaves = jax.tree_util.tree_leaves_with_path(alike[0]), []
    for (path, _), *several in zip(named, *map(jax.tree.leaves, alike), strict=True):
        kinds = [(np.shape(leaf), getattr(leaf, "dtype", type(leaf))) for leaf in several]
        if len(set(kinds)) > 1:
            other = next(place for place, kind in enumerate(kinds) if kind != kinds[0])
            raise ValueError(
                f"sources must have equal shapes and dtypes, got {_kind(kinds[other])} for "
                f"{jax.tree_util.keystr(path)} of sources[{other}] and {_kind(kinds[0])} of "
                "sources[0]. Draw splits with as many clients and as many examples in all."
            )
        leaves.append(several)
    places = tuple(any(leaf is not several[0] for leaf in several) for several in leaves)
    stacked = (jnp.stack(s) for s, is_own in zip(leaves, places, strict=True) if is_own)
    return SideBySide(
        own=(jnp.arange(len(alike), dtype=jnp.int32), *stacked),
        shared=tuple(s[0] for s, is_own in zip(leaves, places, strict=True) if not is_own),
        places=places,
        structure=structure,
    )


def _with_one_bound(sources: list[Any]) -> list[Any]:
    """The same federations, told that a client holds at most as much as the largest of any."""
    if not all(isinstance(source, Federation) for source in sources):
        return sources
    largest = max(source.largest for source in sources)
    # Of given steps a difference is meant, and refused.
    by_epochs = all(source.local_epochs is not None for source in sources)
    steps = max(source.local_steps for source in sources)
    alike = []
    for source in sources:
        leaves, structure = jax.tree.flatten(source)
        same = jax.tree.unflatten(structure, leaves)
        same.largest = largest
        if by_epochs:
            same.local_steps = steps
        alike.append(same)
    return alike


def _difference(first: PyTree, other: PyTree) -> str:
    """What tells two structures apart, in words where it is a federation's setting."""
    if isinstance(first, Federation) and isinstance(other, Federation):
        for name in Federation._static:
            if getattr(first, name) != getattr(other, name):
                return f"{name} is {getattr(other, name)!r}, not {getattr(first, name)!r}"
        for name in Federation._arrays:
            structures: list[Any] = [jax.tree.structure(getattr(s, name)) for s in (first, other)]
            if structures[0] != structures[1]:
                return f"another {name}"
    return f"{type(other).__name__}, not {type(first).__name__}"


def _kind(kind: tuple[tuple[int, ...], Any]) -> str:
    return f"{kind[1]}{list(kind[0])}"
