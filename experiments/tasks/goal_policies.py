"""Agents that learn to go to one of several goals, by PPO and by flow policies."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

import dflax as dx
from dflax import generative, rl
from dflax.rl import flow

LAST = 0.3


class Method(NamedTuple):
    """How agents learn and act.

    Attributes:
      learner: see `dflax.rl.Learner`.
      start: `key -> params`.
      act: `params -> (observations, key) -> (actions, ())`.
    """

    learner: rl.Learner
    start: Callable[[Any], Any]
    act: Callable[[Any], Any]


class Sizes(NamedTuple):
    """Of a round, and of the networks."""

    environments: int = 128
    steps: int = 40
    epochs: int = 5
    minibatches: int = 4
    rate: float = 3e-4
    flow_steps: int = 5
    features: tuple[int, ...] = (64, 64)


def fading(weight: float, rounds: int) -> Callable[[Any], Any]:
    """A weight that stands for the first 0.4 of all rounds, and is 0 in the last 0.3 of them."""
    until = (1 - LAST) * rounds
    begin = 0.4 * rounds
    return lambda round: weight * jnp.clip((until - round) / (until - begin), 0.0, 1.0)


def gaussian(env: rl.Environment, shown: int, actions: int, sizes: Sizes) -> Method:
    """PPO with a Gaussian of one mean a state."""
    deviation = float(np.log(0.5))
    module = rl.ActorCritic(actions, sizes.features, gaussian=True, log_deviation=deviation)

    def networks(params: Any, seen: Any) -> Any:
        return module.apply({"params": params}, seen)

    learner = rl.ppo(env, networks, _optimizer(sizes), value_clip=None, **_round(sizes))
    start = _start(module, shown)
    return Method(learner, start, lambda params: rl.taking(networks, params))


def policyflow(
    env: rl.Environment, shown: int, actions: int, sizes: Sizes, weight: Any, **options: Any
) -> Method:
    """PolicyFlow with a Brownian weight, or a schedule of it."""
    module = flow.FlowActorCritic(actions, sizes.features)
    policy = flow.flow_policy(module)
    given = {**_round(sizes), "flow_steps": sizes.flow_steps, "brownian_weight": weight, **options}
    learner = flow.policyflow(env, policy, _optimizer(sizes), **given)
    act = lambda params: flow.flowing(policy, params, sizes.flow_steps)  # noqa: E731
    return Method(learner, _start(module, shown), act)


def fpo(env: rl.Environment, shown: int, actions: int, sizes: Sizes) -> Method:
    """FPO as published, with the rounds of the others."""
    module = flow.FlowActorCritic(actions, sizes.features, gain=1.0, scale=0.25)
    policy = flow.flow_policy(module)
    learner = flow.fpo(env, policy, _optimizer(sizes), **_round(sizes))
    act = lambda params: flow.flowing(policy, params, 10, noise=False)  # noqa: E731
    return Method(learner, _start(module, shown), act)


def dppo(env: rl.Environment, shown: int, actions: int, sizes: Sizes) -> Method:
    """DPPO on a flow whose steps draw noise."""
    module = flow.FlowActorCritic(actions, sizes.features)
    policy = flow.flow_policy(module)
    learner = flow.dppo(
        env, policy, _optimizer(sizes), flow_steps=sizes.flow_steps, **_round(sizes)
    )
    step = generative.euler(generative.rectified(), deviation=0.1)
    grid = generative.grid(sizes.flow_steps)

    def act(params: Any) -> Any:
        def taken(seen: Any, key: Any) -> Any:
            start_key, way_key = jax.random.split(key)
            noise = jax.random.normal(start_key, (seen.shape[0], actions))
            return generative.sample(policy.field(params), step, noise, grid, way_key, seen), ()

        return taken

    return Method(learner, _start(module, shown), act)


def trained(method: Method, agents: int, rounds: int, seed: int) -> tuple[Any, Any]:
    """Agents that learn side by side: their state, and what was measured."""
    algorithm = rl.alone(method.learner, agents, at_once=1)
    key, run_key = jax.random.split(jax.random.key(seed))
    state = algorithm.init(key, method.start)
    return dx.run(
        algorithm, state, dx.Population(agents), rounds=rounds, key=run_key, progress=False
    )


def visited(
    method: Method,
    env: rl.Environment,
    params: Any,
    seed: int,
    horizon: int,
    episodes: int,
    reach: float = 1.0,
) -> dict[str, np.ndarray]:
    """Where each agent's episodes end, `[agents, ...]`: coverage, returns, and some paths."""
    places = env.task.places
    limited = rl.time_limit(env, horizon)

    def one(params: Any, key: Any) -> dict[str, Any]:
        end_key, path_key = jax.random.split(key)
        act = method.act(params)
        found = rl.evaluate(limited, env.task, act, end_key, episodes=episodes, horizon=horizon)
        ends = found.state.state
        # An episode that the time limit broke off has reached nothing.
        reached = found.ended & (_least(ends, places) <= reach)
        covered = rl.goals.coverage(ends, reached, places)
        running = rl.begin(limited, env.task, path_key, SHOWN)
        _, steps, _ = rl.rollout(limited, env.task, act, running, horizon, path_key)
        return covered._asdict() | {
            "return": jnp.mean(found.returns),
            "paths": steps.observation,
            "end": steps.end,
        }

    keys = jax.random.split(jax.random.key(seed), jax.tree.leaves(params)[0].shape[0])
    return jax.tree.map(np.asarray, jax.jit(jax.vmap(one))(params, keys))


def held_out(
    policy: flow.FlowPolicy, env: rl.Environment, params: Any, key: Any, sizes: Sizes
) -> rl.Sample:
    """Steps that PolicyFlow's rollout keeps, for the ratio of later parameters."""

    def act(seen: Any, key: Any) -> Any:
        start_key, noise_key = jax.random.split(key)
        start = jax.random.normal(start_key, (seen.shape[0], policy.actions))
        end = policy.transported(params, seen, start, sizes.flow_steps)
        law = rl.Gaussian(end, policy.log_deviation(params))
        return law.draw(noise_key), flow.Carried(start, end, policy.value(params, seen))

    begin_key, run_key = jax.random.split(key)
    running = rl.begin(env, env.task, begin_key, sizes.environments)
    _, steps, _ = rl.rollout(env, env.task, act, running, sizes.steps, run_key)
    rows = (steps.reward, steps.reward, steps.counted)
    sample = rl.Sample(steps.observation, steps.action, steps.kept, *rows)
    return jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:]), sample)


SHOWN = 40


def _least(ends: Any, places: Any) -> Any:
    return jnp.min(jnp.linalg.norm(ends[:, None] - places, axis=-1), axis=1)


def _round(sizes: Sizes) -> dict[str, Any]:
    names = ("environments", "steps", "epochs", "minibatches")
    return {name: getattr(sizes, name) for name in names}


def _optimizer(sizes: Sizes) -> optax.GradientTransformation:
    return optax.chain(optax.clip_by_global_norm(1.0), optax.adam(sizes.rate))


def _start(module: Any, shown: int) -> Callable[[Any], Any]:
    return lambda key: module.init(key, jnp.zeros((1, shown)))["params"]
