"""Small environments whose every step is known beforehand."""

import jax
import jax.numpy as jnp

import dflax as dx

rl = dx.rl


def corridor(length=4.0, *, noise=False):
    """From 0 to `length` by steps of an action's size; the reward is the place, the end terminal."""

    def reset(task, key):
        return jnp.float32(0.0)

    def act(task, state, action, key):
        after = state + action + (0.1 * jax.random.normal(key) if noise else 0.0)
        return rl.Outcome(after, after * task, after >= length)

    return rl.environment(reset, act, lambda task, state: state[None], task=jnp.float32(1.0))


def target(horizon=8):
    """A point in the plane that is to come near the origin; actions are real numbers."""

    def reset(task, key):
        return jax.random.uniform(key, (2,), minval=-1.0, maxval=1.0)

    def act(task, state, action, key):
        after = state + 0.2 * jnp.clip(action, -1.0, 1.0)
        away = jnp.linalg.norm(after - task)
        return rl.Outcome(after, -away, away < 0.1)

    made = rl.environment(reset, act, lambda task, state: state - task, task=jnp.zeros(2))
    return rl.time_limit(made, horizon)


def one_step(observation, key):
    """The action 1 everywhere; what is kept is the observation."""
    return jnp.ones(observation.shape[0]), observation[:, 0]
