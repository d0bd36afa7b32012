"""SybilWall: neighbours are compared with what others know, so that copies sent far apart meet."""

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from dflax import validation
from dflax.aggregation.aggregator import counted_mean
from dflax.aggregation.krum import krum_scores
from dflax.aggregation.rows.coordinates import gram, map_coordinates
from dflax.aggregation.rows.distances import finite_rows, squared_distances
from dflax.aggregation.rows.order_statistics import median_rows
from dflax.aggregation.rows.similarity import cosines_of, similarity_scores
from dflax.aggregation.rows.weighted_median import weighted_median_rows
from dflax.algorithm import Metrics, Params
from dflax.clients import against
from dflax.gossip.rules.foolsgold import beside
from dflax.gossip.rules.letters import Letters
from dflax.gossip.rules.neighbour_rule import Neighbourhood, NeighbourRule
from dflax.gossip.rules.sybilwall.records import (
    NOBODY,
    About,
    Incoming,
    Records,
    drawn,
    none_known,
    place_of,
    stored,
)

History = Literal["model", "update"]
HISTORIES = ("model", "update")
Combine = Literal["mean", "filtered mean", "better half", "weighted median"]


class Memory(NamedTuple):
    """What one client remembers.

    Attributes:
      records: of others, at first hand or passed on.
      before: its own model after the last mixing, for histories of updates; () for those of models.
      trust: `[k]`, the scores that it last gave to its neighbours; 0 of those that it did not hear.
    """

    records: Records
    before: Any
    trust: Float[Array, " k"]


def sybilwall(
    capacity: int,
    *,
    decay: float | Float[Array, ""] = 0.8,
    passing_on: bool = True,
    history: History = "model",
    combine: Combine = "mean",
    silent: Sequence[int] | Int[np.ndarray, " s"] = (),
) -> NeighbourRule:
    """Trusts neighbours by how little they resemble anybody known, near or far.

    An adversary with many names (Sybils) sends one model into many neighbourhoods. In each of them it is
    alone, so comparing neighbours does not reveal it. Here clients pass on what they know. A mixing:

        letters   i passes one record on to each neighbour r: of k, drawn with probability
                  proportional to exp(-lambda (distance_k - 1)), not about r and not come from r
        records   H_i[k] of who is heard: its model, at distance 1; of others what was passed on, at one
                  more than the distance it had. The newer one stays; first hand is never replaced
        scores    s = similarity_scores(cos(H_i[a], H_i[b]) over all records) of those who are heard
        x_i       <- (x_i + sum_a s_a x_a) / (1 + sum_a s_a)

    Letters carry what was known before the mixing, and arrive before its models. Models with a NaN or an
    infinity do not count and are not remembered. Records are not signed: a lie in a letter is believed.

    Args:
      capacity: m, of how many nodes a client remembers records; at least its number of neighbours, and
        n - 1 for all. Where there is no room, the oldest record that was passed on gives way.
      decay: lambda > 0, traceable: large, records at first hand alone are passed on; near 0, any.
      passing_on: whether clients write letters; without, only neighbours are compared.
      history: "model", the model that was last received (the sum of all its changes); or "update", the
        sum over mixings of what was received less the receiver's own model after the mixing before.
      combine: "mean", as above; "filtered mean", without the neighbour of the worst Krum score (f = 1);
        "better half", the coordinate-wise median of the own model and the half of the neighbours with
        the higher scores; "weighted median", the coordinate-wise median by these weights.
      silent: numbers of clients that pass nothing on: Sybils, for an experiment. See
        `attacks.one_adversary` for what they do instead of the rule.

    Returns:
      A `NeighbourRule`: `by_rule(graph, sybilwall(n - 1))`. Metrics: `trust`, s over all that are heard,
      and `records_passed_on`, how many records at a distance of 2 or more a client holds. A letter
      counts as one model in `models_sent`.

    Raises:
      TypeError, ValueError: naming the argument; from the mixer's init, a capacity below the number of
        neighbours.

    References:
      Werthenbach and Pouwelse, Towards Sybil Resilience in Decentralized Learning, arXiv 2306.15044.
    """
    validation.integer("capacity", capacity, low=1)
    validation.real("decay", decay, low=0.0, low_open=True, scalar=True)
    validation.flag("passing_on", passing_on)
    validation.choice("history", history, HISTORIES)
    validation.choice("combine", combine, tuple(COMBINED))
    nobody = isinstance(silent, Sequence) and not len(silent)
    fix = "Give the numbers of clients, such as range(honest, n)."
    quiet = (
        None
        if nobody
        else validation.array("silent", silent, kind="integer", low=0, shape=("s",), fix=fix)
    )

    def init(own: Params, neighbours: Int[Array, " k"]) -> Memory:
        validation.integer(
            "capacity",
            capacity,
            low=len(neighbours),
            fix="A client must have room for all its neighbours.",
        )
        before = own if history == "update" else ()
        return Memory(none_known(own, capacity), before, jnp.zeros(len(neighbours)))

    def letters(
        own: Params, memory: Memory, weights: Float[Array, " k"], here: Neighbourhood
    ) -> Letters:
        key = jax.random.fold_in(here.key, here.client)

        def to(reader: Int[Array, ""]) -> Letters:
            place, there = drawn(memory.records, reader, decay, jax.random.fold_in(key, reader))
            if quiet is not None:
                there = there & ~jnp.isin(here.client, quiet)
            record = jax.tree.map(lambda leaf: leaf[place], memory.records)
            about = record.about._replace(distance=record.about.distance + 1, source=here.client)
            return Letters(record._replace(about=about), there.astype(weights.dtype))

        return jax.vmap(to)(here.neighbours)

    def apply(
        own: Params,
        others: Params,
        weights: Float[Array, " k"],
        memory: Memory,
        here: Neighbourhood,
    ) -> tuple[Params, Memory, Metrics]:
        there = (weights > 0) & finite_rows(others)
        come = [Incoming(_at_first_hand(others, memory, here), there, first_hand=True)]
        if here.letters is not None:
            letters = here.letters
            come = [Incoming(letters.content, letters.models > 0, first_hand=False), *come]
        records = stored(memory.records, *come)
        trust = _trust(records, here.neighbours, there).astype(weights.dtype)
        mixed = COMBINED[combine](beside(own, others), trust, there)
        after = Memory(records, mixed if history == "update" else (), trust)
        passed_on = jnp.sum(records.known & (records.about.distance > 1), dtype=jnp.float32)
        return mixed, after, {"trust": trust, "records_passed_on": passed_on}

    return NeighbourRule(init, apply, letters=letters if passing_on else None)


def _at_first_hand(others: Params, memory: Memory, here: Neighbourhood) -> Records:
    """What the neighbours' models become as records: themselves, or added up as updates."""
    who = here.neighbours
    about = About(
        who, jnp.full_like(who, here.index), jnp.ones_like(who), jnp.full_like(who, NOBODY)
    )
    if not jax.tree.leaves(memory.before):
        return Records(about, others)
    places, known = place_of(memory.records.about, who)
    goes_on = known & (memory.records.about.distance[places] == 1)

    def added(model: Array, mine: Array, sums: Array) -> Array:
        return model - mine + jnp.where(against(goes_on, model), sums[places], 0)

    return Records(about, jax.tree.map(added, others, memory.before, memory.records.histories))


def _trust(
    records: Records, neighbours: Int[Array, " k"], there: Bool[Array, " k"]
) -> Float[Array, " k"]:
    """The scores of those who are heard, compared with all records; cut to them, then rescaled."""
    places, _ = place_of(records.about, neighbours)
    judged = jnp.zeros(len(records.known), bool).at[places].max(there)
    # In free places stand zeros, which are like nothing.
    scores = similarity_scores(cosines_of(gram(records.histories)), records.known, judged)
    return jnp.where(there, scores[places], 0)


def _mean(models: Params, trust: Float[Array, " k"], there: Bool[Array, " k"]) -> Params:
    return counted_mean(models, _with_own(trust))


def _filtered_mean(models: Params, trust: Float[Array, " k"], there: Bool[Array, " k"]) -> Params:
    """Without the worst by Krum among the own model and the others, where there are two others."""
    present = _with_own(there)
    count = jnp.sum(present, dtype=jnp.int32)
    far = squared_distances(models, present.astype(trust.dtype))
    scores = krum_scores(far, present, count - 3)[1:]
    worst = jnp.argmax(jnp.where(there, scores, -jnp.inf))
    out = (jnp.arange(len(trust)) == worst) & (count > 2)
    return _mean(models, jnp.where(out, 0, trust), there)


def _better_half(models: Params, trust: Float[Array, " k"], there: Bool[Array, " k"]) -> Params:
    """Of equal scores the first count as the better ones."""
    rank = jnp.argsort(jnp.argsort(jnp.where(there, -trust, 1), stable=True))
    kept = there & (2 * rank < jnp.sum(there))
    return map_coordinates(median_rows, models, _with_own(kept))


def _weighted_median(models: Params, trust: Float[Array, " k"], there: Bool[Array, " k"]) -> Params:
    return map_coordinates(weighted_median_rows, models, _with_own(trust))


def _with_own(shares: Array) -> Array:
    """A client's own share, 1, before those of the others."""
    return jnp.concatenate([jnp.ones(1, shares.dtype), shares])


COMBINED = {
    "mean": _mean,
    "filtered mean": _filtered_mean,
    "better half": _better_half,
    "weighted median": _weighted_median,
}
