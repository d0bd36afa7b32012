"""A policy and two critics that share nothing, and optimisers of their own."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn
from jaxtyping import Array, Float, Key, PyTree

from dflax import validation
from dflax.algorithm import Params
from dflax.models.mlp import widths
from dflax.rl.distributions import Categorical
from dflax.rl.networks import Tower

# torch's own start of a dense layer's weights: uniform within 1/sqrt(inputs).
UNIFORM = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")
KAIMING = nn.initializers.variance_scaling(2.0, "fan_in", "uniform")
XAVIER = nn.initializers.xavier_uniform()


class DecisionNetworks(NamedTuple):
    """What an agent with a critic of post-decision states is made of.

    Attributes:
      init: `(key, observation, post-decision observation) -> params`.
      policy: `(params, observations) -> distribution`.
      value: `(params, observations) -> [...]`, V(s).
      post_value: `(params, post-decision observations) -> [...]`, Vx(sx).
    """

    init: Callable[[Key[Array, ""], Array, Array], Params]
    policy: Callable[[Params, Array], Any]
    value: Callable[[Params, Array], Float[Array, "..."]]
    post_value: Callable[[Params, Array], Float[Array, "..."]]


def decision_networks(
    actions: int,
    *,
    choices: int | None = None,
    features: Sequence[int] = (128, 128),
    activation: Callable[[Array], Array] = nn.relu,
) -> DecisionNetworks:
    """Three perceptrons: an actor of one or of several choices, and two critics with tanh.

    The critics begin with Xavier's uniform weights, the actor's hidden layers with weights uniform
    within `1/sqrt(inputs)`, its last layer with Kaiming's; biases are 0.

    Args:
      actions: N >= 1 of each choice.
      choices: J >= 1 independent choices at a time, each with a probability of its own in PPO's clip;
        None: one, without an axis.
      features: widths of the hidden layers of each.
      activation: of the actor.

    Returns:
      The networks, with parameters `{"actor": ..., "critic": ..., "post_critic": ...}`.

    Raises:
      TypeError, ValueError: naming the argument.
    """
    validation.integer("actions", actions, low=1)
    if choices is not None:
        validation.integer("choices", choices, low=1)
    widths("features", features)
    validation.function("activation", activation, takes=1)
    outputs = actions * (choices or 1)
    features = tuple(features)
    critic = Tower(features, 1, hidden_init=XAVIER, last_init=XAVIER)
    actor = Tower(features, outputs, activation=activation, hidden_init=UNIFORM, last_init=KAIMING)

    def init(key: Key[Array, ""], observation: Array, decided: Array) -> Params:
        keys = jax.random.split(key, 3)
        towers = (actor, critic, critic)
        inputs = (observation, observation, decided)
        made = [
            tower.init(k, _floating(x))["params"]
            for tower, k, x in zip(towers, keys, inputs, strict=True)
        ]
        return dict(zip(("actor", "critic", "post_critic"), made, strict=True))

    def policy(params: Params, observation: Array) -> Categorical:
        logits: Any = actor.apply({"params": params["actor"]}, _floating(observation))
        if choices is None:
            return Categorical(logits)
        return Categorical(logits.reshape(*logits.shape[:-1], choices, actions))

    def valued(own: Params, observation: Array) -> Array:
        told: Any = critic.apply({"params": own}, _floating(observation))
        return told[..., 0]

    def value(params: Params, observation: Array) -> Array:
        return valued(params["critic"], observation)

    def post_value(params: Params, decided: Array) -> Array:
        return valued(params["post_critic"], decided)

    return DecisionNetworks(init, policy, value, post_value)


def separate_optimizers(
    actor: optax.GradientTransformation,
    critics: optax.GradientTransformation,
    *,
    train_trunk: bool = True,
) -> optax.GradientTransformation:
    """An optimiser for each of the networks of `decision_networks`.

    Args:
      actor: of the policy.
      critics: of either critic, each with a state of its own.
      train_trunk: whether the policy's hidden layers are trained; else they stay as they began, as
        in the published runs, and the policy is a linear one on random features.

    Raises:
      TypeError: naming the argument.
    """
    validation.instance("actor", actor, optax.GradientTransformation)
    validation.instance("critics", critics, optax.GradientTransformation)
    validation.flag("train_trunk", train_trunk)

    def labels(params: Params) -> PyTree[str]:
        own = {name: jax.tree.map(lambda _: name, part) for name, part in params.items()}  # noqa: B023
        if not train_trunk:
            layers = own["actor"]
            last = max(layers, key=lambda name: int(name.rsplit("_", 1)[1]))
            own["actor"] = {
                name: layer if name == last else jax.tree.map(lambda _: "fixed", layer)
                for name, layer in layers.items()
            }
        return own

    parts = {"actor": actor, "critic": critics, "post_critic": critics}
    return optax.multi_transform({**parts, "fixed": optax.set_to_zero()}, labels)


def _floating(x: Array) -> Array:
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))
