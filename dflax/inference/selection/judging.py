"""How good choices were, once all methods' times are known."""

from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from dflax import validation


class Judged(NamedTuple):
    """What choices came to, `[]` each; means over tasks of positive weight.

    Attributes:
      accuracy: share of tasks whose choice was the fastest method; near ties count as misses.
      macro_f1: mean over methods of F1, over those that were the fastest or were chosen somewhere.
      speed_up: mean of P_reference / P_chosen, a mean of ratios, not a ratio of means.
      slowdown: mean of P_chosen / min_k P, >= 1.
      regret: mean of log P_chosen - log min_k P, >= 0.
    """

    accuracy: Float[Array, ""]
    macro_f1: Float[Array, ""]
    speed_up: Float[Array, ""]
    slowdown: Float[Array, ""]
    regret: Float[Array, ""]


def judged(chosen: Any, seconds: Any, weights: Any = None, *, reference: int = 0) -> Judged:
    """Compares choices with the true times.

    Args:
      chosen: `[n]` integers in [0, K).
      seconds: `[n, K]` > 0, all of them known.
      weights: `[n]` >= 0 or booleans, with a positive one among them; None: every task counts once.
        0 leaves a task out.
      reference: the method that `speed_up` is measured against: no acceleration.

    Raises:
      TypeError, ValueError: naming the argument.
    """
    seconds = jnp.asarray(validation.array("seconds", seconds, kind="real", shape=("n", "K")))
    if not validation.is_traced(seconds) and bool((seconds <= 0).any()):
        raise ValueError(f"seconds must be > 0, got {seconds.min():g}.")
    n, methods = seconds.shape
    validation.integer("reference", reference, low=0, high=methods - 1)
    chosen = jnp.asarray(
        validation.array("chosen", chosen, kind="integer", shape=(n,), low=0, high=methods - 1)
    )
    counted = checked_weights(weights, n)
    total = counted.sum()

    def mean(values: Array) -> Array:
        return counted @ values.astype(counted.dtype) / total

    logs = jnp.log(seconds)
    taken = jnp.take_along_axis(logs, chosen[:, None], -1)[:, 0]
    lost = taken - logs.min(-1)
    fastest = jnp.argmin(logs, -1)
    return Judged(
        mean(chosen == fastest),
        _macro_f1(chosen, fastest, counted, methods),
        mean(jnp.exp(logs[:, reference] - taken)),
        mean(jnp.exp(lost)),
        mean(lost),
    )


def _macro_f1(chosen: Array, fastest: Array, weights: Array, methods: int) -> Array:
    """Mean over methods of 2 TP / (2 TP + FP + FN), where there is anything to count."""
    ours, true = (jnp.eye(methods)[labels] for labels in (chosen, fastest))
    both, all_ours, all_true = weights @ (ours * true), weights @ ours, weights @ true
    seen = all_ours + all_true > 0
    f1 = jnp.where(seen, 2 * both / jnp.where(seen, all_ours + all_true, 1.0), 0.0)
    return f1.sum() / seen.sum()


def checked_weights(weights: Any, n: int) -> Array:
    """`[n]` float32 weights: ones, or those given, one of which is positive; booleans are 0 and 1."""
    if weights is None:
        return jnp.ones(n)
    boolean = np.dtype(bool) == getattr(weights, "dtype", None)
    kind: Any = "boolean" if boolean else "real"
    given = validation.array("weights", weights, kind=kind, shape=(n,), low=0.0)
    if not validation.is_traced(given) and not bool((given > 0).any()):
        raise ValueError("weights must have a positive one among them, got none.")
    return jnp.asarray(given, jnp.float32)
