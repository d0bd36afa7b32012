"""Decentralised retrieval-augmented generation: which sources are asked, believed and blamed."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from dflax import validation
from dflax.algorithm import Algorithm, Metrics
from dflax.p2p.rag.candidates import Candidates
from dflax.p2p.rag.importance import Importance, leave_one_out
from dflax.p2p.rag.ledger import Gas, Ledger, gas, ledger, written

Real = float | Float[Array, ""]
# `(claims [k], present [k], key) -> [] int32`, the answer to a prompt of k contexts, first to last.
Reader = Callable[[Int[Array, " k"], Bool[Array, " k"], Key[Array, ""]], Int[Array, ""]]
# `(reliability [S], counted [S]) -> [S]` in [0, 1], how much a source is believed.
Trust = Callable[[Int[Array, " S"], Bool[Array, " S"]], Float[Array, " S"]]


class DragState(NamedTuple):
    """What the service carries from query to query.

    Attributes:
      ledger: the scores that everybody sees.
      reliability: `[S]` int32, not yet written.
      usefulness: `[S]` int32, not yet written.
      waiting: `[]` int32, queries since the last write.
    """

    ledger: Ledger
    reliability: Int[Array, " S"]
    usefulness: Int[Array, " S"]
    waiting: Int[Array, ""]


def vote_reader(weights: tuple[float, ...] = (1.0, 1.2, 1.4)) -> Reader:
    """The claim with the largest sum of weights by place, first to last; -1 where nothing is claimed.

    Args:
      weights: `[k]` > 0, of the contexts from first to last.

    Raises:
      TypeError, ValueError: naming the argument.
    """
    for one in validation.sequence("weights", weights, "weights"):
        validation.real("weights", one, low=0.0, low_open=True, scalar=True)
    heavy = tuple(float(one) for one in weights)

    def read(
        claims: Int[Array, " k"], present: Bool[Array, " k"], key: Key[Array, ""]
    ) -> Int[Array, ""]:
        counted = jnp.where(present & (claims >= 0), jnp.asarray(heavy), 0.0)
        votes = jnp.where(claims[:, None] == claims[None, :], counted[None, :], 0.0).sum(1)
        votes = jnp.where(counted > 0, votes, 0.0)
        return jnp.where(jnp.any(counted > 0), claims[jnp.argmax(votes)], -1)

    return read


def min_max_trust() -> Trust:
    """(R - min R) / (max R - min R) over the sources in question; 0 where all are equal."""
    return lambda reliability, counted: _min_max(reliability.astype(jnp.float32), counted)


def softmax_trust(temperature: Real) -> Trust:
    """softmax(R / temperature) over its largest value: nearly equal scores are believed alike.

    Args:
      temperature: > 0, in units of the scores; traceable.

    Raises:
      TypeError, ValueError: naming the argument.
    """
    validation.real("temperature", temperature, low=0.0, low_open=True, scalar=True)

    def trust(reliability: Int[Array, " S"], counted: Bool[Array, " S"]) -> Float[Array, " S"]:
        scores = jnp.where(counted, reliability.astype(jnp.float32), -jnp.inf)
        return jnp.where(counted, jnp.exp((scores - jnp.max(scores)) / temperature), 0.0)

    return trust


def drag(
    sources: int,
    *,
    asked: int | None = None,
    kept: int = 3,
    reader: Reader | None = None,
    importance: Importance | None = None,
    trust: Trust | None = None,
    weight: Real = 0.5,
    text_weight: Real = 0.3,
    prior_weight: Real = 0.1,
    scale: Real = 100.0,
    learns: bool = True,
    write_every: int = 1,
    price: Gas | None = None,
    start: int = 10_000,
) -> Algorithm:
    """Retrieval-augmented generation from sources with scores of reliability and usefulness.

    A query: sources are drawn in proportion to max(0, usefulness), with replacement, if not all are
    asked. With mm min-max scaling over all documents offered,

        f = (1 - a) mm(similarity) + a mm(matches);   f = (1 - b) f + b mm(prior)
        g = (1 - w) f + w trust(reliability of the source)

    the k best by g are kept, the best last, and read. Where the right answer is known, a context of
    importance phi changes its source's scores by delta = round(scale phi):

        claims the answer, right:    reliability + delta, usefulness + delta
        claims the answer, wrong:    reliability - delta, usefulness + delta
        does not claim it:                                usefulness - delta

    Args:
      sources: S >= 1.
      asked: n_ret in [1, S]; default all.
      kept: k >= 1, documents in the prompt; at most those offered.
      reader: default `vote_reader` with weights 1, 1.2, 1.4, ...
      importance: default `leave_one_out()`; `shapley()` for small k.
      trust: default `min_max_trust()`.
      weight: w in [0, 1]; traceable. 0 is a central index.
      text_weight: a in [0, 1]; traceable.
      prior_weight: b in [0, 1]; traceable.
      scale: > 0; traceable.
      learns: whether scores change at all.
      write_every: queries between transactions, >= 1.
      price: of transactions, default `gas()`.
      start: reliability and usefulness of all at first.

    Returns:
      An `Algorithm`; `init(key, params=())`. A round is `(Candidates, key)`. Metrics: `right`, `answer`,
      `grounded` (contexts that claim the answer), `used [S]` (contexts kept of each source), `gas`.

    Raises:
      TypeError, ValueError: naming the argument.

    References:
      Lu et al., A Decentralized Retrieval Augmented Generation System, arXiv 2511.07577.
    """
    validation.integer("sources", sources, low=1)
    asked = sources if asked is None else asked
    validation.integer("asked", asked, low=1, high=sources)
    validation.integer("kept", kept, low=1)
    reads = vote_reader(tuple(1.0 + 0.2 * j for j in range(kept))) if reader is None else reader
    validation.function("reader", reads, "It gets claims, who is present, a key.", takes=3)
    rule = leave_one_out() if importance is None else importance
    validation.instance("importance", rule, Importance, "Make it with dflax.p2p.leave_one_out.")
    believes = min_max_trust() if trust is None else trust
    validation.function("trust", believes, "It gets reliabilities and who counts.", takes=2)
    for name, value in (
        ("weight", weight),
        ("text_weight", text_weight),
        ("prior_weight", prior_weight),
    ):
        validation.probability(name, value)
    validation.real("scale", scale, low=0.0, low_open=True, scalar=True)
    validation.flag("learns", learns)
    validation.integer("write_every", write_every, low=1)
    costs = gas() if price is None else price
    validation.instance("price", costs, Gas, "Make it with dflax.p2p.gas.")
    low = -validation.LARGEST_COUNT
    validation.integer("start", start, low=low, high=validation.LARGEST_COUNT)
    first = ledger(sources, reliability=start, usefulness=start)

    def init(key: Key[Array, ""], params: tuple = ()) -> DragState:
        nothing = jnp.zeros((sources,), jnp.int32)
        return DragState(first, nothing, nothing, jnp.zeros((), jnp.int32))

    def step(state: DragState, round: tuple) -> tuple[DragState, Metrics]:
        found, key = round
        choosing, reading, leaving = jax.random.split(key, 3)
        chosen = _asked(state.ledger.usefulness, asked, choosing)
        counted = found.offered & chosen[:, None]
        believed = believes(state.ledger.reliability, jnp.any(counted, axis=1))
        text = _text_scores(found, counted, text_weight, prior_weight)
        scores = (1.0 - weight) * text + weight * believed[:, None]
        source, claims, present = _best(found, counted, scores, kept)
        answer = reads(claims, present, reading)
        subsets = rule.subsets(kept, leaving)
        answers = jax.vmap(lambda subset: reads(claims, present & subset, reading))(subsets)
        phi = rule.values(subsets, (answers == answer).astype(jnp.float32), present)
        delta = jnp.round(scale * phi).astype(jnp.int32)
        right = (answer == found.answer) & (answer >= 0)
        grounded = present & (claims == answer) & (answer >= 0)
        counts = present & (found.answer >= 0) & learns
        blame = jnp.where(right, delta, -delta)
        place = jnp.where(counts, source, sources)
        nothing = jnp.zeros((sources,), jnp.int32)
        reliability = nothing.at[place].add(jnp.where(grounded, blame, 0), mode="drop")
        usefulness = nothing.at[place].add(jnp.where(grounded, delta, -delta), mode="drop")
        changed = state._replace(
            reliability=state.reliability + reliability,
            usefulness=state.usefulness + usefulness,
            waiting=state.waiting + 1,
        )
        after = _flushed(changed, write_every, costs)
        used = nothing.at[jnp.where(present, source, sources)].add(1, mode="drop")
        return after, {
            "right": right.astype(jnp.float32),
            "answer": answer,
            "grounded": jnp.sum(grounded),
            "used": used,
            "gas": after.ledger.gas - state.ledger.gas,
        }

    return Algorithm(init, step)


def _text_scores(
    found: Candidates, counted: Bool[Array, "S c"], text_weight: Real, prior_weight: Real
) -> Float[Array, "S c"]:
    """f: what similarity, words and the sources themselves say of each document."""
    mixed = (1.0 - text_weight) * _min_max(found.similarity, counted)
    mixed = mixed + text_weight * _min_max(found.matches, counted)
    return (1.0 - prior_weight) * mixed + prior_weight * _min_max(found.prior, counted)


def _best(
    found: Candidates, counted: Bool[Array, "S c"], scores: Float[Array, "S c"], kept: int
) -> tuple[Int[Array, " k"], Int[Array, " k"], Bool[Array, " k"]]:
    """Of the k best documents, best last: sources, claims, and whether they are there."""
    if kept > scores.size:
        raise ValueError(
            f"kept must be at most the {scores.size} documents that are offered, got {kept}."
        )
    order = jnp.argsort(jnp.where(counted, -scores, jnp.inf).reshape(-1), stable=True)
    best = order[:kept][::-1]
    documents = found.claim.shape[1]
    return best // documents, found.claim.reshape(-1)[best], counted.reshape(-1)[best]


def _asked(usefulness: Int[Array, " S"], asked: int, key: Key[Array, ""]) -> Bool[Array, " S"]:
    sources = usefulness.shape[0]
    if asked >= sources:
        return jnp.ones((sources,), bool)
    shares = jnp.maximum(usefulness, 0).astype(jnp.float32)
    shares = jnp.where(jnp.any(shares > 0), shares, 1.0)
    drawn = jax.random.categorical(key, jnp.log(shares), shape=(asked,))
    return jnp.zeros((sources,), bool).at[drawn].set(True)


def _flushed(state: DragState, every: int, price: Gas) -> DragState:
    """What waits is written once enough queries have."""
    due = state.waiting >= every
    who = due & ((state.reliability != 0) | (state.usefulness != 0))
    nothing = jnp.zeros_like(state.reliability)
    return DragState(
        written(state.ledger, state.reliability, state.usefulness, who, price),
        jnp.where(due, nothing, state.reliability),
        jnp.where(due, nothing, state.usefulness),
        jnp.where(due, 0, state.waiting),
    )


def _min_max(values: Float[Array, "..."], counted: Bool[Array, "..."]) -> Float[Array, "..."]:
    low = jnp.min(jnp.where(counted, values, jnp.inf))
    high = jnp.max(jnp.where(counted, values, -jnp.inf))
    spread = high - low
    some = jnp.isfinite(spread) & (spread > 0)
    return jnp.where(some & counted, (values - low) / jnp.where(some, spread, 1.0), 0.0)
