"""Symmetries of a model and the activations of its units, both read off the traced model."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jaxtyping import Array, Float, Key, PyTree

from dflax import validation
from dflax.algorithm import Params
from dflax.matching.factors import Axis
from dflax.matching.symmetries import (
    Place,
    Symmetries,
    as_places,
    path_of,
    permute,
    random_permutations,
    require_symmetries,
    widths_of,
)
from dflax.matching.tracing import Follower, Traced
from dflax.models.adapters.from_linen import skip_dropout, training_switches
from dflax.models.apply import Model, as_apply

Forward = Callable[[Params, PyTree[Array]], PyTree[Array]]
Activations = Callable[[Params, PyTree[Array]], dict[str, Float[Array, "S d"]]]


def symmetries(model: Model, params: Params, inputs: PyTree[Array]) -> dict[str, tuple[Place, ...]]:
    """All groups of hidden units that the model's own program shows to be interchangeable.

    The model is traced on `inputs` and its operations followed: a layer's outputs, its bias, its
    scale and the inputs of the layers that read it carry the same units; what is added to a residual
    stream shares the units of the stream; flattened images list every channel once per position. Found
    are so the permutations of dense, convolutional and residual networks, of the hidden layers, heads
    and streams of transformers, of any model of any library. Outputs, examples, pixels and input
    channels are never permuted. Operations that are not known, and group normalisation of several
    groups as far as it reads units apart, only make it find less.

    Args:
      model: see `dflax.models.as_apply`.
      params: one model; of a variables dict "batch_stats" does not count: running statistics are
        estimated afresh after a merge, never permuted.
      inputs: `[B, ...]` a batch of inputs, or its shapes; two examples or more.

    Returns:
      By the name of each group the places that a permutation touches. It may be empty.

    Raises:
      TypeError: a model that cannot be called.
    """
    weights = _verified(params, inputs)
    follower, leaves, _ = _followed(calibrating(model), weights, inputs, compute=False)
    groups: dict[int, list[Place]] = {}
    sizes = follower.factors.sizes
    for path, traced in leaves:
        for number, axis in enumerate(traced.axes):
            factors = follower.factors.resolve(axis)
            for place, factor in enumerate(factors):
                if follower.factors.fixed[factor]:
                    continue
                before = math.prod(sizes[other] for other in factors[:place])
                after = math.prod(sizes[other] for other in factors[place + 1 :])
                groups.setdefault(factor, []).append(Place(path, number, before, after))
    named: dict[str, tuple[Place, ...]] = {}
    for factor, places in groups.items():
        first = places[0]
        name = f"{first.leaf}[{first.axis}]"
        named[f"{name} by {sizes[factor]}" if name in named else name] = tuple(places)
    return named


def activations(model: Model, symmetries: Symmetries) -> Activations:
    """What the units of every group say: `(params, inputs) -> {name: [S, d]}`.

    Of all arrays that a forward pass computes with a group's units on an axis, the largest is taken,
    and of equally large ones the last: a layer's outputs after the non-linearity and before pooling, a
    residual stream at its end. Examples and positions are pooled into S samples; other groups' units
    on the same array (the channels of a head) are averaged. Batch normalisation uses the batch's own
    statistics, so that averaged running statistics play no part; dropout is off.

    Args:
      model: see `dflax.models.as_apply`.
      symmetries: of the model; given by hand or derived.

    Returns:
      The function. It raises ValueError for a group whose places the model's program does not tie to
      one set of units.
    """
    require_symmetries(symmetries)
    forward = calibrating(model)

    def read(params: Params, inputs: PyTree[Array]) -> dict[str, Float[Array, "S d"]]:
        weights = without_statistics(params)
        widths = widths_of(symmetries, weights)
        follower, leaves, batch = _followed(forward, weights, inputs, compute=True)
        known = dict(leaves)
        found = {}
        for name, given in symmetries.items():
            place = as_places(given)[0]
            axis = follower.factors.resolve(known[place.leaf].axes[place.axis])
            factor = _at(follower, axis, place, widths[name])
            for other in as_places(given)[1:]:
                axis = follower.factors.resolve(known[other.leaf].axes[other.axis])
                if factor is None or _at(follower, axis, other, widths[name]) != factor:
                    raise ValueError(
                        f"symmetries[{name!r}] must name places that carry the same units in the model, "
                        f"got {place} and {other}: layers that are no permutation of each other. Take "
                        "dflax.matching.symmetries(model, params, inputs)."
                    )
            found[name] = _largest(name, follower, factor, batch)
        return found

    return read


def verify(
    model: Model,
    params: Params,
    inputs: PyTree[Array],
    symmetries: Symmetries,
    key: Key[Array, ""],
    *,
    tolerance: float = 1e-3,
) -> None:
    """Refuse symmetries that change what a model computes.

    Each group alone is permuted at random, and the outputs compared with those before.

    Args:
      model: see `dflax.models.as_apply`.
      params: one model.
      inputs: `[B, ...]`.
      symmetries: to be checked, for example written by hand.
      key: of the permutations.
      tolerance: largest difference, relative to the largest output; > 0.

    Raises:
      ValueError: naming the first group that is no symmetry, or as `widths_of`.
    """
    validation.typed_key("key", key)
    validation.real("tolerance", tolerance, low=0.0, low_open=True, scalar=True)
    forward, weights = jax.jit(calibrating(model)), _verified(params, inputs)
    widths = widths_of(symmetries, weights)
    before = [np.asarray(leaf) for leaf in jax.tree.leaves(forward(weights, inputs))]
    for name, permutation in random_permutations(key, widths).items():
        moved = permute(weights, symmetries, {name: permutation})
        after = jax.tree.leaves(forward(moved, inputs))
        worst = max(
            float(np.abs(a - np.asarray(b)).max() / max(np.abs(a).max(), 1e-30))
            for a, b in zip(before, after, strict=True)
        )
        if not worst <= tolerance:
            raise ValueError(
                f"symmetries[{name!r}] must leave the model's outputs as they are, got a change of "
                f"{worst:.2g} of the largest: its layers are no permutation of each other. Name every "
                "leaf that the units touch, or take dflax.matching.symmetries(model, params, inputs)."
            )


def _verified(params: Params, inputs: PyTree[Array]) -> Params:
    """The weights among `params`, once these are a model and the inputs a batch."""
    weights = without_statistics(params)
    validation.model("params", weights)
    validation.arrays("inputs", inputs)
    validation.leading_axis("inputs", inputs, least=1)
    return weights


def calibrating(model: Model) -> Forward:
    """`(params, inputs) -> outputs` by the batch's own statistics where models keep some, no dropout."""
    module = getattr(model, "__self__", model)
    if not isinstance(module, nn.Module):
        apply = as_apply(model)
        return lambda params, inputs: apply(params, inputs)
    switches = training_switches(module)

    def forward(params: Params, inputs: PyTree[Array]) -> PyTree[Array]:
        whole = isinstance(params, dict) and "params" in params
        variables = params if whole else {"params": params}
        with nn.intercept_methods(skip_dropout):
            outputs, _ = module.apply(variables, inputs, mutable=["batch_stats"], **switches)
        return outputs

    return forward


def without_statistics(params: Params) -> Params:
    """The variables without running statistics."""
    if isinstance(params, dict) and "params" in params:
        return {name: tree for name, tree in params.items() if name != "batch_stats"}
    return params


def _followed(
    forward: Forward, params: Params, inputs: PyTree[Array], *, compute: bool
) -> tuple[Follower, list[tuple[str, Traced]], list[Axis]]:
    """The followed program, the axes of the model's leaves, and those of the examples."""
    closed = jax.make_jaxpr(forward)(params, inputs)
    follower = Follower()
    leaves = [
        (path_of(path), Traced(follower.factors.axes(leaf.shape), leaf if compute else None))
        for path, leaf in jax.tree_util.tree_leaves_with_path(params)
    ]
    given = [
        Traced(follower.factors.axes(leaf.shape, fixed=True), leaf if compute else None)
        for leaf in jax.tree.leaves(inputs)
    ]
    arguments = [traced for _, traced in leaves] + given
    if compute:
        results = [traced.axes for traced in follower.run(closed, arguments)]
    else:
        results = follower.follow(closed, [traced.axes for traced in arguments])
    for axes in results:
        follower.factors.fix(*axes)
    return follower, leaves, [traced.axes[0] for traced in given if traced.axes]


def _at(follower: Follower, axis: Axis, place: Place, width: int) -> int | None:
    """The factor of that width which starts where the place says."""
    before = 1
    for factor in axis:
        if before == place.before and follower.factors.sizes[factor] == width:
            return factor
        before *= follower.factors.sizes[factor]
    return None


def _largest(
    name: str, follower: Follower, factor: int | None, batch: Sequence[Axis]
) -> Float[Array, "S d"]:
    """The samples of a group's units from the largest array that has them and the examples."""
    factors = follower.factors
    examples = {part for axis in batch for part in factors.resolve(axis)}
    best: Any = None
    for traced in follower.seen:
        if traced.value is None:
            continue
        axes = [factors.resolve(axis) for axis in traced.axes]
        held = {part for axis in axes for part in axis}
        if (
            factor in held
            and held & examples
            and (best is None or traced.value.size >= best[1].size)
        ):
            best = axes, traced.value
    if factor is None or best is None:
        raise ValueError(
            f"symmetries[{name!r}] must name units that the model computes for every example, got none "
            "in its program. Match by weights instead."
        )
    axes, value = best
    whole = [part for axis in axes for part in axis]
    apart = value.reshape([factors.sizes[part] for part in whole])
    # Units of other groups on the same axes (channels of a head) come in another order in another
    # model: their mean does not mind.
    others = [n for n, part in enumerate(whole) if part != factor and not factors.fixed[part]]
    apart = jnp.mean(apart, axis=tuple(others), keepdims=True)
    return jnp.moveaxis(apart, whole.index(factor), -1).reshape(-1, factors.sizes[factor])
