"""The round that REINFORCE, RLOO, DDPO and LOOP share, of one client or of many with private prompts."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int, Key, PyTree

from dflax import validation
from dflax.aggregation.aggregator import Aggregator
from dflax.algorithm import Algorithm, FederatedState, Metrics, Params
from dflax.channel.channel import Channel
from dflax.clients import replicate
from dflax.data.dataset import AnyArray
from dflax.local.solver import Optimizer, check_no_value, optimizer_at
from dflax.population import Assignment
from dflax.rl.denoising.baselines import Baseline
from dflax.rl.denoising.history import statistics
from dflax.rl.denoising.policy import DenoisingPolicy, sampled
from dflax.rl.denoising.rewards import Reward, rewarded
from dflax.rl.denoising.updates import Trajectories, Update, updated
from dflax.server.framework.protocol import Received, Report, Server
from dflax.server.framework.with_server import with_server


class Setting(NamedTuple):
    """What stays as it is, in the server's memory.

    Attributes:
      conditions: leaves `[P, ...]`, the prompts as the network reads them.
      frozen: weights beside those that are trained; None for none.
    """

    conditions: PyTree[Array]
    frozen: Params | None


class Tuner(NamedTuple):
    """What one client keeps.

    Attributes:
      optimizer: state of its optimiser.
      baseline: memory of its baseline.
      law: `[P]`, how often it draws each prompt, up to a factor.
    """

    optimizer: PyTree[Array]
    baseline: PyTree[Array]
    law: Float[Array, " P"]


def fine_tuning(
    policy: DenoisingPolicy,
    reward: Reward,
    baseline: Baseline,
    optimizer: Optimizer | None = None,
    *,
    prompts: int,
    samples: int,
    clip: float | Float[Array, ""] | None = None,
    pessimistic: bool = True,
    minibatches: int = 1,
    epochs: int = 1,
    bound: float | Float[Array, ""] | None = None,
    scaled: bool = False,
    trained_steps: int | None = None,
    steps_at_once: int = 1,
    clients: int = 1,
    aggregator: Aggregator | None = None,
    channel: Channel | None = None,
    at_once: int | None = None,
) -> Algorithm:
    """Policy gradients on a sampler: what `reinforce`, `rloo`, `ddpo` and `loop` are made of.

    A local round of a client:

        c_1, ..., c_M ~ law                                     prompts, K samples of each
        x_T, ..., x_0 ~ p_theta_old,  r = reward(x_0, c)        one batch of M K trajectories
        A = baseline(r)                                         / their deviation, cut to [-bound, bound]
        for each epoch and minibatch of shuffled trajectories:
            theta <- optimizer(theta, mean over trajectories and time steps of grad L)
        L = A log p_theta(x_{t-1} | x_t, c)                     clip=None, on policy
          = min(q A, clip(q, 1 - eps, 1 + eps) A),   q = p_theta / p_theta_old of this step

    The mean over time steps is the policy gradient divided by T. Gradients of time steps are added up,
    one chunk after another: memory is that of the trajectories and of one chunk's activations.

    It is a method with a server, `dflax.server.with_server`: a client does as many local rounds as its
    population says, and the server adds the mean change. With one client, `dflax.Population(1)`, that is
    the method as published. With several, each draws prompts by a law of its own, and keeps its rewards
    and its optimiser; only parameters travel, those of a low-rank adapter where one is trained.

    Args:
      policy: see `denoising_policy`.
      reward: `(samples [B, ...], prompts [B]) -> [B]`, prompts by their numbers; see `black_box` for
        functions of the host. Samples whose reward is not finite are left out and counted, and with them
        those that have nothing left to be compared with.
      baseline: one of `dflax.rl.baselines`.
      optimizer: optax; or a function of the round's number that returns one; default the gradient cut to
        norm 1 and `optax.adamw(3e-4, weight_decay=1e-4)`, as DDPO with LoRA.
      prompts: M >= 1, drawn in a local round, with replacement.
      samples: K of each prompt, at least what the baseline takes.
      clip: eps > 0; None for the gradient on policy, with one minibatch and one epoch; traceable.
      pessimistic: whether the smaller of clipped and unclipped counts, see `dflax.rl.clipped`.
      minibatches: optimiser steps an epoch, a divisor of M K.
      epochs: passes over the trajectories, >= 1.
      bound: of |A|, > 0; None for none; traceable.
      scaled: whether advantages are divided by their deviation over the batch; Adam hardly minds.
      trained_steps: time steps of each trajectory in a minibatch, in [1, T], drawn at random; None: all.
      steps_at_once: time steps that are differentiated together, a divisor of those that are trained.
        1 needs least memory; T is fastest for small networks.
      clients: n.
      aggregator: default the weighted mean.
      channel: from clients to server, of changes; default perfect.
      at_once: see `dflax.map_clients`.

    Returns:
      An `Algorithm` with `init(key, params, conditions, frozen=None, laws=None)`: what is trained; the
      prompts, leaves `[P, ...]`; with `frozen` params are an adapter of it (`dflax.models.lora`); laws
      `[n, P]` or `[P]` >= 0, by default uniform. Rounds come from a `dflax.Population(n)`. Parameters
      are `state.server.params`. Metrics: `reward`, the mean; `reward_within` and `reward_between`, its
      deviation within a prompt's samples and of prompts' means; `advantage`, the mean of |A|;
      `gradient_norm`; with a clip range `clip_fraction`, `approximate_kl` and `ratio`; and sums over
      clients of `reward_calls` and `samples_dropped`.

    Raises:
      TypeError, ValueError: naming the argument.

    References:
      Black et al., Training Diffusion Models with Reinforcement Learning, arXiv 2305.13301; Gupta et
      al., A Simple and Effective Reinforcement Learning Method for Text-to-Image Diffusion Fine-tuning,
      arXiv 2503.00897.
    """
    fix = "For example dflax.rl.baselines.others()."
    validation.instance("baseline", baseline, Baseline, fix)
    made = default_optimizer() if optimizer is None else optimizer
    check_no_value("optimizer", made)
    update = Update(clip, pessimistic, minibatches, epochs, trained_steps, steps_at_once)
    _check(policy, reward, baseline, update, prompts, samples)
    validation.flag("scaled", scaled)
    validation.integer("clients", clients, low=1)
    if bound is not None:
        validation.real("bound", bound, low=0.0, low_open=True, scalar=True)

    def local_round(
        params: Params, own: Tuner, setting: Setting, key: Key[Array, ""], index: Int[Array, ""]
    ) -> tuple[Params, Tuner, Metrics]:
        prompt_key, sample_key, update_key = jax.random.split(key, 3)
        chosen = jax.random.categorical(prompt_key, jnp.log(own.law), shape=(prompts,))
        each = jnp.repeat(chosen, samples)
        condition = jax.tree.map(lambda leaf: jnp.asarray(leaf)[each], setting.conditions)
        weights = policy.weights(params, setting.frozen)
        drawn = sampled(policy, weights, condition, prompts * samples, sample_key)
        told, there = rewarded(reward, drawn.states[-1], each)
        grouped = told.reshape(prompts, samples), there.reshape(prompts, samples)
        advantages, counted, memory = baseline.apply(own.baseline, *grouped, chosen)
        advantages = shaped(advantages, counted, scaled, bound)
        trajectories = Trajectories(
            drawn.states, drawn.log_probs, condition, advantages.reshape(-1), counted.reshape(-1)
        )
        (params, optimizer_state), metrics = updated(
            policy,
            update,
            optimizer_at(made, index),
            (params, own.optimizer),
            setting.frozen,
            trajectories,
            update_key,
        )
        metrics |= measured(*grouped, advantages, counted)
        return params, Tuner(optimizer_state, memory, own.law), metrics

    def work(
        assignment: Assignment, own: Tuner, server: Server, data: Any, index: Int[Array, ""]
    ) -> Report:
        setting: Setting = server.memory
        asked = jax.eval_shape(local_round, server.params, own, setting, assignment.key, index)
        nothing = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), asked[2])

        def one(number: Array, carry: Any) -> Any:
            params, own, summed = carry
            key = jax.random.fold_in(assignment.key, number)
            params, own, metrics = local_round(params, own, setting, key, index)
            return params, own, jax.tree.map(jnp.add, summed, metrics)

        start = (server.params, own, nothing)
        params, own, summed = jax.lax.fori_loop(0, assignment.local_steps, one, start)
        change = jax.tree.map(jnp.subtract, params, server.params)
        totals = {"samples_dropped": summed.pop("samples_dropped")}
        totals["reward_calls"] = (assignment.local_steps * prompts * samples).astype(jnp.float32)
        rounds = jnp.maximum(assignment.local_steps, 1).astype(jnp.float32)
        means = jax.tree.map(lambda leaf: leaf / rounds, summed)
        return Report(change, own, means, totals=totals)

    def renewed(server: Server, received: Received) -> tuple[Params, Setting, Metrics]:
        return jax.tree.map(jnp.add, server.params, received.message), server.memory, {}

    def start(
        key: Key[Array, ""], params: Params, conditions: Any, frozen: Any, laws: Any
    ) -> tuple[Setting, Tuner]:
        count = validation.leading_axis("conditions", conditions, least=1)
        if frozen is not None:
            jax.eval_shape(policy.weights, params, frozen)
        optimizer_state = optimizer_at(made, jnp.int32(0)).init(params)
        own = Tuner(
            replicate(optimizer_state, clients),
            replicate(baseline.init(count), clients),
            _laws(laws, clients, count),
        )
        return Setting(conditions, frozen), own

    method = with_server(
        start,
        work,
        renewed,
        aggregator=aggregator,
        channel=channel,
        clients=clients,
        at_once=at_once,
    )

    def init(
        key: Key[Array, ""],
        params: Params,
        conditions: PyTree[Array],
        frozen: Params | None = None,
        laws: Float[AnyArray, "..."] | None = None,
    ) -> FederatedState:
        validation.arrays("conditions", conditions, "Prompts as the network reads them.", some=True)
        return method.init(key, params, jax.tree.map(jnp.asarray, conditions), frozen, laws)

    return Algorithm(init, method.step)


def default_optimizer(rate: float | Float[Array, ""] = 3e-4) -> optax.GradientTransformation:
    """DDPO's with LoRA."""
    return optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(rate, weight_decay=1e-4))


def shaped(
    advantages: Float[Array, "M K"],
    counted: Float[Array, "M K"],
    scaled: bool,
    bound: float | Float[Array, ""] | None,
) -> Float[Array, "M K"]:
    """Advantages divided by their deviation and cut, where that is wanted; their mean stays."""
    if scaled:
        advantages = advantages / (statistics(advantages, counted)[1] + 1e-8)
    return advantages if bound is None else jnp.clip(advantages, -bound, bound)


def measured(
    rewards: Float[Array, "M K"],
    there: Float[Array, "M K"],
    advantages: Float[Array, "M K"],
    counted: Float[Array, "M K"],
) -> Metrics:
    """What is told of a round's rewards; NaN where there are none."""

    def mean(values: Array, weights: Array, axis: int | None = None) -> Array:
        return jnp.sum(weights * values, axis=axis) / jnp.sum(weights, axis=axis)

    of_prompt = mean(rewards, there, axis=1)
    some = (jnp.sum(there, axis=1) > 0).astype(rewards.dtype)
    of_prompt = jnp.where(some > 0, of_prompt, 0.0)
    reward = mean(rewards, there)
    return {
        "reward": reward,
        "reward_within": jnp.sqrt(mean((rewards - of_prompt[:, None]) ** 2, there)),
        "reward_between": jnp.sqrt(mean((of_prompt - mean(of_prompt, some)) ** 2, some)),
        "advantage": mean(jnp.abs(advantages), counted),
        "samples_dropped": jnp.sum(1.0 - counted),
    }


def _laws(laws: Any, clients: int, prompts: int) -> Float[Array, "n P"]:
    """How often each client draws each prompt, `[n, P]`."""
    if laws is None:
        return jnp.ones((clients, prompts))
    shape = (prompts,) if np.ndim(laws) == 1 else (clients, prompts)
    given = validation.array("laws", laws, kind="real", shape=shape, low=0.0)
    if not validation.is_traced(given) and not np.all(np.sum(np.atleast_2d(given), axis=1) > 0):
        raise ValueError(
            "laws must be positive for at least one prompt of each client, got zeros only."
        )
    return jnp.broadcast_to(jnp.asarray(given, float), (clients, prompts))


def _check(
    policy: DenoisingPolicy,
    reward: Reward,
    baseline: Baseline,
    update: Update,
    prompts: int,
    samples: int,
) -> None:
    """Refuse what does not fit together."""
    fix = "Make one with dflax.rl.denoising_policy."
    validation.instance("policy", policy, DenoisingPolicy, fix)
    validation.function(
        "reward", reward, "It gets samples and the numbers of their prompts.", takes=2
    )
    validation.integer("prompts", prompts, low=1)
    alone = "Leaving one out of a group of one leaves no baseline." if baseline.least > 1 else ""
    validation.integer("samples", samples, low=baseline.least, fix=alone)
    validation.integer("minibatches", update.minibatches, low=1)
    validation.integer("epochs", update.epochs, low=1)
    validation.flag("pessimistic", update.pessimistic)
    if update.clip is not None:
        validation.real("clip", update.clip, low=0.0, low_open=True, scalar=True)
    elif update.minibatches * update.epochs > 1:
        raise ValueError(
            f"clip must be given with {update.minibatches} minibatches and {update.epochs} epochs, got "
            "None: after the first step the samples are no longer the policy's own."
        )
    if prompts * samples % update.minibatches:
        raise ValueError(
            f"minibatches must divide the {prompts * samples} trajectories of a round, got "
            f"{update.minibatches}."
        )
    if update.trained_steps is not None:
        validation.integer("trained_steps", update.trained_steps, low=1, high=policy.steps)
    trained = policy.steps if update.trained_steps is None else update.trained_steps
    validation.integer("steps_at_once", update.steps_at_once, low=1, high=trained)
    if trained % update.steps_at_once:
        raise ValueError(
            f"steps_at_once must divide the {trained} time steps that are trained, got "
            f"{update.steps_at_once}."
        )
