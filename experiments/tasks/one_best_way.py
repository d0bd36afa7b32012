"""Tasks with one best way, of gymnax and of brax, and what agents earn there."""

from typing import Any

import jax
import numpy as np

from dflax import rl
from experiments.tasks.goal_policies import Method, trained


def pendulum() -> rl.Environment:
    """The pendulum of gymnax, rewards a tenth; of 3 numbers seen and 1 action."""
    import gymnax

    inner = rl.from_gymnax(gymnax.make("Pendulum-v1")[0])

    def act(task: Any, state: Any, action: Any, key: Any) -> rl.Outcome:
        outcome = inner.act(task, state, action, key)
        return outcome._replace(reward=0.1 * outcome.reward)

    return inner._replace(act=act)


def inverted_pendulum(horizon: int) -> rl.Environment:
    """A pole on a cart of brax, 1 a step until it falls; of 4 numbers seen and 1 action."""
    from brax import envs

    return rl.time_limit(rl.from_brax(envs.get_environment("inverted_pendulum")), horizon)


def earned(
    method: Method,
    env: rl.Environment,
    *,
    agents: int,
    rounds: int,
    seed: int,
    episodes: int = 64,
    horizon: int = 200,
) -> np.ndarray:
    """Each agent's mean return over fresh episodes, `[agents]`, after so many rounds of learning."""
    state, _ = trained(method, agents, rounds, seed)

    def one(params: Any, key: Any) -> Any:
        act = method.act(params)
        found = rl.evaluate(env, env.task, act, key, episodes=episodes, horizon=horizon)
        return found.returns.mean()

    keys = jax.random.split(jax.random.key(seed), agents)
    return np.asarray(jax.jit(jax.vmap(one))(state.clients.params, keys))
