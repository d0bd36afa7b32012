"""What sources offer for a query, and a synthetic world that draws it."""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Key

from dflax import validation


class Candidates(NamedTuple):
    """The documents that S sources offer for one query, c each, and the right answer.

    Attributes:
      similarity: `[S, c]` of a document's embedding to the query's.
      matches: `[S, c]` BM25 scores.
      prior: `[S, c]` what the sources themselves say.
      claim: `[S, c]` int32, the answer that a document leads to; -1 for none.
      offered: `[S, c]` whether there is a document.
      answer: `[]` int32, the right answer; -1 where it is not known, which updates nothing.
    """

    similarity: Float[Array, "S c"]
    matches: Float[Array, "S c"]
    prior: Float[Array, "S c"]
    claim: Int[Array, "S c"]
    offered: Bool[Array, "S c"]
    answer: Int[Array, ""]


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class PollutedWorld:
    """A source of rounds `(Candidates, key)`, from `polluted_world`."""

    pollution: tuple[float, ...]
    documents: int
    answers: int
    relevance: tuple[float, float]
    scores: tuple[float, float]
    deviation: float

    def draw(self, key: Key[Array, ""], index: Int[Array, ""]) -> tuple[Candidates, Key[Array, ""]]:
        """Query number `index`."""
        found, wrong, right, noise, rest = jax.random.split(jax.random.fold_in(key, index), 5)
        shape = (len(self.pollution), self.documents)
        first = np.full(shape, self.relevance[1], np.float32)
        first[:, 0] = self.relevance[0]
        relevant = jax.random.uniform(found, shape) < first
        polluted = np.asarray(self.pollution, np.float32)[:, None]
        clean = jax.random.uniform(right, shape) >= polluted
        lie = jax.random.randint(wrong, (shape[0], 1), 1, self.answers)
        claim = jnp.where(relevant, jnp.where(clean, 0, lie), -1).astype(jnp.int32)
        base = jnp.where(relevant, *self.scores) + self.deviation * jax.random.normal(noise, shape)
        nothing = jnp.zeros(shape)
        everything = jnp.ones(shape, bool)
        return Candidates(base, nothing, nothing, claim, everything, jnp.int32(0)), rest


def polluted_world(
    pollution: tuple[float, ...] = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0),
    *,
    documents: int = 3,
    answers: int = 50,
    relevance: tuple[float, float] = (0.8, 0.3),
    scores: tuple[float, float] = (0.8, 0.5),
    deviation: float = 0.15,
) -> PollutedWorld:
    """Queries of which source i answers a relevant document wrongly with probability p_i.

    Of each source the first document is relevant with probability `relevance[0]`, the others with
    `relevance[1]`. A relevant one claims the right answer, 0, with probability 1 - p_i, drawn anew for
    each, else a wrong one, the same for all documents of that source and query. An irrelevant one
    claims nothing. Scores are normal around `scores[0]` if relevant, else `scores[1]`.

    Args:
      pollution: `[S]` in [0, 1].
      documents: c >= 1.
      answers: how many there are, >= 2.
      relevance: two probabilities.
      scores: two means.
      deviation: >= 0.

    Raises:
      TypeError, ValueError: naming the argument.
    """
    shares = validation.array("pollution", pollution, kind="real", shape=("S",), low=0.0, high=1.0)
    validation.integer("documents", documents, low=1)
    validation.integer("answers", answers, low=2)
    chances = validation.array("relevance", relevance, kind="real", shape=(2,), low=0.0, high=1.0)
    means = validation.array("scores", scores, kind="real", shape=(2,))
    validation.real("deviation", deviation, low=0.0, scalar=True)
    return PollutedWorld(
        tuple(map(float, shares)),
        documents,
        answers,
        (float(chances[0]), float(chances[1])),
        (float(means[0]), float(means[1])),
        float(deviation),
    )
