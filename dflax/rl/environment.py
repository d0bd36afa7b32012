"""Environments as pure functions, in one stage or in two."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key, PyTree

from dflax import validation
from dflax.programs import walk

State = Any
Task = Any
DRAWS = ("random_bits", "random_wrap", "random_split", "random_fold_in", "threefry2x32")


class Outcome(NamedTuple):
    """What an action led to.

    Attributes:
      state: the next state.
      reward: `[]`.
      terminal: `[]` bool, whether the episode ends here, and nothing is worth anything beyond.
      truncated: `[]` bool, whether it is broken off here by a time limit.
    """

    state: State
    reward: Float[Array, ""]
    terminal: Bool[Array, ""]
    truncated: Bool[Array, ""] | bool = False


class Environment(NamedTuple):
    """An environment; every function is pure, and is mapped over environments with `jax.vmap`.

    `task` is what may differ between agents that live in the same kind of environment (demands, maps,
    goals): arrays, handed to every function, so that one program serves them all.

    Attributes:
      reset: `(task, key) -> state`.
      act: `(task, state, action, key) -> Outcome`.
      observe: `(task, state) -> observation`.
      task: the task of agents that are given no other; () for none.
      post: `(task, state, action) -> (post-decision state, reward)`, the half of `act` that nothing
        random enters, of `two_stage`; else None.
      noise: `(task, post-decision state, key) -> Outcome`, the other half; else None.
      observe_post: `(task, post-decision state) -> observation`, of `two_stage`; else None.
    """

    reset: Callable[[Task, Key[Array, ""]], State]
    act: Callable[[Task, State, Any, Key[Array, ""]], Outcome]
    observe: Callable[[Task, State], Array]
    task: Task = ()
    post: Callable[[Task, State, Any], tuple[Any, Float[Array, ""]]] | None = None
    noise: Callable[[Task, Any, Key[Array, ""]], Outcome] | None = None
    observe_post: Callable[[Task, Any], Array] | None = None


def environment(
    reset: Callable[[Task, Key[Array, ""]], State],
    act: Callable[[Task, State, Any, Key[Array, ""]], Outcome],
    observe: Callable[[Task, State], Array],
    *,
    task: PyTree[Array] = (),
) -> Environment:
    """An environment of one stage.

    Args:
      reset: `(task, key) -> state`.
      act: `(task, state, action, key) -> Outcome`.
      observe: `(task, state) -> observation`.
      task: see `Environment`.

    Raises:
      TypeError: naming the argument.
    """
    validation.function("reset", reset, "It gets the task and a key.", takes=2)
    validation.function("act", act, "It gets the task, a state, an action and a key.", takes=4)
    validation.function("observe", observe, "It gets the task and a state.", takes=2)
    validation.arrays("task", task)
    return Environment(reset, act, observe, task)


def two_stage(
    reset: Callable[[Task, Key[Array, ""]], State],
    post: Callable[[Task, State, Any], tuple[Any, Float[Array, ""]]],
    noise: Callable[[Task, Any, Key[Array, ""]], Outcome],
    observe: Callable[[Task, State], Array],
    *,
    observe_post: Callable[[Task, Any], Array] | None = None,
    task: PyTree[Array] = (),
) -> Environment:
    """An environment whose transition is a decision's known effect, and then chance.

        sx, rx = post(s, a)          deterministic
        s', rs = noise(sx, xi)       reward rx + rs

    Args:
      reset: `(task, key) -> state`.
      post: `(task, state, action) -> (sx, rx)`. One that draws random numbers is refused when it runs.
      noise: `(task, sx, key) -> Outcome`, with rs as reward.
      observe: `(task, state) -> observation`.
      observe_post: `(task, sx) -> observation`; None: `observe`, of an sx that is like a state.
      task: see `Environment`.

    Raises:
      TypeError: naming the argument; a `post` that asks for a key.
      ValueError: while a program is traced, a `post` that draws.
    """
    validation.function("reset", reset, "It gets the task and a key.", takes=2)
    why = "It gets the task, a state and an action, and no key: nothing random enters it."
    validation.function("post", post, why, takes=3)
    validation.function("noise", noise, "It gets the task, a post-decision state, a key.", takes=3)
    validation.function("observe", observe, "It gets the task and a state.", takes=2)
    if observe_post is not None:
        fix = "It gets the task and a post-decision state."
        validation.function("observe_post", observe_post, fix, takes=2)
    validation.arrays("task", task)

    def known(task: Task, state: State, action: Any) -> tuple[Any, Float[Array, ""]]:
        _require_no_draw(post, (task, state, action))
        return post(task, state, action)

    def act(task: Task, state: State, action: Any, key: Key[Array, ""]) -> Outcome:
        decided, reward = known(task, state, action)
        outcome = noise(task, decided, key)
        return outcome._replace(reward=reward + outcome.reward)

    return Environment(reset, act, observe, task, known, noise, observe_post or observe)


class Timed(NamedTuple):
    """A state with the number of steps since the episode began."""

    state: State
    time: Int[Array, ""]


def time_limit(environment: Environment, horizon: int) -> Environment:
    """The same environment, whose episodes are broken off after `horizon` steps.

    Args:
      environment: of `environment`, `two_stage`, `from_gymnax` or `from_brax`.
      horizon: H >= 1 steps.

    Raises:
      TypeError, ValueError: naming the argument.
    """
    require_environment(environment)
    validation.integer("horizon", horizon, low=1, fix="An episode has at least one step.")
    inner = environment

    def reset(task: Task, key: Key[Array, ""]) -> Timed:
        return Timed(inner.reset(task, key), jnp.int32(0))

    def limited(outcome: Outcome, time: Int[Array, ""]) -> Outcome:
        late = (time + 1 >= horizon) & ~jnp.asarray(outcome.terminal, bool)
        state = Timed(outcome.state, time + 1)
        return outcome._replace(state=state, truncated=late | jnp.asarray(outcome.truncated, bool))

    def act(task: Task, state: Timed, action: Any, key: Key[Array, ""]) -> Outcome:
        return limited(inner.act(task, state.state, action, key), state.time)

    def observe(task: Task, state: Timed) -> Array:
        return inner.observe(task, state.state)

    made = Environment(reset, act, observe, inner.task)
    if inner.post is None or inner.noise is None:
        return made
    first, second, shown = inner.post, inner.noise, inner.observe_post or inner.observe

    def post(task: Task, state: Timed, action: Any) -> tuple[Timed, Float[Array, ""]]:
        decided, reward = first(task, state.state, action)
        return Timed(decided, state.time), reward

    def noise(task: Task, decided: Timed, key: Key[Array, ""]) -> Outcome:
        return limited(second(task, decided.state, key), decided.time)

    def observe_post(task: Task, decided: Timed) -> Array:
        return shown(task, decided.state)

    return made._replace(post=post, noise=noise, observe_post=observe_post)


def require_environment(value: Any) -> None:
    """Refuse what is no `Environment`."""
    fix = "Make one with dflax.rl.environment, two_stage, from_gymnax or from_brax."
    validation.instance("environment", value, Environment, fix)


def require_two_stages(value: Any) -> None:
    """Refuse what is no `Environment` of two stages."""
    require_environment(value)
    if value.post is None or value.noise is None or value.observe_post is None:
        raise ValueError(
            "environment must have two stages, a decision's known effect and then chance, got one "
            "without `post` and `noise`. Make it with dflax.rl.two_stage."
        )


def _require_no_draw(post: Callable[..., Any], arguments: Any) -> None:
    """Refuse a deterministic half whose program has an operation that makes random numbers."""
    program = jax.make_jaxpr(post)(*arguments)

    def draws(program: Any) -> bool:
        return any(
            str(operation.primitive) in DRAWS
            or any(draws(part.program) for part in walk.inner(operation))
            for operation in program.eqns
        )

    if draws(program.jaxpr):
        raise ValueError(
            "post must draw no random numbers, as it is the known half of a transition, got a "
            "function that does. Draw in noise."
        )
