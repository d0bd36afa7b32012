"""PDPPO: PPO with a critic of what a decision leads to before chance comes in."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Key, PyTree

from dflax import validation
from dflax.algorithm import Metrics, Params
from dflax.replay import Ring, in_order, pushed, ring
from dflax.rl.advantages import standardised
from dflax.rl.environment import Environment, require_two_stages
from dflax.rl.learner import Learner
from dflax.rl.minibatches import epochs_of
from dflax.rl.post_decision.critics import Critics, Estimated, Record, larger_part
from dflax.rl.post_decision.networks import DecisionNetworks
from dflax.rl.rollout import Running, Steps, begin, rollout
from dflax.rl.surrogate import clipped


class DecisionMemory(NamedTuple):
    """What an agent keeps between rounds.

    Attributes:
      running: its environments.
      optimizer: the optimiser's state.
      windows: its last windows of experience and the newest, `Steps` with leaves `[W + 1, T, E, ...]`.
      task: its task.
    """

    running: Running
    optimizer: PyTree[Array]
    windows: Ring
    task: PyTree[Array]


class Values(NamedTuple):
    """What is noted with each action, `[T, E]`; log-probabilities `[T, E, J]` of several choices."""

    log_prob: Float[Array, "..."]
    value: Float[Array, "T E"]
    post_value: Float[Array, "T E"]


class DecisionSample(NamedTuple):
    """A step as the agent learns from it, leaves `[N, ...]`."""

    observation: Float[Array, "N ..."]
    decided: Float[Array, "N ..."]
    action: Any
    log_prob: Float[Array, "N ..."]
    advantage: Float[Array, " N"]
    target: Float[Array, " N"] | None
    post_target: Float[Array, " N"] | None
    counted: Float[Array, " N"]


def pdppo(
    environment: Environment,
    networks: DecisionNetworks,
    optimizer: optax.GradientTransformation,
    *,
    critics: Critics | None = None,
    environments: int = 4,
    steps: int = 100,
    windows: int = 5,
    epochs: int = 40,
    discount: float | Float[Array, ""] = 0.9,
    clip: float | Float[Array, ""] = 0.2,
    value_weight: float | Float[Array, ""] = 1.0,
    entropy_weight: float | Float[Array, ""] = 0.001,
    standardise: bool = False,
) -> Learner:
    """Post-decision proximal policy optimisation (PDPPO), and PPO as its authors compare it with.

    A round: a window of T steps in each of E environments; then epochs over it and the W windows
    before it, all samples at once, on

        - mean min(rho A, clip(rho, 1 - eps, 1 + eps) A) - c_e mean entropy
        + c_v (mean (V(s) - target)^2 + mean (Vx(sx) - post_target)^2)

    rho is the ratio of the probabilities of an action now and when it was taken; where an action is J
    choices, each has its own. A and the targets follow from the rule `critics`:

        larger_part     PDPPO as published            post_critic    its older form with one critic
        noiseless       both critics of whole returns  state_critic   PPO

    Args:
      environment: of `two_stage`, with a `time_limit` where episodes have one.
      networks: for example of `decision_networks`.
      optimizer: for example of `separate_optimizers`.
      critics: default `larger_part()`.
      environments: E >= 1. Published: one of 4 episodes a window; E of an episode each are the same
        in law.
      steps: T >= 1.
      windows: W >= 0 earlier windows that are learnt from again.
      epochs: >= 1.
      discount: gamma in [0, 1]; traceable.
      clip: eps > 0; traceable.
      value_weight: c_v >= 0; traceable. With optimisers of Adam's kind for each network it is nothing.
      entropy_weight: c_e >= 0; traceable.
      standardise: whether advantages get mean 0 and deviation 1; published: not.

    Returns:
      A `Learner`, for `alone`, `federated` and `gossiping`. Metrics: those of `rollout`, `clipped` and
      the rule; `loss`, `policy_loss`, `value_loss`, `post_value_loss`, `entropy`, `advantage` (mean).

    Raises:
      TypeError, ValueError: naming the argument.

    References:
      Felizardo et al., A Reinforcement Learning Method for Environments with Stochastic Variables:
      Post-Decision Proximal Policy Optimization with Dual Critic Networks, arXiv 2504.05150.
    """
    require_two_stages(environment)
    validation.instance("networks", networks, DecisionNetworks, "See dflax.rl.decision_networks.")
    validation.instance("optimizer", optimizer, optax.GradientTransformation)
    rule = larger_part() if critics is None else critics
    validation.instance("critics", rule, Critics, "For example dflax.rl.larger_part().")
    for name, count in (("environments", environments), ("steps", steps), ("epochs", epochs)):
        validation.integer(name, count, low=1)
    validation.integer("windows", windows, low=0)
    validation.probability("discount", discount)
    validation.real("clip", clip, low=0.0, low_open=True, scalar=True)
    validation.real("value_weight", value_weight, low=0.0, scalar=True)
    validation.real("entropy_weight", entropy_weight, low=0.0, scalar=True)
    validation.flag("standardise", standardise)

    def gathered(
        key: Key[Array, ""], params: Params, running: Running, task: Any
    ) -> tuple[Running, Steps, Metrics]:
        return _window(environment, networks, rule, params, running, steps, key, task)

    def init(key: Key[Array, ""], params: Params, task: Any) -> DecisionMemory:
        running = begin(environment, task, key, environments)
        _, window, _ = jax.eval_shape(gathered, key, params, running, task)
        # Steps of windows that have not been yet have 0 as `counted`.
        return DecisionMemory(running, optimizer.init(params), ring(windows + 1, window), task)

    def loss(
        params: Params, batch: DecisionSample, key: Key[Array, ""]
    ) -> tuple[Float[Array, ""], Metrics]:
        parts, measured = _objective(networks, params, batch, clip)
        whole = (
            parts["policy_loss"]
            - entropy_weight * parts["entropy"]
            + value_weight * (parts["value_loss"] + parts["post_value_loss"])
        )
        return whole, parts | measured

    def learn(
        key: Key[Array, ""], params: Params, memory: DecisionMemory
    ) -> tuple[Params, DecisionMemory, Metrics]:
        act_key, learn_key = jax.random.split(key)
        running, window, measured = gathered(act_key, params, memory.running, memory.task)
        kept = pushed(memory.windows, jax.tree.map(lambda leaf: leaf[None], window))
        rows = _joined(in_order(kept))
        last = jax.vmap(lambda state: environment.observe(memory.task, state))(running.state)
        found = rule.estimate(_record(networks, rule, params, rows, last), discount)
        samples = _samples(rows, found, standardise)
        params, state, trained = epochs_of(
            loss,
            optimizer,
            params,
            memory.optimizer,
            samples,
            learn_key,
            epochs=epochs,
            minibatches=1,
        )
        told = {"advantage": _mean(samples.advantage, samples.counted), **found.metrics}
        memory = DecisionMemory(running, state, kept, memory.task)
        return params, memory, measured | trained | told

    return Learner(init, learn, environment.task)


def _window(
    environment: Environment,
    networks: DecisionNetworks,
    rule: Critics,
    params: Params,
    running: Running,
    steps: int,
    key: Key[Array, ""],
    task: Any,
) -> tuple[Running, Steps, Metrics]:
    """A rollout whose `kept` are `Values`."""

    def act(seen: Array, key: Key[Array, ""]) -> tuple[Any, Array]:
        policy = networks.policy(params, seen)
        action = policy.draw(key)
        return action, policy.log_prob(action)

    def value(seen: Array) -> Array:
        return networks.value(params, seen)

    after, found, measured = rollout(
        environment,
        task,
        act,
        running,
        steps,
        key,
        value=value if rule.bootstrap else None,
        decisions=True,
    )
    assert found.decided is not None
    post_value = networks.post_value(params, found.decided.observation)
    kept = Values(found.kept, value(found.observation), post_value)
    beyond = jnp.zeros_like(found.reward) if found.beyond is None else found.beyond
    return after, found._replace(kept=kept, beyond=beyond), measured


def _joined(windows: Steps) -> Steps:
    """Windows `[W + 1, T, ...]`, one after the other."""
    return jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:]), windows)


def _record(
    networks: DecisionNetworks, rule: Critics, params: Params, rows: Steps, last: Array
) -> Record:
    """What the rule sees of the windows."""
    assert rows.decided is not None
    assert rows.beyond is not None
    if rule.fresh:
        value = networks.value(params, rows.observation)
        post_value = networks.post_value(params, rows.decided.observation)
    else:
        value, post_value = rows.kept.value, rows.kept.post_value
    return Record(
        decided=rows.decided.reward,
        chance=rows.reward - rows.decided.reward,
        value=value,
        post_value=post_value,
        end=rows.end.astype(value.dtype),
        beyond=rows.beyond,
        counted=rows.counted,
        last=networks.value(params, last),
    )


def _samples(rows: Steps, found: Estimated, standardise: bool) -> DecisionSample:
    """All steps of all environments side by side."""
    assert rows.decided is not None
    advantage = found.advantage
    if standardise:
        advantage = standardised(advantage, rows.counted)
    sample = DecisionSample(
        rows.observation,
        rows.decided.observation,
        rows.action,
        rows.kept.log_prob,
        advantage,
        found.target,
        found.post_target,
        rows.counted,
    )
    return jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:]), sample)


def _objective(
    networks: DecisionNetworks,
    params: Params,
    batch: DecisionSample,
    clip: float | Float[Array, ""],
) -> tuple[Metrics, Metrics]:
    """The parts of the loss, and what is measured of how far the policy has moved."""
    policy = networks.policy(params, batch.observation)
    log_prob = policy.log_prob(batch.action)
    each = (-1,) + (1,) * (log_prob.ndim - 1)
    counted = jnp.broadcast_to(batch.counted.reshape(each), log_prob.shape)
    moved = clipped(log_prob - batch.log_prob, batch.advantage.reshape(each), clip, weights=counted)
    total = jnp.maximum(jnp.sum(counted), 1.0)
    none = jnp.zeros((), log_prob.dtype)
    errors = [none, none]
    if batch.target is not None:
        value = networks.value(params, batch.observation)
        errors[0] = _mean((value - batch.target) ** 2, batch.counted)
    if batch.post_target is not None:
        post_value = networks.post_value(params, batch.decided)
        errors[1] = _mean((post_value - batch.post_target) ** 2, batch.counted)
    parts = {
        "policy_loss": -jnp.sum(moved.objective) / total,
        "entropy": jnp.sum(counted * policy.entropy()) / total,
        "value_loss": errors[0],
        "post_value_loss": errors[1],
    }
    return parts, moved.metrics


def _mean(values: Array, counted: Array) -> Float[Array, ""]:
    return jnp.sum(counted * values) / jnp.maximum(jnp.sum(counted), 1.0)
