"""Environments of other libraries: those of gymnax, and of brax and MuJoCo Playground."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Key

from dflax import validation
from dflax.rl.environment import Environment, Outcome, Task


class Played(NamedTuple):
    """The state of a gymnax environment, with what it showed of it."""

    inner: Any
    observation: Array


def from_gymnax(environment: Any, params: Any = None) -> Environment:
    """An environment with gymnax's functions: `reset_env(key, params)`, `step_env(key, s, a, params)`.

    Its parameters are the task; give agents others for other tasks. Where the environment says that an
    episode ended by its time limit (`is_truncated`, gymnax 1.0), that is kept apart from its end.

    Args:
      environment: of `gymnax.make`, or anything with the same functions.
      params: the environment's parameters; None: its `default_params`.

    Raises:
      TypeError: naming the argument.
    """
    for name in ("reset_env", "step_env"):
        if not callable(getattr(environment, name, None)):
            raise TypeError(
                f"environment must have gymnax's function {name}, got "
                f"{validation.shown(environment)}. Make one with gymnax.make(name)[0]."
            )
    given = environment.default_params if params is None else params
    validation.arrays("params", given)
    task = jax.tree.map(jnp.asarray, given)
    limit = getattr(environment, "is_truncated", None)

    def reset(task: Task, key: Key[Array, ""]) -> Played:
        observation, state = environment.reset_env(key, task)
        return Played(state, observation)

    def act(task: Task, state: Played, action: Any, key: Key[Array, ""]) -> Outcome:
        shown, after, reward, end, _ = environment.step_env(key, state.inner, action, task)
        late = jnp.bool_(False) if limit is None else limit(after, task)
        return Outcome(Played(after, shown), jnp.float32(reward), end, late & ~end)

    return Environment(reset, act, lambda task, state: state.observation, task)


def from_brax(environment: Any, observe: Callable[[Any], Array] | None = None) -> Environment:
    """An environment with brax's functions, which those of MuJoCo Playground have too.

    They are `reset(key) -> state` and `step(state, action) -> state`, where a state has `obs`, `reward`,
    `done` and `info`. Where a wrapper says that it broke an episode off (`info["truncation"]`), that is
    kept apart from its end. Rollouts begin episodes anew themselves: an environment that does it, too,
    is refused when it is reset.

    Args:
      environment: of `brax.envs.get_environment(name)` or `mujoco_playground.registry.load(name)`,
        without the wrappers that repeat or restart it; one with a time limit for `time_limit`.
      observe: `state -> observation`, for example an entry of an `obs` that is a dictionary; None: all
        of `obs`.

    Raises:
      TypeError, ValueError: naming the argument.
    """
    for name in ("reset", "step"):
        if not callable(getattr(environment, name, None)):
            raise TypeError(
                f"environment must have brax's function {name}, got "
                f"{validation.shown(environment)}. Make one with brax.envs.get_environment(name)."
            )
    if observe is not None:
        validation.function("observe", observe, "It gets brax's state.", takes=1)

    def reset(task: Task, key: Key[Array, ""]) -> Any:
        state = environment.reset(key)
        if "first_obs" in state.info:
            raise ValueError(
                "environment must not begin its episodes anew by itself, got one that does. Make it "
                "with brax.envs.get_environment(name), or create(name, auto_reset=False)."
            )
        return state

    def act(task: Task, state: Any, action: Any, key: Key[Array, ""]) -> Outcome:
        after = environment.step(state, action)
        end, late = after.done > 0, jnp.asarray(after.info.get("truncation", 0)) > 0
        return Outcome(after, jnp.float32(after.reward), end & ~late, late)

    def seen(task: Task, state: Any) -> Array:
        return state.obs if observe is None else observe(state)

    return Environment(reset, act, seen)
