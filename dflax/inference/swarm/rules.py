"""How a swarm chooses among answers: strengths by Bradley-Terry, and what it is compared with."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from dflax import validation
from dflax.inference.swarm.bradley_terry import bradley_terry
from dflax.inference.swarm.pairs import weighted_wins


class Ballot(NamedTuple):
    """What one query has brought from N nodes.

    Attributes:
      choices: `[N]` int32, the option that each answered.
      present: `[N]` bool, who took part.
      pairs: `[N, K, 2]` int32, the answers that each judge compared.
      verdicts: `[N, K]` in [0, 1], its preference for the first of them.
      counted: `[N, K]` bool, which of them count.
      weights: `[N]` of the votes, mean 1 over judges; 0 for who is absent.
    """

    choices: Int[Array, " n"]
    present: Bool[Array, " n"]
    pairs: Int[Array, "n k 2"]
    verdicts: Float[Array, "n k"]
    counted: Bool[Array, "n k"]
    weights: Float[Array, " n"]


class Ranked(NamedTuple):
    """What a rule makes of a ballot.

    Attributes:
      score: `[N]` >= 0 of each node's answer, 0 for who is absent; reputations follow it.
      winner: `[]` int32, the node whose answer is given; of several the first.
      confidence: `[]` in [0, 1].
      iterations: `[]` int32, that the rule took.
      regularised: `[]` bool, whether comparisons needed a prior that nobody asked for.
    """

    score: Float[Array, " n"]
    winner: Int[Array, ""]
    confidence: Float[Array, ""]
    iterations: Int[Array, ""]
    regularised: Bool[Array, ""]


Rule = Callable[[Ballot], Ranked]


def by_strength(
    *,
    weighted: bool = True,
    prior: float | Float[Array, ""] = 0.1,
    iterations: int = 60,
    tolerance: float | Float[Array, ""] | None = None,
) -> Rule:
    """The answer with the largest Bradley-Terry strength; confidence is its share of all strengths.

    Args:
      weighted: whether judges' verdicts count with the ballot's weights, or all alike.
      prior: see `bradley_terry`; traceable.
      iterations: >= 1.
      tolerance: > 0, or None for exactly as many iterations; traceable.

    Raises:
      TypeError, ValueError: naming the argument.
    """
    validation.flag("weighted", weighted)
    validation.real("prior", prior, low=0.0, scalar=True)
    validation.integer("iterations", iterations, low=1)
    if tolerance is not None:
        validation.real("tolerance", tolerance, low=0.0, low_open=True, scalar=True)

    def rank(ballot: Ballot) -> Ranked:
        found = bradley_terry(
            _wins(ballot, weighted),
            prior=prior,
            iterations=iterations,
            tolerance=tolerance,
            present=ballot.present,
        )
        ranked = _largest(found.strength, found.iterations)
        return ranked._replace(regularised=found.regularised)

    return rank


def by_win_rate(*, weighted: bool = False) -> Rule:
    """Borda: the answer that won the largest share of its own comparisons.

    Args:
      weighted: whether judges' verdicts count with the ballot's weights, or all alike.

    Raises:
      TypeError: naming the argument.
    """
    validation.flag("weighted", weighted)

    def rank(ballot: Ballot) -> Ranked:
        wins = _wins(ballot, weighted)
        won, games = jnp.sum(wins, axis=1), jnp.sum(wins + wins.T, axis=1)
        return _largest(won / jnp.where(games > 0, games, 1.0))

    return rank


def by_elo(
    *,
    step: float | Float[Array, ""] = 32.0,
    scale: float | Float[Array, ""] = 400.0,
    weighted: bool = False,
) -> Rule:
    """Elo ratings, a comparison at a time: the first pair of every judge, then the second of each, ...

        expected = 1 / (1 + 10^((r_j - r_i) / scale));  r_i += step (y - expected);  r_j -= the same

    from r = 0. The score is `10^(r / scale)`.

    Args:
      step: K > 0; traceable.
      scale: > 0; traceable.
      weighted: whether a judge's step is multiplied by its weight.

    Raises:
      TypeError, ValueError: naming the argument.
    """
    validation.real("step", step, low=0.0, low_open=True, scalar=True)
    validation.real("scale", scale, low=0.0, low_open=True, scalar=True)
    validation.flag("weighted", weighted)

    def rank(ballot: Ballot) -> Ranked:
        weights = ballot.weights if weighted else jnp.ones_like(ballot.weights)
        steps = step * jnp.where(ballot.counted, weights[:, None], 0.0)

        def one(rating: Array, compared: tuple[Array, Array, Array]) -> tuple[Array, None]:
            pair, y, k = compared
            mine, other = rating[pair[0]], rating[pair[1]]
            gain = k * (y - 1.0 / (1.0 + 10.0 ** ((other - mine) / scale)))
            return rating.at[pair].add(jnp.stack([gain, -gain])), None

        table = (ballot.pairs, ballot.verdicts, steps)
        inorder = jax.tree.map(lambda x: jnp.swapaxes(x, 0, 1).reshape((-1, *x.shape[2:])), table)
        rating, _ = jax.lax.scan(one, jnp.zeros(ballot.present.shape), inorder)
        return _largest(jnp.where(ballot.present, 10.0 ** (rating / scale), 0.0))

    return rank


def by_majority(*, weighted: bool = False) -> Rule:
    """The most frequent answer, of several the option with the lowest number; no comparisons are read.

    Args:
      weighted: whether a node's answer counts with the ballot's weight, or all alike.

    Raises:
      TypeError: naming the argument.
    """
    validation.flag("weighted", weighted)

    def rank(ballot: Ballot) -> Ranked:
        own = ballot.weights if weighted else jnp.ones_like(ballot.weights)
        own = jnp.where(ballot.present, own, 0.0)
        votes = jnp.where(ballot.present, _alike(ballot) @ own, -1.0)
        # The same sum may be rounded in another order for another node.
        most = jnp.max(votes)
        leads = votes >= most - 1e-5 * jnp.abs(most)
        option = jnp.min(jnp.where(leads, ballot.choices, jnp.iinfo(jnp.int32).max))
        winner = jnp.argmax(leads & (ballot.choices == option)).astype(jnp.int32)
        whole = jnp.maximum(jnp.sum(own), jnp.finfo(own.dtype).tiny)
        score = jnp.maximum(votes, 0.0)
        return Ranked(score, winner, score[winner] / whole, jnp.int32(0), jnp.bool_(False))

    return rank


def clustered(rule: Rule) -> Rule:
    """Scores of identical answers are added, and the largest sum wins; reputations follow each its own.

    The answer is given by the node of that cluster with the largest score of its own.

    Args:
      rule: for example `by_strength()`.

    Raises:
      TypeError: naming the argument.
    """
    validation.function("rule", rule, "For example dflax.inference.by_strength().", takes=1)

    def rank(ballot: Ballot) -> Ranked:
        ranked = rule(ballot)
        sums = jnp.where(ballot.present, _alike(ballot) @ ranked.score, -1.0)
        best = sums >= jnp.max(sums) * (1.0 - 1e-5)
        winner = jnp.argmax(jnp.where(best, ranked.score, -1.0)).astype(jnp.int32)
        whole = jnp.maximum(jnp.sum(ranked.score), jnp.finfo(sums.dtype).tiny)
        return ranked._replace(winner=winner, confidence=jnp.maximum(sums[winner], 0.0) / whole)

    return rank


def _alike(ballot: Ballot) -> Float[Array, "n n"]:
    """1 where two nodes that are there answered the same."""
    same = ballot.choices == ballot.choices[:, None]
    return (same & ballot.present & ballot.present[:, None]).astype(ballot.weights.dtype)


def _wins(ballot: Ballot, weighted: bool) -> Float[Array, "n n"]:
    weights = ballot.weights if weighted else jnp.ones_like(ballot.weights)
    return weighted_wins(ballot.pairs, ballot.verdicts, weights, counted=ballot.counted)


def _largest(score: Array, iterations: Any = 0) -> Ranked:
    winner = jnp.argmax(score).astype(jnp.int32)
    whole = jnp.maximum(jnp.sum(score), jnp.finfo(score.dtype).tiny)
    done = jnp.asarray(iterations, jnp.int32)
    return Ranked(score, winner, score[winner] / whole, done, jnp.bool_(False))
