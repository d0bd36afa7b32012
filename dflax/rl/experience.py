"""What methods of the PPO family share: gather a rollout, then epochs of minibatches on it."""

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int, Key, PyTree

from dflax import validation
from dflax.algorithm import Metrics, Params
from dflax.rl.advantages import gae
from dflax.rl.environment import Environment, require_environment
from dflax.rl.learner import Learner
from dflax.rl.minibatches import epochs_of
from dflax.rl.rollout import Running, begin, rollout


class Experience(NamedTuple):
    """What an agent keeps between rounds.

    Attributes:
      running: its environments.
      optimizer: the optimiser's state.
      task: its task.
      round: `[]` int32, rounds that it has learned.
    """

    running: Running
    optimizer: PyTree[Array]
    task: PyTree[Array]
    round: Int[Array, ""] | int = 0


class Valued(Protocol):
    """What is noted with each action; the value of the state, and what the method needs beside."""

    @property
    def value(self) -> Float[Array, "..."]:
        """V of the state, `[...]`."""


class Sample(NamedTuple):
    """A step as PPO and its relatives learn from it, leaves `[N, ...]`."""

    observation: Float[Array, "N ..."]
    action: Any
    noted: Any
    advantage: Float[Array, " N"]
    target: Float[Array, " N"]
    counted: Float[Array, " N"]


class Reference(NamedTuple):
    """What stands still while an agent learns from a rollout.

    Attributes:
      params: those that gathered it.
      round: `[]` int32, rounds learned before.
    """

    params: Params
    round: Int[Array, ""]


Act = Callable[[Params, Array, Key[Array, ""]], tuple[Any, Valued]]
Value = Callable[[Params, Array], Float[Array, "..."]]
Loss = Callable[[Params, Reference, Sample, Key[Array, ""]], tuple[Float[Array, ""], Metrics]]


class Sizes(NamedTuple):
    """How much is gathered, and how often it is used.

    Attributes:
      environments: E >= 1.
      steps: T >= 1 in each.
      epochs: >= 1.
      minibatches: >= 1 an epoch; must divide T E.
    """

    environments: int
    steps: int
    epochs: int
    minibatches: int


def on_policy(
    environment: Environment,
    optimizer: optax.GradientTransformation,
    sizes: Sizes,
    *,
    act: Act,
    value: Value,
    loss: Loss,
    discount: float | Float[Array, ""],
    decay: float | Float[Array, ""],
    bootstrap: bool = True,
) -> Learner:
    """A method of the PPO family, by how it acts and what it minimises.

    A round: T steps in each of E environments, generalised advantages, and epochs of minibatches on the
    loss, with the parameters that gathered the steps as reference.

    Args:
      environment: see `Environment`.
      optimizer: an optax optimiser.
      sizes: of the rollout and of learning.
      act: `(params, observations, key) -> (actions, noted)`; `noted.value` is V.
      value: `(params, observations) -> V`.
      loss: `(params, reference, samples, key) -> (loss, metrics)`.
      discount: gamma in [0, 1]; traceable.
      decay: lambda in [0, 1]; traceable.
      bootstrap: whether an episode that a time limit broke off is worth what its last state is; else
        it ends there, as if terminal.

    Returns:
      A `Learner`. Metrics: those of `rollout`, and means of the loss and its metrics.

    Raises:
      TypeError, ValueError: naming the argument.
    """
    require_environment(environment)
    validation.instance("optimizer", optimizer, optax.GradientTransformation)
    validation.instance("sizes", sizes, Sizes)
    require_sizes(*sizes)
    validation.function("act", act, "It gets parameters, observations and a key.", takes=3)
    validation.function("value", value, "It gets parameters and observations.", takes=2)
    fix = "It gets parameters, a reference, samples and a key."
    validation.function("loss", loss, fix, takes=4)
    validation.probability("discount", discount)
    validation.probability("decay", decay)
    validation.flag("bootstrap", bootstrap)

    def init(key: Key[Array, ""], params: Params, task: Any) -> Experience:
        running = begin(environment, task, key, sizes.environments)
        return Experience(running, optimizer.init(params), task, jnp.int32(0))

    def gathered(
        key: Key[Array, ""], params: Params, memory: Experience
    ) -> tuple[Running, Sample, Metrics]:
        running, found, measured = rollout(
            environment,
            memory.task,
            lambda seen, key: act(params, seen, key),
            memory.running,
            sizes.steps,
            key,
            value=(lambda seen: value(params, seen)) if bootstrap else None,
        )
        reward = found.reward
        if found.beyond is not None:
            reward = reward + discount * found.beyond
        last = jax.vmap(lambda state: environment.observe(memory.task, state))(running.state)
        beyond = value(params, last)
        made = gae(reward, found.kept.value, found.end, beyond, discount, decay)
        sample = Sample(found.observation, found.action, found.kept, *made, counted=found.counted)
        flat = jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:]), sample)
        return running, flat, measured

    def learn(
        key: Key[Array, ""], params: Params, memory: Experience
    ) -> tuple[Params, Experience, Metrics]:
        act_key, learn_key = jax.random.split(key)
        running, samples, measured = gathered(act_key, params, memory)
        reference = Reference(params, jnp.asarray(memory.round, jnp.int32))
        params, state, trained = epochs_of(
            lambda params, batch, key: loss(params, reference, batch, key),
            optimizer,
            params,
            memory.optimizer,
            samples,
            learn_key,
            epochs=sizes.epochs,
            minibatches=sizes.minibatches,
        )
        after = Experience(running, state, memory.task, reference.round + 1)
        return params, after, measured | trained

    return Learner(init, learn, environment.task)


def value_loss(value: Array, batch: Sample, clip: float | Array | None = None) -> Float[Array, ""]:
    """Half of the mean `value_error` of the steps that count."""
    error = value_error(value, batch.noted.value, batch.target, clip)
    return 0.5 * jnp.sum(batch.counted * error) / jnp.maximum(jnp.sum(batch.counted), 1.0)


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
