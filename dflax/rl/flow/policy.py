"""Flow policies: noise that an ordinary differential equation carries to an action."""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float, Key

from dflax import validation
from dflax.algorithm import Params
from dflax.generative.fields import Field
from dflax.generative.path import rectified
from dflax.generative.sampling import grid, sample
from dflax.generative.steps import euler
from dflax.models.diffusion.noised import Noised
from dflax.models.mlp import widths
from dflax.rl.networks import Tower


class FlowPolicy(NamedTuple):
    """A policy whose actions are samples of a flow, with a critic.

    Time is that of `dflax.generative`: t = 1 is noise, t = 0 the action, `dx/dt = u(x, t, s)`. Papers
    that count from the noise on have the times 1 - t and the velocity v = -u.

    Attributes:
      velocity: `(params, noised) -> u [B, D]`; `noised.x` are the points, `noised.condition` the
        observations.
      value: `(params, observations) -> V [...]`.
      log_deviation: `params -> [D]`, log sigma of the Gaussian noise on top of the flow.
      actions: D (static).
    """

    velocity: Callable[[Params, Noised], Float[Array, "B D"]]
    value: Callable[[Params, Array], Float[Array, "..."]]
    log_deviation: Callable[[Params], Float[Array, " D"]]
    actions: int

    def field(self, params: Params) -> Field:
        """As samplers of `dflax.generative` ask it."""
        return lambda noised, key: self.velocity(params, noised)

    def transported(
        self,
        params: Params,
        observation: Float[Array, "B S"],
        noise: Float[Array, "B D"],
        steps: int,
    ) -> Float[Array, "B D"]:
        """Where the flow carries noise: S of Euler's steps from t = 1 to 0."""
        unused = jax.random.key(0)
        way = (euler(rectified()), noise, grid(steps), unused, observation)
        return sample(self.field(params), *way)


class FlowActorCritic(nn.Module):
    """A velocity of actions and a value, that share nothing, and a deviation that no state changes.

    Attributes:
      actions: D >= 1.
      features: widths of the hidden layers of both.
      deviation: sigma at the start.
      least: sigma's lower bound, > 0. Ratios of probabilities have no bound where it may come to 0.
      most: sigma's upper bound.
      gain: of the velocity's last layer; 0: the flow begins as the identity, actions as noise.
      scale: of the velocity.
      activation: between layers.

    References:
      Yang et al., PolicyFlow, arXiv 2602.01156.
    """

    actions: int
    features: Sequence[int] = (64, 64)
    deviation: float = 0.5
    least: float = 0.05
    most: float = 1.0
    gain: float = 0.0
    scale: float = 1.0
    activation: Callable[[Array], Array] = nn.tanh

    def __post_init__(self) -> None:
        validation.integer("actions", self.actions, low=1)
        widths("features", self.features)
        fix = "Without noise actions have no density. An action for evaluation needs none."
        for name in ("least", "most", "deviation"):
            validation.real(name, getattr(self, name), low=0.0, low_open=True, scalar=True, fix=fix)
        validation.real("gain", self.gain, low=0.0, scalar=True)
        validation.real("scale", self.scale, scalar=True)
        validation.function("activation", self.activation, takes=1)
        if not self.least < self.most:
            raise ValueError(f"most must be above least = {self.least}, got {self.most}.")
        if not self.least < self.deviation < self.most:
            raise ValueError(
                f"deviation must lie between least = {self.least} and most = {self.most}, got "
                f"{self.deviation}."
            )
        super().__post_init__()

    def setup(self) -> None:
        """The two networks, and where sigma lies between its bounds."""
        self.actor = Tower(self.features, self.actions, self.gain, self.activation)
        self.critic = Tower(self.features, 1, 1.0, self.activation)
        low, high = math.log(self.least), math.log(self.most)
        share = (math.log(self.deviation) - low) / (high - low)
        start = math.log(share / (1.0 - share))
        self.spread = self.param("spread", lambda _: jnp.full(self.actions, start, jnp.float32))

    def velocity(self, noised: Noised) -> Float[Array, "B D"]:
        """u, `[B, D]`."""
        x, time = noised.x, noised.time[:, None].astype(noised.x.dtype)
        inputs: list[Any] = [noised.condition, x, time]
        return self.scale * self.actor(jnp.concatenate(inputs, axis=-1))

    def value(self, observation: Float[Array, "... S"]) -> Float[Array, "..."]:
        """V, `[...]`."""
        return self.critic(observation)[..., 0]

    def log_deviation(self) -> Float[Array, " D"]:
        """Log sigma, `[D]`; between its bounds, where a sigmoid puts it."""
        low, high = math.log(self.least), math.log(self.most)
        return low + (high - low) * nn.sigmoid(self.spread)

    def __call__(self, observation: Float[Array, "B S"]) -> tuple[Array, Array, Array]:
        """Everything once, so that `init` makes all parameters from observations alone."""
        size = (*observation.shape[:1], self.actions)
        noised = Noised(jnp.zeros(size), jnp.zeros(size[:1]), observation)
        return self.velocity(noised), self.value(observation), self.log_deviation()


def flow_policy(networks: FlowActorCritic) -> FlowPolicy:
    """The policy of a module's parameters, `networks.init(key, observations)["params"]`.

    Args:
      networks: the module.

    Raises:
      TypeError: naming the argument.
    """
    validation.instance("networks", networks, FlowActorCritic)

    def of(method: str) -> Callable[..., Any]:
        return lambda params, *given: networks.apply({"params": params}, *given, method=method)

    return FlowPolicy(of("velocity"), of("value"), of("log_deviation"), networks.actions)


def flowing(
    policy: FlowPolicy, params: Params, steps: int, *, noise: bool = True
) -> Callable[[Array, Key[Array, ""]], tuple[Array, tuple[()]]]:
    """How a flow policy acts, for `rollout` and `evaluate`: `(observations, key) -> (actions, ())`.

    Args:
      policy: see `FlowPolicy`.
      params: its parameters.
      steps: S >= 1 of Euler's steps.
      noise: whether the Gaussian noise on top of the flow is drawn.

    Raises:
      TypeError, ValueError: naming the argument.
    """
    require_policy(policy)
    validation.model("params", params)
    validation.integer("steps", steps, low=1)
    validation.flag("noise", noise)

    def act(seen: Array, key: Key[Array, ""]) -> tuple[Array, tuple[()]]:
        start_key, noise_key = jax.random.split(key)
        size = (seen.shape[0], policy.actions)
        action = policy.transported(params, seen, jax.random.normal(start_key, size), steps)
        if noise:
            deviation = jnp.exp(policy.log_deviation(params))
            action = action + deviation * jax.random.normal(noise_key, size)
        return action, ()

    return act


def require_policy(value: object) -> None:
    """Refuse what is no `FlowPolicy`."""
    fix = "Make one with dflax.rl.flow_policy(dflax.rl.FlowActorCritic(actions))."
    validation.instance("policy", value, FlowPolicy, fix)
