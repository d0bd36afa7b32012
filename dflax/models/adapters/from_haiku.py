"""Models of haiku: a pair of pure functions, whose training switch is an argument of the user's own."""

import inspect
from typing import Any

import haiku as hk
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key, PyTree

from dflax import validation
from dflax.algorithm import Params
from dflax.models.adapters.adapter import (
    Apply,
    Training,
    as_kept,
    as_real,
    carry,
    missing_statistics,
    require_example,
    split_statistics,
    stands_still,
    switches,
)
from dflax.models.averaged import STATISTICS

# The argument of haiku's own BatchNorm and of its networks.
SWITCHES = {"is_training": True}


def from_haiku(model: hk.Transformed | hk.TransformedWithState, training: Training | None) -> Apply:
    """The adapter of a transformed function, see `dflax.models.as_apply`."""
    stateful = isinstance(model, hk.TransformedWithState)
    parameters = list(inspect.signature(model.init).parameters.values())
    switched = switches("of haiku", model.init, training, SWITCHES, given=2)
    # Dropout is a function in haiku: nobody sees whether it was called, so the user has to say.
    flags = [p.name for p in parameters[2:] if isinstance(p.default, bool)]
    if training is None and not switched.training and flags:
        switched.refuse(f"the flags {flags}, any of which may be the switch")
    takes_key = "rng" in inspect.signature(model.apply).parameters

    def forward(
        params: Params, inputs: PyTree[Array], key: Key[Array, ""] | None
    ) -> tuple[PyTree[Array], Float[Array, ""]]:
        weights, statistics = split_statistics(params)
        trains = key is not None
        given: tuple[Any, ...] = (key, inputs) if takes_key else (inputs,)
        options = switched.options(trains)
        if not stateful:
            return model.apply(weights, *given, **options), jnp.zeros(())
        like = state_like(inputs)
        if statistics is None and like:
            missing_statistics()
        state = as_kept(statistics or {}, like)
        outputs, new = model.apply(weights, state, *given, **options)
        if not trains or not like:
            return outputs, jnp.zeros(())
        if stands_still(state, new) and not switched.waived:
            switched.refuse("a training pass that left the state as it was")
        return outputs, carry(params, as_real(dict(new)))

    def calibrate(params: Params, inputs: PyTree[Array]) -> tuple[PyTree[Array], PyTree[Array]]:
        weights, statistics = split_statistics(params)
        if statistics is None:
            missing_statistics()
        # The first update of a state that has seen nothing is the batch's own, its bias removed.
        fresh = as_kept(jax.tree.map(jnp.zeros_like, statistics), state_like(inputs))
        given: tuple[Any, ...] = (None, inputs) if takes_key else (inputs,)
        try:
            outputs, new = model.apply(weights, fresh, *given, **switched.options(True))
        except ValueError as error:
            raise ValueError(
                "model must draw no keys where its statistics are estimated, got a haiku function that "
                "does, and its dropout cannot be switched off by itself. Leave the dropout out of a "
                "second transform of the same function and give that one."
            ) from error
        return outputs, as_real(dict(new))

    def state_like(inputs: PyTree[Array]) -> Any:
        """Which parts of the state are counters only the model's own start can say."""
        options = switched.options(True)
        key = jax.random.key(0)
        return jax.eval_shape(lambda key, x: model.init(key, x, **options), key, inputs)[1]

    def variables(key: Key[Array, ""] | None, inputs: PyTree[Array] | None) -> Params:
        validation.typed_key("key", key)
        require_example(inputs)
        made = model.init(key, inputs, **switched.options(True))
        if not stateful:
            return {"params": made}
        weights, state = made
        return {"params": weights} | ({STATISTICS: as_real(state)} if state else {})

    def fill(variables: Params, inputs: PyTree[Array] | None) -> Any:
        weights, statistics = split_statistics(variables)
        if not stateful:
            return weights
        if inputs is None:
            raise TypeError(
                "inputs must be an example batch for a haiku transform with state, got None: only its "
                "own start tells which parts of the state are counters."
            )
        return weights, as_kept(statistics or {}, state_like(inputs))

    return Apply(forward, calibrate, variables, fill)
