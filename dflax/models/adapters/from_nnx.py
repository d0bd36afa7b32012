"""Models of flax.nnx: `Param` is weights, `BatchStat` statistics, streams of random keys are fed."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Key, PyTree

from dflax.algorithm import Params
from dflax.models.adapters.adapter import (
    Apply,
    Training,
    carry,
    missing_statistics,
    require,
    split_statistics,
    stands_still,
    switches,
)
from dflax.models.averaged import STATISTICS

KINDS = (nnx.Param, nnx.BatchStat, nnx.RngKey, nnx.RngCount, ...)


def from_nnx(module: nnx.Module, training: Training | None) -> Apply:
    """The adapter of an nnx module, see `dflax.models.as_apply`."""
    switched = switches(type(module).__name__, type(module).__call__, training, {}, given=2)
    graph, *held = nnx.split(module, *KINDS)
    weights_like, statistics_like = (_shapes(state) for state in held[:2])
    streams, counts, others = held[2:]
    # A layer that is merely held for its keys does not count.
    drops = any(isinstance(node, nnx.Dropout) and node.rate for _, node in nnx.iter_graph(module))

    def checked(params: Params) -> tuple[Params, PyTree[Array] | None]:
        weights, statistics = split_statistics(params)
        require(params, weights, "params", _named(weights_like))
        if _named(statistics_like):
            require(params, statistics, STATISTICS, _named(statistics_like))
        return weights, statistics

    def merge(weights: Any, statistics: Any, key: Key[Array, ""] | None) -> Any:
        parts = (
            _fill(weights_like, weights),
            _fill(statistics_like, statistics),
            _fed(streams, key),
            jax.tree.map(jnp.zeros_like, counts),
            jax.tree.map(lambda leaf: leaf, others),
        )
        return nnx.merge(graph, *parts), parts

    def forward(
        params: Params, inputs: PyTree[Array], key: Key[Array, ""] | None
    ) -> tuple[PyTree[Array], Float[Array, ""]]:
        weights, statistics = checked(params)
        trains = key is not None
        model, parts = merge(weights, statistics, key)
        # Taken now: the model's variables are written in place.
        counts_before, others_before = map(jax.tree.leaves, parts[3:])
        model.train() if trains else model.eval()
        outputs = model(inputs, **switched.options(trains))
        _refuse_changes(type(module).__name__, others_before, parts[4])
        if not trains:
            return outputs, jnp.zeros(())
        if drops and _same(counts_before, parts[3]) and not switched.waived:
            switched.refuse("a training pass in which no Dropout drew a key")
        if not _named(statistics_like):
            return outputs, jnp.zeros(())
        new = _named(nnx.state(model, nnx.BatchStat))
        if stands_still(statistics, new) and not switched.waived:
            switched.refuse("a training pass that left every BatchStat as it was")
        return outputs, carry(params, new)

    def calibrate(params: Params, inputs: PyTree[Array]) -> tuple[PyTree[Array], PyTree[Array]]:
        weights, statistics = checked(params)
        if not statistics:
            missing_statistics()

        model, _ = merge(weights, statistics, None)
        model.eval()
        # What is new is the minibatch's own, with nothing kept of the old.
        own = {"momentum": 0.0, "use_running_average": False}
        model.set_attributes(nnx.BatchNorm, raise_if_not_found=False, **own)
        outputs = model(inputs, **switched.options(True))
        return outputs, _named(nnx.state(model, nnx.BatchStat))

    def variables(key: Key[Array, ""] | None, inputs: PyTree[Array] | None) -> Params:
        weights, statistics = (_named(state) for state in nnx.split(module, *KINDS)[1:3])
        return {"params": weights} | ({STATISTICS: statistics} if statistics else {})

    def fill(variables: Params, inputs: PyTree[Array] | None) -> nnx.Module:
        weights, statistics = checked(variables)
        filled = _fill(weights_like, weights), _fill(statistics_like, statistics)
        return nnx.merge(
            graph, *filled, *jax.tree.map(lambda leaf: leaf, (streams, counts, others))
        )

    return Apply(forward, calibrate, variables, fill)


def _fed(streams: nnx.State, key: Key[Array, ""] | None) -> nnx.State:
    """Stream number i, in the order of their paths, starts from fold_in(key, i)."""
    leaves, structure = jax.tree.flatten(streams)
    if key is not None:
        keys = [jax.random.fold_in(key, i) for i in range(len(leaves))]
        leaves = [
            jax.random.split(own, leaf.shape) if leaf.shape else own
            for own, leaf in zip(keys, leaves, strict=True)
        ]
    return jax.tree.unflatten(structure, leaves)


def _shapes(state: nnx.State) -> nnx.State:
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), state)


def _named(state: nnx.State) -> dict[str, Any]:
    """A state as nested dicts of arrays; places in lists become strings, as files want them."""

    def named(tree: Any) -> Any:
        return {str(k): named(v) for k, v in tree.items()} if isinstance(tree, dict) else tree

    return named(nnx.to_pure_dict(state))


def _fill(like: nnx.State, named: Any) -> nnx.State:
    """A state of the given structure that holds the arrays of the nested dicts."""

    def filled(tree: Any, names: Any) -> Any:
        if not isinstance(tree, dict):
            return names
        return {place: filled(value, names[str(place)]) for place, value in tree.items()}

    state = jax.tree.map(lambda leaf: leaf, like)
    if named:
        nnx.replace_by_pure_dict(state, filled(nnx.to_pure_dict(like), named))
    return state


def _same(before: list[Array], after: nnx.State) -> bool:
    pairs = zip(before, jax.tree.leaves(after), strict=True)
    return all(old is new for old, new in pairs)


def _refuse_changes(name: str, before: list[Array], after: nnx.State) -> None:
    """Variables of other kinds would be forgotten after the pass."""
    for old, (path, variable) in zip(before, nnx.to_flat_state(after), strict=True):
        if not _same([old], variable):
            raise ValueError(
                f"model {name} must change no variables but BatchStat when it is called, got a new "
                f"value of {'.'.join(map(str, path))}, a {type(variable).__name__}. Make it an "
                "nnx.BatchStat, which is kept from step to step."
            )
