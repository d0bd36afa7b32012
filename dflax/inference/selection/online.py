"""Learning while choosing: only the chosen method's time is seen, and old tasks are not forgotten."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, Int, Key, PyTree

from dflax import validation
from dflax.algorithm import Algorithm, Metrics
from dflax.inference.selection.budget import HOUR, Choice, within_budget
from dflax.inference.selection.judging import judged
from dflax.inference.selection.meta_learned import Fitted
from dflax.inference.selection.performance import Performance
from dflax.inference.selection.selector import Selector, lesson
from dflax.replay import Ring, drawn, pushed, ring


class Trial(NamedTuple):
    """A task that was tried, with one method or with several.

    Attributes:
      x: `[d]` its descriptors.
      log_seconds: `[K]` what was measured.
      observed: `[K]` which were.
    """

    x: Float[Array, " d"]
    log_seconds: Float[Array, " K"]
    observed: Bool[Array, " K"]


class OnlineState(NamedTuple):
    """A selector that goes on learning.

    Attributes:
      round: how often it has learned.
      fitted: the predictor.
      memory: the optimiser's state.
      store: a ring of `Trial`s, the training tasks at first.
    """

    round: Int[Array, ""]
    fitted: Fitted
    memory: PyTree[Array]
    store: Ring


class Arrivals(NamedTuple):
    """B tasks that arrive together.

    Attributes:
      x: `[B, d]` descriptors.
      seconds: `[B, K]` true times; a policy sees those that it chooses.
      available: `[B, K]` methods that there are.
      price: `[B]` of an hour of the task's accelerator.
      budget: `[B]` what a task may cost; infinite: no limit.
    """

    x: Float[Array, "B d"]
    seconds: Float[Array, "B K"]
    available: Bool[Array, "B K"]
    price: Float[Array, " B"]
    budget: Float[Array, " B"]


class Online(NamedTuple):
    """A selector in service.

    Attributes:
      init: `(key, fitted, x [n, d], table, weights=None) -> state`: the predictor of `fit`, and what it
        was trained on, which fills the store.
      choose: `(state, key, arrivals) -> (Choice, explored [B])`; it does not read their `seconds`.
      learn: `(state, key, x [B, d], method [B], seconds [B]) -> (state, metrics)`.
    """

    init: Callable[..., OnlineState]
    choose: Callable[[OnlineState, Key[Array, ""], Arrivals], tuple[Choice, Bool[Array, " B"]]]
    learn: Callable[..., tuple[OnlineState, Metrics]]


def online(
    selector: Selector,
    *,
    optimizer: optax.GradientTransformation | None = None,
    capacity: int = 4096,
    batch: int = 256,
    explore: float | Float[Array, ""] = 0.05,
    fresh: float | Float[Array, ""] = 0.5,
) -> Online:
    """On-line updates of a meta-learned selector by the times of what it chose.

    Of a task whose one method was timed, the row-centred log-time is 0 and teaches nothing. So both
    heads are trained on the sum that was seen, the level and what the method adds:

        loss = fresh e(new tasks) + (1 - fresh) e(minibatch of the store)
        e = mean over observed (level(x) + score_k(x) - log seconds_k)^2 / sd(z)^2

    Args:
      selector: of `meta_learned`, of a loss whose scores are log-times.
      optimizer: an optax optimiser; None: AdamW of 3e-4 with a decay of 1e-4.
      capacity: rows of the store, >= 1; where there are more training tasks, some are drawn.
      batch: rows of a minibatch of the store, >= 1.
      explore: probability of a method drawn uniformly among those that can be paid, in [0, 1];
        traceable.
      fresh: share of the newest tasks in the loss, in [0, 1]; traceable.

    Returns:
      Pure functions; `deployed` makes an `Algorithm` of them.

    Raises:
      TypeError, ValueError: naming the argument.
    """
    validation.instance("selector", selector, Selector, "For example of meta_learned().")
    times = selector.log_seconds
    if times is None:
        raise ValueError(
            "selector must predict times, got one without log_seconds: meta_learned()."
        )
    rule = optax.adamw(3e-4, weight_decay=1e-4) if optimizer is None else optimizer
    validation.instance("optimizer", rule, optax.GradientTransformation)
    validation.integer("capacity", capacity, low=1)
    validation.integer("batch", batch, low=1)
    validation.probability("explore", explore)
    validation.probability("fresh", fresh)

    def init(
        key: Key[Array, ""], fitted: Fitted, x: Any, table: Performance, weights: Any = None
    ) -> OnlineState:
        validation.typed_key("key", key)
        validation.instance("fitted", fitted, Fitted, "Pass what selector.fit returns.")
        x, table, weights = lesson(x, table, weights)
        memory = rule.init(fitted.params)
        return OnlineState(jnp.int32(0), fitted, memory, _filled(key, capacity, x, table, weights))

    def choose(state: OnlineState, key: Key[Array, ""], arrivals: Arrivals) -> tuple[Choice, Array]:
        logs = times(state.fitted, arrivals.x)
        cost = jnp.exp(logs) * arrivals.price[:, None] / HOUR
        found = within_budget(logs, cost, arrivals.budget, arrivals.available)
        try_key, which_key = jax.random.split(key)
        explored = jax.random.uniform(try_key, found.option.shape) < explore
        chance = jax.random.uniform(which_key, logs.shape)
        other = within_budget(chance, cost, arrivals.budget, arrivals.available)
        taken = jax.tree.map(lambda a, b: jnp.where(explored, a, b), other, found)
        return taken, explored

    def error(fitted: Fitted, trials: Trial) -> Array:
        off = (times(fitted, trials.x) - trials.log_seconds) / fitted.scale.relative
        seen = trials.observed
        return jnp.where(seen, off**2, 0.0).sum() / jnp.maximum(seen.sum(), 1)

    def learn(
        state: OnlineState, key: Key[Array, ""], x: Array, method: Array, seconds: Array
    ) -> tuple[OnlineState, Metrics]:
        seen = jnp.eye(state.store.rows.observed.shape[-1], dtype=bool)[method]
        new = Trial(x, jnp.where(seen, jnp.log(seconds)[:, None], 0.0), seen)
        old = drawn(state.store, key, batch)

        def loss(params: Any) -> tuple[Array, Array]:
            fitted = state.fitted._replace(params=params)
            newest = error(fitted, new)
            return fresh * newest + (1.0 - fresh) * error(fitted, old), newest

        (_, newest), slope = jax.value_and_grad(loss, has_aux=True)(state.fitted.params)
        moves, memory = rule.update(slope, state.memory, state.fitted.params)
        fitted = state.fitted._replace(params=optax.apply_updates(state.fitted.params, moves))
        store = pushed(state.store, new)
        return OnlineState(state.round + 1, fitted, memory, store), {"error": newest}

    return Online(init, choose, learn)


def deployed(service: Online) -> Algorithm:
    """A selector in service as an `Algorithm`: tasks arrive, methods are chosen, their times are seen.

    Rounds come from `dflax.Events(Arrivals(...))`, each leaf `[T, B, ...]`.

    Args:
      service: of `online`.

    Returns:
      `init` is that of `service`. Metrics of a round: those of `judged` against the true times,
      `explored` (share), `within` (share of tasks with an option within the budget by prediction),
      `violations` (share of tasks that cost more than their budget though they were within it),
      `error` (of the newest tasks' predicted log-times, before the update).

    Raises:
      TypeError: no `Online`.
    """
    validation.instance("service", service, Online, "Make one with online(selector).")

    def step(state: OnlineState, round: Any) -> tuple[OnlineState, Metrics]:
        arrivals, key = round
        choose_key, learn_key = jax.random.split(key)
        found, explored = service.choose(state, choose_key, arrivals)
        spent = jnp.take_along_axis(arrivals.seconds, found.option[:, None], -1)[:, 0]
        over = spent * arrivals.price / HOUR > arrivals.budget
        # What is not there cannot be the fastest.
        there = jnp.where(arrivals.available, arrivals.seconds, arrivals.seconds.max() + 1.0)
        state, learned = service.learn(state, learn_key, arrivals.x, found.option, spent)
        told = {
            "explored": explored.mean(),
            "within": found.within.mean(),
            "violations": (over & found.within).mean(),
        }
        return state, judged(found.option, there)._asdict() | told | learned

    return Algorithm(service.init, step)


def _filled(
    key: Key[Array, ""], capacity: int, x: Array, table: Performance, weights: Array
) -> Ring:
    """A store with the training tasks in it, or so many of them drawn without replacement."""
    empty = ring(capacity, Trial(x[0], table.seconds[0], table.observed[0]))
    draw = jnp.where(weights > 0, jax.random.uniform(key, weights.shape), 2.0)
    order = jnp.argsort(draw)[:capacity]
    logs = jnp.where(table.observed, jnp.log(table.seconds), 0.0)
    rows = jax.tree.map(lambda leaf: leaf[order], Trial(x, logs, table.observed))
    filled = pushed(empty, rows).rows
    # Rows beyond the training tasks are there to be written over.
    count = jnp.minimum((weights > 0).sum(), capacity)
    return Ring(filled, count.astype(jnp.int32))
