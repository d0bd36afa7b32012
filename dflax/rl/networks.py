"""Small actor-critic networks: a policy's distribution and a value, of vectors of observations."""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.nn.initializers import Initializer
from jaxtyping import Array, Float

from dflax import validation
from dflax.models.mlp import widths
from dflax.rl.distributions import Categorical, Gaussian


def orthogonal(gain: float | Array) -> Initializer:
    """`jax.nn.initializers.orthogonal`, of which those of several agents are made one after another.

    A batch of QR decompositions runs in XLA's threads on a CPU and waits there for others of these
    threads. Where there are two of them, two batches in one program wait for ever.
    """

    def init(
        key: Array, shape: Sequence[int], dtype: Any = jnp.float32, out_sharding: Any = None
    ) -> Array:
        return gain * _one_after_another(tuple(shape), jnp.dtype(dtype), out_sharding)(key)

    return init


@functools.cache
def _one_after_another(
    shape: tuple[int, ...], dtype: Any, out_sharding: Any
) -> Callable[[Array], Array]:
    """`key -> orthogonal weights`; the same function for the same shape, which is compiled once."""

    def one(key: Array) -> Array:
        return nn.initializers.orthogonal(1.0)(key, shape, dtype, out_sharding)

    return jax.jit(jax.custom_batching.sequential_vmap(one))


class Tower(nn.Module):
    """Dense layers with zero biases, and orthogonal weights if nothing else is asked for.

    Attributes:
      features: widths of the hidden layers.
      outputs: width of the last one.
      gain: of the last layer's orthogonal weights.
      activation: between layers.
      hidden_init: how the hidden layers' weights begin; orthogonal with gain sqrt 2.
      last_init: how the last layer's weights begin; None: orthogonal.
    """

    features: Sequence[int]
    outputs: int
    gain: float = 1.0
    activation: Callable[[Array], Array] = nn.tanh
    hidden_init: Initializer = orthogonal(math.sqrt(2.0))
    last_init: Initializer | None = None

    def __post_init__(self) -> None:
        widths("features", self.features)
        validation.integer("outputs", self.outputs, low=1)
        validation.real("gain", self.gain, scalar=True)
        validation.function("activation", self.activation, takes=1)
        fix = "It gets a key, a shape and a dtype, as those of jax.nn.initializers."
        validation.function("hidden_init", self.hidden_init, fix, takes=3)
        if self.last_init is not None:
            validation.function("last_init", self.last_init, fix, takes=3)
        super().__post_init__()

    @nn.compact
    def __call__(self, x: Float[Array, "... S"]) -> Float[Array, "... outputs"]:
        """`[..., outputs]`."""
        for width in self.features:
            x = self.activation(nn.Dense(width, kernel_init=self.hidden_init)(x))
        last = self.last_init or orthogonal(self.gain)
        return nn.Dense(self.outputs, kernel_init=last)(x)


class ActorCritic(nn.Module):
    """A policy and a value that share nothing: one of N actions, or D real numbers.

    Attributes:
      actions: N logits, or D means with `gaussian`.
      features: widths of the hidden layers of both.
      gaussian: whether actions are real numbers, with deviations that no state changes.
      log_deviation: their logarithm at the start.
      activation: between layers.
    """

    actions: int
    features: Sequence[int] = (64, 64)
    gaussian: bool = False
    log_deviation: float = 0.0
    activation: Callable[[Array], Array] = nn.tanh

    def __post_init__(self) -> None:
        validation.integer("actions", self.actions, low=1)
        widths("features", self.features)
        validation.flag("gaussian", self.gaussian)
        validation.real("log_deviation", self.log_deviation, scalar=True)
        validation.function("activation", self.activation, takes=1)
        super().__post_init__()

    @nn.compact
    def __call__(self, observation: Float[Array, "... S"]) -> tuple[Any, Float[Array, "..."]]:
        """A distribution of actions, and the value `[...]`."""
        x = observation.astype(jnp.promote_types(observation.dtype, jnp.float32))
        told = Tower(self.features, self.actions, 0.01, self.activation, name="actor")(x)
        value = Tower(self.features, 1, 1.0, self.activation, name="critic")(x)[..., 0]
        if not self.gaussian:
            return Categorical(told), value
        shape = (self.actions,)
        deviation = self.param(
            "log_deviation", lambda _: jnp.full(shape, self.log_deviation, jnp.float32)
        )
        return Gaussian(told, jnp.broadcast_to(deviation, told.shape)), value


def taking(networks: Callable[..., Any], params: Any, *, mode: bool = False) -> Callable[..., Any]:
    """How a policy acts, for `rollout` and `evaluate`: `(observations, key) -> (actions, ())`.

    Args:
      networks: `(params, observations) -> (distribution, value)`.
      params: of the networks.
      mode: whether the most probable action is taken; else one is drawn.

    Raises:
      TypeError: naming the argument.
    """
    validation.function("networks", networks, "It gets parameters and observations.", takes=2)
    validation.arrays("params", params)
    validation.flag("mode", mode)

    def act(observation: Array, key: jax.Array) -> tuple[Any, tuple[()]]:
        policy, _ = networks(params, observation)
        return (policy.mode() if mode else policy.draw(key)), ()

    return act
