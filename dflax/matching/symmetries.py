"""The symmetries of a network under permutations of its hidden units, as data."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int, Key

from dflax import validation
from dflax.algorithm import Params


class Place(NamedTuple):
    """One axis of one leaf that a permutation of units runs along.

    Entry (b, u, a) of the axis, seen as `[before, width, after]`, belongs to unit u. A plain layer has
    before = after = 1; a dense layer that reads flattened images of h x w positions, channels last, has
    before = h w.

    Attributes:
      leaf: path of the leaf, its keys joined by "/": "Dense_0/kernel".
      axis: of the leaf.
      before: how many times the units follow one another along the axis.
      after: how many entries in a row belong to one unit.
    """

    leaf: str
    axis: int
    before: int = 1
    after: int = 1


Symmetries: TypeAlias = Mapping[str, Sequence[Place | tuple[str, int] | tuple[str, int, int]]]
"""From the name of a group of interchangeable units to all places that a permutation of them touches."""
Permutations: TypeAlias = dict[str, Int[Array, " d"]]


def permute(params: Params, symmetries: Symmetries, permutations: Permutations) -> Params:
    """The same function by other weights: unit u of the result is unit p[u] of `params`.

        W' = W[p] along every place that the permutation touches

    Args:
      params: one model.
      symmetries: of the model, see `derive`.
      permutations: by name, `[d]`; names left out stay as they are.

    Returns:
      A model of the same shapes. Given true symmetries its outputs are those of `params`.
    """
    touching = by_leaf(symmetries)

    def moved(path: jax.tree_util.KeyPath, leaf: Array) -> Array:
        for name, place in touching.get(path_of(path), ()):
            if name in permutations:
                leaf = along(place, leaf, permutations[name])
        return leaf

    return jax.tree_util.tree_map_with_path(moved, params)


def along(place: Place, leaf: Array, permutation: Int[Array, " d"]) -> Array:
    """The leaf with the units of one place in another order."""
    if place.before == place.after == 1:
        return jnp.take(leaf, permutation, axis=place.axis)
    shape = leaf.shape
    split = (place.before, permutation.shape[0], place.after)
    apart = leaf.reshape(*shape[: place.axis], *split, *shape[place.axis + 1 :])
    return jnp.take(apart, permutation, axis=place.axis + 1).reshape(shape)


def identity(widths: Mapping[str, int]) -> Permutations:
    """Every unit where it is."""
    _require_widths(widths)
    return {name: jnp.arange(width, dtype=jnp.int32) for name, width in widths.items()}


def random_permutations(key: Key[Array, ""], widths: Mapping[str, int]) -> Permutations:
    """Independent uniform permutations, one for each group of units."""
    validation.typed_key("key", key)
    _require_widths(widths)
    keys = jax.random.split(key, len(widths))
    return {
        name: jax.random.permutation(own, width).astype(jnp.int32)
        for own, (name, width) in zip(keys, widths.items(), strict=True)
    }


def _require_widths(widths: Mapping[str, int]) -> None:
    validation.instance("widths", widths, Mapping, "As widths_of(symmetries, params) returns them.")
    for name, width in widths.items():
        validation.integer(f"widths[{name!r}]", width, low=1)


def require_symmetries(symmetries: Symmetries) -> None:
    """Refuse what is no mapping from groups of units to places.

    Raises:
      TypeError: no mapping, or a group whose places are no tuples of a leaf and an axis.
    """
    fix = "Make them with dflax.matching.symmetries(model, params, inputs)."
    validation.instance("symmetries", symmetries, Mapping, fix)
    for name, given in symmetries.items():
        places: list[Any] = list(given) if isinstance(given, (list, tuple)) else [None]
        for place in places:
            fits = isinstance(place, tuple) and 2 <= len(place) <= len(Place._fields)
            if not fits or not isinstance(place[0], str):
                raise TypeError(
                    f"symmetries[{name!r}] must be a sequence of places (leaf, axis), got "
                    f"{validation.shown(given)}. {fix}"
                )


def widths_of(symmetries: Symmetries, params: Params) -> dict[str, int]:
    """How many units each group has.

    Args:
      symmetries: of the model.
      params: one model, arrays or their shapes.

    Raises:
      ValueError: no groups, a group without places, a leaf or an axis that the model does not have, or
        places of one group that differ in their number of units.
    """
    require_symmetries(symmetries)
    validation.model("params", params)
    shapes = {
        path_of(path): leaf.shape for path, leaf in jax.tree_util.tree_leaves_with_path(params)
    }
    if not symmetries:
        raise ValueError(
            "symmetries must name at least one group of units, got none. Models without hidden units "
            "are averaged as they are: use a plain mixer."
        )
    widths = {}
    for name, given in symmetries.items():
        found = {}
        for place in as_places(given):
            if place.leaf not in shapes:
                raise ValueError(
                    f"symmetries[{name!r}] must name leaves of the model, got "
                    f"{validation.shown(place.leaf)}. Those of params are "
                    f"{validation.shown(sorted(shapes))}."
                )
            shape = shapes[place.leaf]
            if not 0 <= place.axis < len(shape):
                raise ValueError(
                    f"symmetries[{name!r}] must name axes of {place.leaf}, of shape {shape}, got "
                    f"{place.axis}. Count axes from 0."
                )
            units, rest = divmod(shape[place.axis], place.before * place.after)
            if rest or not units:
                raise ValueError(
                    f"symmetries[{name!r}] must divide axis {place.axis} of {place.leaf}, of shape "
                    f"{shape}, got before = {place.before} and after = {place.after}."
                )
            found[f"{place.leaf}[{place.axis}]"] = units
        if len(set(found.values())) != 1:
            raise ValueError(
                f"symmetries[{name!r}] must permute the same units everywhere, got layers that are no "
                f"permutation of each other: units {found}. Give flattened positions as before=."
            )
        widths[name] = next(iter(found.values()))
    return widths


def as_places(given: Sequence[Place | tuple[str, int] | tuple[str, int, int]]) -> tuple[Place, ...]:
    """The places of one group, from tuples too."""
    return tuple(Place(*place) for place in given)


def by_leaf(symmetries: Symmetries) -> dict[str, list[tuple[str, Place]]]:
    """For every leaf that is touched: by which groups, and where."""
    touching: dict[str, list[tuple[str, Place]]] = {}
    for name, given in symmetries.items():
        for place in as_places(given):
            touching.setdefault(place.leaf, []).append((name, place))
    return touching


def path_of(path: jax.tree_util.KeyPath) -> str:
    """A leaf's path, its keys joined by "/"."""
    return jax.tree_util.keystr(path, simple=True, separator="/")
