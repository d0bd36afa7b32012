"""Rollouts as scans: what agents see and do, in environments that begin again when an episode ends."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key, PyTree

from dflax import validation
from dflax.algorithm import Metrics
from dflax.rl.environment import (
    Environment,
    Outcome,
    Task,
    require_environment,
    require_two_stages,
)

Act = Callable[[Array, Key[Array, ""]], tuple[Any, PyTree[Array]]]


class Running(NamedTuple):
    """E environments between two rollouts.

    Attributes:
      state: leaves `[E, ...]`.
      gained: `[E]`, rewards of the episode so far.
      length: `[E]` int32, its steps so far.
    """

    state: Any
    gained: Float[Array, " E"]
    length: Int[Array, " E"]


class Decided(NamedTuple):
    """What an action alone led to, before chance came in.

    Attributes:
      observation: `[T, E, ...]`, what is seen of the post-decision state.
      reward: `[T, E]`, the reward of the decision, a part of `Steps.reward`.
    """

    observation: Float[Array, "T E ..."]
    reward: Float[Array, "T E"]


class Steps(NamedTuple):
    """A rollout: the one buffer of T steps in E environments.

    Attributes:
      observation: `[T, E, ...]`, what was seen before each action.
      action: `[T, E, ...]`.
      kept: leaves `[T, E, ...]`, what the agent noted with its action: log-probabilities, values.
      reward: `[T, E]`; 0 where it was not finite.
      end: `[T, E]` bool, whether an episode ended, or was broken off, with this step.
      beyond: `[T, E]`, the value of where a time limit broke an episode off, else 0; None if nobody
        asked.
      counted: `[T, E]`, 1 for steps that count; 0 for those of an episode with a reward that was not
        finite.
      decided: of environments of `two_stage`, if asked for; else None.
    """

    observation: Float[Array, "T E ..."]
    action: Any
    kept: Any
    reward: Float[Array, "T E"]
    end: Bool[Array, "T E"]
    beyond: Float[Array, "T E"] | None
    counted: Float[Array, "T E"]
    decided: Decided | None = None


def begin(environment: Environment, task: Task, key: Key[Array, ""], environments: int) -> Running:
    """E environments at the beginning of their episodes.

    Args:
      environment: see `Environment`.
      task: the agent's.
      key: a typed key.
      environments: E >= 1.

    Raises:
      TypeError, ValueError: naming the argument.
    """
    require_environment(environment)
    validation.arrays("task", task)
    validation.typed_key("key", key)
    validation.integer("environments", environments, low=1)
    keys = jax.random.split(key, environments)
    state = jax.vmap(lambda k: environment.reset(task, k))(keys)
    return Running(state, jnp.zeros(environments), jnp.zeros(environments, jnp.int32))


def rollout(
    environment: Environment,
    task: Task,
    act: Act,
    running: Running,
    steps: int,
    key: Key[Array, ""],
    *,
    value: Callable[[Array], Float[Array, " E"]] | None = None,
    decisions: bool = False,
) -> tuple[Running, Steps, Metrics]:
    """T steps in each of E environments; an episode that ends is followed by the next.

    An episode with a reward that is not finite ends there: its steps in this rollout do not count
    (`Steps.counted`), and it is counted as dropped. Those that an earlier rollout held were used.

    Args:
      environment: see `Environment`.
      task: the agent's.
      act: `(observations [E, ...], key) -> (actions [E, ...], kept)`.
      running: where the last rollout ended, or `begin`.
      steps: T >= 1.
      key: a typed key.
      value: `observations -> [E]`, for `Steps.beyond`: asked in every step, of where the step led.
      decisions: whether `Steps.decided` is noted, of an environment of `two_stage`.

    Returns:
      Where it ended; the steps; metrics: `episodes` that ended, their mean `episode_return` and
      `episode_length` (NaN without any), `dropped` episodes.

    Raises:
      TypeError, ValueError: naming the argument.
    """
    require_environment(environment)
    validation.arrays("task", task)
    validation.function("act", act, "It gets observations and a key.", takes=2)
    validation.instance("running", running, Running, "Begin with dflax.rl.begin.")
    validation.integer("steps", steps, low=1)
    validation.typed_key("key", key)
    if value is not None:
        validation.function("value", value, "It gets observations.", takes=1)
    validation.flag("decisions", decisions)
    if decisions:
        require_two_stages(environment)
    count = running.gained.shape[0]
    observe = jax.vmap(lambda state: environment.observe(task, state))

    def move(
        state: Any, action: Any, keys: Key[Array, " 2"]
    ) -> tuple[Outcome, Decided | None, Any]:
        fresh = environment.reset(task, keys[1])
        if not decisions:
            return environment.act(task, state, action, keys[0]), None, fresh
        return *_in_two_stages(environment, task, state, action, keys[0]), fresh

    def one(now: Running, keys: tuple[Key[Array, ""], Key[Array, "E 2"]]) -> tuple[Running, Any]:
        seen = observe(now.state)
        action, kept = act(seen, keys[0])
        outcome, decided, fresh = jax.vmap(move)(now.state, action, keys[1])
        reward = jnp.asarray(outcome.reward, jnp.float32)
        finite = jnp.isfinite(reward)
        terminal = jnp.broadcast_to(outcome.terminal, finite.shape).astype(bool) | ~finite
        late = jnp.broadcast_to(outcome.truncated, finite.shape).astype(bool) & ~terminal
        reward = jnp.where(finite, reward, 0.0)
        if decided is not None:
            decided = decided._replace(reward=jnp.where(finite, decided.reward, 0.0))
        end = terminal | late
        beyond = None
        if value is not None:
            beyond = jnp.where(late, value(observe(outcome.state)), 0.0)
        gained, length = now.gained + reward, now.length + 1
        state = jax.tree.map(lambda a, b: _where(end, a, b), fresh, outcome.state)
        after = Running(state, jnp.where(end, 0.0, gained), jnp.where(end, 0, length))
        ended = (end & finite, gained, length)
        return after, ((seen, action, kept, reward, end, beyond), decided, ended, ~finite)

    # All keys at once: in a step of few numbers their making would be much of the work.
    after, rows = jax.lax.scan(one, running, _keys(key, steps, (count, 2)))
    (seen, action, kept, reward, end, beyond), decided, (ended, gained, length), broken = rows
    counted = _whole(end, broken)
    found = Steps(seen, action, kept, reward, end, beyond, counted, decided)
    return after, found, _episodes(ended, gained, length, broken)


class Evaluated(NamedTuple):
    """One episode in each of E environments.

    Attributes:
      returns: `[E]`.
      length: `[E]` int32.
      ended: `[E]` bool, whether the episode ended within the horizon.
      state: leaves `[E, ...]`, where it ended.
    """

    returns: Float[Array, " E"]
    length: Int[Array, " E"]
    ended: Bool[Array, " E"]
    state: Any


def evaluate(
    environment: Environment,
    task: Task,
    act: Act,
    key: Key[Array, ""],
    *,
    episodes: int,
    horizon: int,
) -> Evaluated:
    """One episode in each of E fresh environments, at most `horizon` steps long.

    Args:
      environment: see `Environment`.
      task: the agent's.
      act: as for `rollout`; for example the policy's mode.
      key: a typed key.
      episodes: E >= 1.
      horizon: steps >= 1.

    Raises:
      TypeError, ValueError: naming the argument.
    """
    validation.integer("episodes", episodes, low=1)
    validation.integer("horizon", horizon, low=1)
    validation.function("act", act, "It gets observations and a key.", takes=2)
    validation.typed_key("key", key)
    begin_key, run_key = jax.random.split(key)
    running = begin(environment, task, begin_key, episodes)
    observe = jax.vmap(lambda state: environment.observe(task, state))

    def one(now: Evaluated, keys: Any) -> tuple[Evaluated, None]:
        action, _ = act(observe(now.state), keys[0])
        outcome = jax.vmap(lambda *a: environment.act(task, *a))(now.state, action, keys[1])
        going = ~now.ended
        end = jnp.broadcast_to(outcome.terminal | outcome.truncated, going.shape)
        state = jax.tree.map(lambda a, b: _where(going, a, b), outcome.state, now.state)
        returns = now.returns + jnp.where(going, outcome.reward, 0.0)
        return Evaluated(returns, now.length + going, now.ended | end, state), None

    none = jnp.zeros(episodes, bool)
    start = Evaluated(running.gained, running.length, none, running.state)
    return jax.lax.scan(one, start, _keys(run_key, horizon, (episodes,)))[0]


def _keys(key: Key[Array, ""], steps: int, shape: tuple[int, ...]) -> tuple[Array, Array]:
    """A key for each step's actions, and `[T, *shape]` for its environments."""
    act_key, move_key = jax.random.split(key)
    return jax.random.split(act_key, steps), jax.random.split(move_key, (steps, *shape))


def _in_two_stages(
    environment: Environment, task: Task, state: Any, action: Any, key: Key[Array, ""]
) -> tuple[Outcome, Decided]:
    """What `environment.act` does, and what lies between its halves."""
    after, gained = environment.post(task, state, action)
    outcome = environment.noise(task, after, key)
    seen = environment.observe_post(task, after)
    decided = Decided(seen, jnp.asarray(gained, jnp.float32))
    return outcome._replace(reward=gained + outcome.reward), decided


def _whole(end: Bool[Array, "T E"], broken: Bool[Array, "T E"]) -> Float[Array, "T E"]:
    """1 for steps of episodes in which, in this rollout, no reward was broken."""

    def one(later: Array, row: tuple[Array, Array]) -> tuple[Array, Array]:
        bad = row[1] | (later & ~row[0])
        return bad, bad

    _, bad = jax.lax.scan(one, jnp.zeros_like(end[0]), (end, broken), reverse=True)
    return 1.0 - bad.astype(jnp.float32)


def _episodes(ended: Array, gained: Array, length: Array, broken: Array) -> Metrics:
    number = jnp.sum(ended)
    some = jnp.where(number > 0, number, jnp.nan)
    return {
        "episodes": number,
        "episode_return": jnp.sum(jnp.where(ended, gained, 0.0)) / some,
        "episode_length": jnp.sum(jnp.where(ended, length, 0)) / some,
        "dropped": jnp.sum(broken),
    }


def _where(choose: Bool[Array, " E"], yes: Array, no: Array) -> Array:
    return jnp.where(choose.reshape(choose.shape + (1,) * (yes.ndim - 1)), yes, no)
