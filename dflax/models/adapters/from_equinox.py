"""Models of equinox: inexact arrays are weights, `eqx.nn.State` holds statistics, one example a call."""

import inspect
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key, PyTree

from dflax.algorithm import Params
from dflax.models.adapters.adapter import (
    Apply,
    Training,
    as_kept,
    as_real,
    carry,
    missing_statistics,
    require,
    split_statistics,
    stands_still,
    switches,
)
from dflax.models.averaged import STATISTICS


def from_equinox(
    module: eqx.Module, state: eqx.nn.State | None, training: Training | None
) -> Apply:
    """The adapter of an equinox module, with its state if it has one, see `dflax.models.as_apply`."""
    name, call = type(module).__name__, type(module).__call__
    places = _places(module)
    if places and state is None:
        raise ValueError(
            f"model {name} must come with its state, got the module alone. Pass the pair: "
            "model = eqx.nn.make_with_state(Net)(...), then losses.classification(model)."
        )
    given = 3 if places else 2
    positional = [
        p
        for p in inspect.signature(call).parameters.values()
        if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD, p.VAR_POSITIONAL)
    ]
    if len(positional) < given and positional[-1].kind is not inspect.Parameter.VAR_POSITIONAL:
        raise ValueError(
            f"model {name} must be called as (x, state) and return (outputs, state), as it holds "
            f"state, got the arguments ({', '.join(p.name for p in positional[1:])})."
        )
    takes_key = "key" in inspect.signature(call).parameters
    if not takes_key and any(layer.p for layer in _layers(module, eqx.nn.Dropout)):
        raise ValueError(
            f"model {name} must take a key for its Dropout, got a call without one. Give its __call__ "
            "the argument key=None and hand it to the layer."
        )
    switched = switches(name, call, training, {}, given, also=("key",))
    axes = {layer.axis_name for layer in _layers(module, eqx.nn.BatchNorm)}
    if len(axes) > 1:
        raise ValueError(f"model {name} must name one batch axis in all BatchNorm, got {axes}.")
    axis = next(iter(axes), None)
    weights_like, static = eqx.partition(module, eqx.is_inexact_array)
    # An update must keep the types, and what comes back from float32 is no Python number's any more.
    state = jax.tree.map(lambda leaf: jnp.asarray(leaf, leaf.dtype), state)

    def read(state: Any) -> dict[Any, PyTree[Array]]:
        return {place: state.get(index) for place, index in places.items()}

    kept = {} if state is None else read(state)
    kept_like = jax.eval_shape(lambda: kept)
    shapes_like = jax.eval_shape(lambda: weights_like)

    def with_values(statistics: PyTree[Array]) -> eqx.nn.State | None:
        if state is None:
            return None
        # Setting ends the life of the state it is called on.
        new = jax.tree.map(lambda leaf: leaf, state)
        for place, value in as_kept(statistics, kept_like).items():
            new = new.set(places[place], value)
        return new

    def checked(params: Params) -> tuple[Params, PyTree[Array] | None]:
        weights, statistics = split_statistics(params)
        require(params, weights, "params", shapes_like)
        if places:
            require(params, statistics, STATISTICS, kept_like)
        return weights, statistics

    def call_all(
        model: Any,
        statistics: PyTree[Array] | None,
        inputs: PyTree[Array],
        keys: Key[Array, " B"] | None,
        trains: bool,
    ) -> tuple[PyTree[Array], PyTree[Array]]:
        """The outputs of all examples, and the statistics after them."""
        options = switched.options(trains)

        def one(x: Any, own: Any) -> tuple[Any, Any]:
            named = {"key": own} if takes_key else {}
            if not places:
                return model(x, **named, **options), ()
            began = with_values(statistics)
            before = read(began)
            outputs, ended = model(x, began, **named, **options)
            if trains and stands_still(before, read(ended)) and not switched.waived:
                switched.refuse("a training pass that left the state as it was")
            return outputs, as_real(read(ended))

        each = None if keys is None else 0
        return jax.vmap(one, in_axes=(0, each), out_axes=(0, None), axis_name=axis)(inputs, keys)

    def forward(
        params: Params, inputs: PyTree[Array], key: Key[Array, ""] | None
    ) -> tuple[PyTree[Array], Float[Array, ""]]:
        weights, statistics = checked(params)
        trains = key is not None
        model = eqx.nn.inference_mode(eqx.combine(weights, static), not trains)
        size = jax.tree.leaves(inputs)[0].shape[0]
        keys = None if key is None else jax.random.split(key, size)
        outputs, new = call_all(model, statistics, inputs, keys, trains)
        if not trains or not places:
            return outputs, jnp.zeros(())
        return outputs, carry(params, new)

    def calibrate(params: Params, inputs: PyTree[Array]) -> tuple[PyTree[Array], PyTree[Array]]:
        weights, _ = checked(params)
        if not places:
            missing_statistics()
        model = eqx.nn.inference_mode(eqx.combine(weights, static), True)
        normal = _layers(model, eqx.nn.BatchNorm)
        model = eqx.tree_at(
            lambda tree: [layer.inference for layer in _layers(tree, eqx.nn.BatchNorm)],
            model,
            [False] * len(normal),
        )
        # The first update of a state that has seen nothing is the batch's own.
        fresh = jax.tree.map(
            lambda like: jnp.full(like.shape, like.dtype == bool, like.dtype), kept_like
        )
        return call_all(model, as_real(fresh), inputs, None, True)

    def variables(key: Key[Array, ""] | None, inputs: PyTree[Array] | None) -> Params:
        return {"params": weights_like} | ({STATISTICS: as_real(kept)} if places else {})

    def fill(variables: Params, inputs: PyTree[Array] | None) -> Any:
        weights, statistics = checked(variables)
        model = eqx.combine(weights, static)
        return (model, with_values(statistics)) if state is not None else model

    return Apply(forward, calibrate, variables, fill)


def _layers(module: eqx.Module, kind: type) -> list[Any]:
    """The layers of a kind anywhere in a module."""
    leaves = jax.tree.leaves(module, is_leaf=lambda node: isinstance(node, kind))
    return [leaf for leaf in leaves if isinstance(leaf, kind)]


def _places(module: eqx.Module) -> dict[str, eqx.nn.StateIndex]:
    """Where a module keeps state, by its path; a layer that is used twice keeps it once."""
    leaves = jax.tree_util.tree_leaves_with_path(
        module, is_leaf=lambda node: isinstance(node, eqx.nn.StateIndex)
    )
    found: dict[str, eqx.nn.StateIndex] = {}
    for path, leaf in leaves:
        if isinstance(leaf, eqx.nn.StateIndex) and leaf.marker not in {
            index.marker for index in found.values()
        }:
            found[jax.tree_util.keystr(path, simple=True, separator="/")] = leaf
    return found
