"""Strengths of answers from comparisons in pairs: Bradley-Terry by minorise-maximise."""

import math
from types import ModuleType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from dflax import validation
from dflax.data.dataset import AnyArray

# Of traced comparisons that have no finite optimum.
FALLBACK_PRIOR = 0.1


class Strengths(NamedTuple):
    """What comparisons say of n answers.

    Attributes:
      strength: `[n]` pi > 0, geometric mean 1; 0 for answers that are not there.
      log_strength: `[n]` beta = ln pi, mean 0; -inf for answers that are not there.
      iterations: `[]` int32, done.
      change: `[]` largest change of a beta in the last of them.
      regularised: `[]` bool, whether a prior was added that nobody asked for: comparisons were traced,
        had no prior, and no finite optimum.
    """

    strength: Float[Array, " n"]
    log_strength: Float[Array, " n"]
    iterations: Int[Array, ""]
    change: Float[Array, ""]
    regularised: Bool[Array, ""]


def bradley_terry(
    wins: Float[AnyArray, "n n"],
    *,
    prior: float | Float[Array, ""] = 0.1,
    iterations: int = 100,
    tolerance: float | Float[Array, ""] | None = 1e-6,
    present: Bool[AnyArray, " n"] | None = None,
) -> Strengths:
    """Maximum likelihood of `P(i > j) = pi_i / (pi_i + pi_j)` by minorise-maximise.

        W_ij <- wins_ij + prior                                          i != j, both there
        pi_i <- (sum_j W_ij) / (sum_{j != i} (W_ij + W_ji) / (pi_i + pi_j))
        pi   <- pi / geometric mean of pi

    from pi = 1. The likelihood (`bradley_terry_likelihood`) rises with every iteration. Its optimum is
    finite and unique if and only if the graph of wins is strongly connected, which any prior > 0 makes
    it. Answers with equal records have equal strengths. Who is there alone has strength 1.

    Args:
      wins: `[n, n]` >= 0, how often, or with how much weight, i was preferred to j; the diagonal does
        not count.
      prior: eps >= 0, wins added to each ordered pair; traceable. With 0, wins that are not strongly
        connected are refused; where they are traced, a prior of 0.1 takes its place, and
        `Strengths.regularised` says so.
      iterations: >= 1; exactly as many without a tolerance, else at most.
      tolerance: > 0, largest change of a beta at which the iteration ends; traceable. None: a fixed
        number of iterations, which can be differentiated in both modes.
      present: `[n]` which answers are there; default all.

    Raises:
      TypeError, ValueError: naming the argument; wins that are not strongly connected without a prior.

    References:
      Hunter, MM algorithms for generalized Bradley-Terry models, Annals of Statistics 32 (2004).
    """
    given = validation.array("wins", wins, kind="real", shape=("n", "n"), low=0.0)
    if given.shape[0] != given.shape[1]:
        raise ValueError(f"wins must be a square matrix, got shape {given.shape}.")
    count = given.shape[0]
    validation.real("prior", prior, low=0.0, scalar=True)
    validation.integer("iterations", iterations, low=1)
    if tolerance is not None:
        validation.real("tolerance", tolerance, low=0.0, low_open=True, scalar=True)
    there = np.ones(count, bool) if present is None else present
    there = validation.array("present", there, kind="boolean", shape=(count,))
    eps, regularised = _prior_of(given, there, prior)
    there = jnp.asarray(there)
    pairs = there & there[:, None] & ~np.eye(count, dtype=bool)
    won = jnp.asarray(given)
    won = won.astype(jnp.promote_types(won.dtype, jnp.float32))
    won = jnp.where(pairs, won + jnp.asarray(eps, won.dtype), 0.0)
    return _minorised(won, there, iterations, tolerance)._replace(regularised=regularised)


def bradley_terry_likelihood(
    log_strength: Float[AnyArray, " n"], wins: Float[AnyArray, "n n"]
) -> Float[Array, ""]:
    """`sum_ij W_ij (beta_i - log(e^beta_i + e^beta_j))`, concave in beta; the diagonal does not count.

    Args:
      log_strength: `[n]` beta.
      wins: `[n, n]` W >= 0.

    Raises:
      TypeError, ValueError: naming the argument.
    """
    beta = jnp.asarray(validation.array("log_strength", log_strength, kind="real", shape=("n",)))
    count = beta.shape[0]
    given = validation.array("wins", wins, kind="real", shape=(count, count), low=0.0)
    won = jnp.where(np.eye(count, dtype=bool), 0.0, jnp.asarray(given))
    return jnp.sum(won * jax.nn.log_sigmoid(beta[:, None] - beta))


def _minorised(won: Array, there: Array, iterations: int, tolerance: Any) -> Strengths:
    """The iteration, on beta."""
    games, gained = won + won.T, jnp.sum(won, axis=1)
    counted = jnp.maximum(jnp.sum(there), 1)

    def better(beta: Array) -> Array:
        pi = jnp.exp(beta)
        against = jnp.sum(games / (pi[:, None] + pi), axis=1)
        # Nobody to compare with: it stays where it is.
        known = there & (against > 0)
        moved = jnp.where(known, gained, 1.0) / jnp.where(known, against, 1.0)
        moved = jnp.where(known, jnp.log(moved), 0.0)
        return jnp.where(there, moved - jnp.sum(moved) / counted, 0.0)

    def one(state: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        beta, _, done = state
        moved = better(beta)
        return moved, jnp.max(jnp.abs(moved - beta)), done + 1

    start = (jnp.zeros_like(gained), jnp.asarray(jnp.inf, won.dtype), jnp.int32(0))
    if tolerance is None:
        found = jax.lax.fori_loop(0, iterations, lambda _, state: one(state), start)
    else:
        found = jax.lax.while_loop(
            lambda state: (state[1] >= tolerance) & (state[2] < iterations), one, start
        )
    beta, change, done = found
    return Strengths(
        strength=jnp.where(there, jnp.exp(beta), 0.0),
        log_strength=jnp.where(there, beta, -jnp.inf),
        iterations=done,
        change=change,
        regularised=jnp.bool_(False),
    )


def _prior_of(given: Any, there: Any, prior: Any) -> tuple[Any, Any]:
    """The prior that makes the optimum finite, and whether it is another than was asked for."""
    if not validation.is_traced(prior) and float(prior) > 0:
        return prior, jnp.bool_(False)
    if not any(map(validation.is_traced, (given, there, prior))):
        if not _strongly_connected(np.asarray(given) > 0, there, np):
            raise ValueError(
                "wins must be strongly connected where prior is 0: some answers never won, or never "
                "lost, against all others, and their strengths have no finite optimum. Set prior > 0."
            )
        return prior, jnp.bool_(False)
    connected = _strongly_connected(jnp.asarray(given) > 0, jnp.asarray(there), jnp)
    enough = connected | (jnp.asarray(prior) > 0)
    return jnp.where(enough, prior, FALLBACK_PRIOR), ~enough


def _strongly_connected(beaten: Any, there: Any, xp: ModuleType) -> Any:
    """Whether each answer that is there reaches each other along wins: squares of the reachable."""
    count = beaten.shape[0]
    both = there & there[:, None]
    reached = (beaten & both) | xp.eye(count, dtype=bool)
    for _ in range(max(1, math.ceil(math.log2(count)))):
        steps = reached.astype(np.float32)
        reached = steps @ steps > 0
    return xp.all(reached | ~both)
