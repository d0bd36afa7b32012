"""Proximal policy optimisation, and the experience that it and its relatives keep."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Key, PyTree

from dflax import validation
from dflax.algorithm import Metrics, Params
from dflax.rl.advantages import gae, standardised
from dflax.rl.environment import Environment, require_environment
from dflax.rl.learner import Learner
from dflax.rl.minibatches import epochs_of
from dflax.rl.rollout import Running, begin, rollout
from dflax.rl.surrogate import clipped

Networks = Callable[[Params, Array], tuple[Any, Float[Array, "..."]]]


class Experience(NamedTuple):
    """What an agent keeps between rounds.

    Attributes:
      running: its environments.
      optimizer: the optimiser's state.
      task: its task.
    """

    running: Running
    optimizer: PyTree[Array]
    task: PyTree[Array]


class Noted(NamedTuple):
    """What is noted with each action: its log-probability, and the value of the state."""

    log_prob: Float[Array, "..."]
    value: Float[Array, "..."]


class Sample(NamedTuple):
    """A step as PPO learns from it, leaves `[N, ...]`."""

    observation: Float[Array, "N ..."]
    action: Any
    noted: Noted
    advantage: Float[Array, " N"]
    target: Float[Array, " N"]
    counted: Float[Array, " N"]


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

    References:
      Schulman et al., Proximal Policy Optimization Algorithms, arXiv 1707.06347.
    """
    require_environment(environment)
    validation.function("networks", networks, "It gets parameters and observations.", takes=2)
    validation.instance("optimizer", optimizer, optax.GradientTransformation)
    require_sizes(environments, steps, epochs, minibatches)
    validation.probability("discount", discount)
    validation.probability("decay", decay)
    validation.real("clip", clip, low=0.0, low_open=True, scalar=True)
    if value_clip is not None:
        validation.real("value_clip", value_clip, low=0.0, low_open=True, scalar=True)
    validation.real("value_weight", value_weight, low=0.0, scalar=True)
    validation.real("entropy_weight", entropy_weight, low=0.0, scalar=True)
    validation.flag("bootstrap", bootstrap)

    def init(key: Key[Array, ""], params: Params, task: Any) -> Experience:
        running = begin(environment, task, key, environments)
        return Experience(running, optimizer.init(params), task)

    def gathered(
        key: Key[Array, ""], params: Params, memory: Experience
    ) -> tuple[Running, Sample, Metrics]:
        def act(seen: Array, key: Key[Array, ""]) -> tuple[Any, Noted]:
            policy, value = networks(params, seen)
            action = policy.draw(key)
            return action, Noted(policy.log_prob(action), value)

        def value(seen: Array) -> Array:
            return networks(params, seen)[1]

        running, found, measured = rollout(
            environment,
            memory.task,
            act,
            memory.running,
            steps,
            key,
            value=value if bootstrap else None,
        )
        reward = found.reward
        if found.beyond is not None:
            reward = reward + discount * found.beyond
        last = jax.vmap(lambda state: environment.observe(memory.task, state))(running.state)
        made = gae(reward, found.kept.value, found.end, value(last), discount, decay)
        sample = Sample(found.observation, found.action, found.kept, *made, counted=found.counted)
        flat = jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:]), sample)
        return running, flat, measured

    def loss(params: Params, batch: Sample, key: Key[Array, ""]) -> tuple[Array, Metrics]:
        policy, value = networks(params, batch.observation)
        total = jnp.maximum(jnp.sum(batch.counted), 1.0)
        moved = clipped(
            policy.log_prob(batch.action) - batch.noted.log_prob,
            standardised(batch.advantage, batch.counted),
            clip,
            weights=batch.counted,
        )
        error = value_error(value, batch.noted.value, batch.target, value_clip)
        parts = {
            "policy_loss": -jnp.sum(moved.objective) / total,
            "value_loss": 0.5 * jnp.sum(batch.counted * error) / total,
            "entropy": jnp.sum(batch.counted * policy.entropy()) / total,
        }
        whole = (
            parts["policy_loss"]
            + value_weight * parts["value_loss"]
            - entropy_weight * parts["entropy"]
        )
        return whole, parts | moved.metrics

    def learn(
        key: Key[Array, ""], params: Params, memory: Experience
    ) -> tuple[Params, Experience, Metrics]:
        act_key, learn_key = jax.random.split(key)
        running, samples, measured = gathered(act_key, params, memory)
        params, state, trained = epochs_of(
            loss,
            optimizer,
            params,
            memory.optimizer,
            samples,
            learn_key,
            epochs=epochs,
            minibatches=minibatches,
        )
        return params, Experience(running, state, memory.task), measured | trained

    return Learner(init, learn, environment.task)


def value_error(
    value: Array, before: Array, target: Array, clip: float | Array | None
) -> Float[Array, "..."]:
    """The squared error of a value, or the larger one of it and of one that moved at most `clip`."""
    error = (value - target) ** 2
    if clip is None:
        return error
    kept = before + jnp.clip(value - before, -clip, clip)
    return jnp.maximum(error, (kept - target) ** 2)


def require_sizes(environments: int, steps: int, epochs: int, minibatches: int) -> None:
    """Refuse counts below 1, and minibatches that do not divide the steps of all environments."""
    validation.integer("environments", environments, low=1)
    validation.integer("steps", steps, low=1)
    validation.integer("epochs", epochs, low=1)
    validation.integer("minibatches", minibatches, low=1)
    if steps * environments % minibatches:
        raise ValueError(
            f"minibatches must divide steps times environments, {steps * environments}, got "
            f"{minibatches}."
        )
