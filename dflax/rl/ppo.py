"""Proximal policy optimisation."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Key

from dflax import validation
from dflax.algorithm import Metrics, Params
from dflax.rl.advantages import standardised
from dflax.rl.environment import Environment
from dflax.rl.experience import Reference, Sample, Sizes, on_policy, value_loss
from dflax.rl.learner import Learner
from dflax.rl.surrogate import clipped

Networks = Callable[[Params, Array], tuple[Any, Float[Array, "..."]]]


class Noted(NamedTuple):
    """What is noted with each action: its log-probability, and the value of the state."""

    log_prob: Float[Array, "..."]
    value: Float[Array, "..."]


def ppo(
    environment: Environment,
    networks: Networks,
    optimizer: optax.GradientTransformation,
    *,
    environments: int = 4,
    steps: int = 128,
    epochs: int = 4,
    minibatches: int = 4,
    discount: float | Float[Array, ""] = 0.99,
    decay: float | Float[Array, ""] = 0.95,
    clip: float | Float[Array, ""] = 0.2,
    value_clip: float | Float[Array, ""] | None = 0.2,
    value_weight: float | Float[Array, ""] = 0.5,
    entropy_weight: float | Float[Array, ""] = 0.01,
    bootstrap: bool = True,
) -> Learner:
    """Proximal policy optimisation (PPO).

    A round: T steps in each of E environments, generalised advantages, and epochs of minibatches on

        - mean min(rho A, clip(rho, 1 - eps, 1 + eps) A) + c_v/2 mean (V - R)^2 - c_e mean entropy

    with rho = pi(a|s) / pi_old(a|s), A standardised in each minibatch, R = A + V_old, and the value's
    error the larger of that of V and that of V_old + clip(V - V_old, -eps_v, eps_v).

    Args:
      environment: see `Environment`.
      networks: `(params, observations) -> (distribution, value)`, for example `ActorCritic(...).apply`
        with `{"params": params}`.
      optimizer: an optax optimiser, with its clipping of gradients.
      environments: E >= 1.
      steps: T >= 1.
      epochs: >= 1.
      minibatches: >= 1; must divide T E.
      discount: gamma in [0, 1]; traceable.
      decay: lambda in [0, 1]; traceable.
      clip: eps > 0; traceable.
      value_clip: eps_v > 0; traceable; None for none.
      value_weight: c_v >= 0; traceable.
      entropy_weight: c_e >= 0; traceable.
      bootstrap: whether an episode that a time limit broke off is worth what its last state is; else
        it ends there, as if terminal.

    Returns:
      A `Learner`, for `alone`, `federated` and `gossiping`. Metrics: those of `rollout` and `clipped`,
      `loss`, `policy_loss`, `value_loss`, `entropy`.

    Raises:
      TypeError, ValueError: naming the argument.

    Examples:
      >>> import jax, jax.numpy as jnp, optax, dflax as dx
      >>> lake = dx.rl.time_limit(dx.rl.frozen_lake(dx.rl.random_lake(0, size=3)), 20)
      >>> network = dx.rl.ActorCritic(actions=4, features=(16,))
      >>> act = lambda params, seen: network.apply({"params": params}, seen)
      >>> agents = dx.rl.alone(dx.rl.ppo(lake, act, optax.adam(0.01), steps=16), agents=2)
      >>> params = network.init(jax.random.key(0), jnp.zeros((1, 9)))["params"]
      >>> state = agents.init(jax.random.key(1), params)
      >>> state, history = dx.run(agents, state, dx.Population(2), rounds=3, key=jax.random.key(2))
      >>> history.metrics["loss"].shape  # rounds, agents
      (3, 2)

    References:
      Schulman et al., Proximal Policy Optimization Algorithms, arXiv 1707.06347.
    """
    validation.function("networks", networks, "It gets parameters and observations.", takes=2)
    validation.real("clip", clip, low=0.0, low_open=True, scalar=True)
    if value_clip is not None:
        validation.real("value_clip", value_clip, low=0.0, low_open=True, scalar=True)
    validation.real("value_weight", value_weight, low=0.0, scalar=True)
    validation.real("entropy_weight", entropy_weight, low=0.0, scalar=True)

    def act(params: Params, seen: Array, key: Key[Array, ""]) -> tuple[Any, Noted]:
        policy, value = networks(params, seen)
        action = policy.draw(key)
        return action, Noted(policy.log_prob(action), value)

    def loss(
        params: Params, reference: Reference, batch: Sample, key: Key[Array, ""]
    ) -> tuple[Array, Metrics]:
        policy, value = networks(params, batch.observation)
        total = jnp.maximum(jnp.sum(batch.counted), 1.0)
        moved = clipped(
            policy.log_prob(batch.action) - batch.noted.log_prob,
            standardised(batch.advantage, batch.counted),
            clip,
            weights=batch.counted,
        )
        parts = {
            "policy_loss": -jnp.sum(moved.objective) / total,
            "value_loss": value_loss(value, batch, value_clip),
            "entropy": jnp.sum(batch.counted * policy.entropy()) / total,
        }
        whole = (
            parts["policy_loss"]
            + value_weight * parts["value_loss"]
            - entropy_weight * parts["entropy"]
        )
        return whole, parts | moved.metrics

    return on_policy(
        environment,
        optimizer,
        Sizes(environments, steps, epochs, minibatches),
        act=act,
        value=lambda params, seen: networks(params, seen)[1],
        loss=loss,
        discount=discount,
        decay=decay,
        bootstrap=bootstrap,
    )
