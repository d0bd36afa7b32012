"""What a swarm remembers of its nodes: reputation on two tracks, stake, and what they earned."""

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from dflax import validation
from dflax.inference.swarm.rules import Ballot

LEAST_UNCERTAINTY, FIRST_UNCERTAINTY, SHRINKS = 0.05, 0.4, 0.95


class DualTrack(NamedTuple):
    """How reputation moves; see `dual_track`.

    Attributes:
      share: of the ranking track, a.
      answering: rate of the answering track, eta_g.
      judging: rate of the judging track, eta_r.
      decay: for each missed round, delta.
      least: below it a node is sent to the test, R_min.
      start: of a new node.
      graded: whether an answer earns its rank, or the winner alone earns anything.
      domains: D, answering tracks of a node.
    """

    share: Float[Array, ""]
    answering: Float[Array, ""]
    judging: Float[Array, ""]
    decay: Float[Array, ""]
    least: Float[Array, ""]
    start: Float[Array, ""]
    graded: bool
    domains: int


class SwarmLedger(NamedTuple):
    """What is known of each of N nodes.

    Attributes:
      generation: `[N]` R_gen in [0, 1], of its answers.
      ranking: `[N]` R_rank in [0, 1], of its verdicts.
      by_domain: `[N, D]` R_gen of the answers in each domain.
      uncertainty: `[N]` sigma, 0.4 at first, times 0.95 with each round it takes part in, to 0.05.
      active: `[N]` bool, admitted.
      barred: `[N]` bool, slashed, for good.
      statistic: `[N]` of the sequential test of audited answers.
      stake: `[N]` locked.
      balance: `[N]` earned less spent so far, without the stake.
      idle: `[N]` int32, rounds missed so far.
    """

    generation: Float[Array, " n"]
    ranking: Float[Array, " n"]
    by_domain: Float[Array, "n d"]
    uncertainty: Float[Array, " n"]
    active: Bool[Array, " n"]
    barred: Bool[Array, " n"]
    statistic: Float[Array, " n"]
    stake: Float[Array, " n"]
    balance: Float[Array, " n"]
    idle: Int[Array, " n"]


class Signals(NamedTuple):
    """What one query says of N nodes.

    Attributes:
      answered: `[N]` g in [0, 1], how good its answer was.
      agreed: `[N]` q in [0, 1], how often its verdicts were right.
      judged: `[N]` bool, whether any of its verdicts could be right or wrong.
    """

    answered: Float[Array, " n"]
    agreed: Float[Array, " n"]
    judged: Bool[Array, " n"]


def dual_track(
    share: float | Float[Array, ""] = 0.4,
    *,
    answering: float | Float[Array, ""] = 0.15,
    judging: float | Float[Array, ""] = 0.15,
    decay: float | Float[Array, ""] = 0.02,
    least: float | Float[Array, ""] = 0.1,
    start: float | Float[Array, ""] = 0.5,
    graded: bool = True,
    domains: int = 1,
) -> DualTrack:
    """Reputation from answers and, apart from that, from verdicts.

        R_gen  <- (1 - eta_g) R_gen + eta_g g          who took part
        R_rank <- (1 - eta_r) R_rank + eta_r q         who took part and judged
        R_gen, R_rank <- (1 - delta) of each           who did not
        R = a R_rank + (1 - a) R_gen

    g is `1 - rank / (N_p - 1)` among the N_p answers (rank 0 the best, equal answers their mean rank),
    or 1 for the winner alone; q is how often verdicts agree with the ranking (1/2 where it has a tie).
    A constant g leads to `g + (R_0 - g) (1 - eta_g)^t`.

    Args:
      share: a in [0, 1]; traceable, as all real numbers here.
      answering: eta_g in [0, 1].
      judging: eta_r in [0, 1].
      decay: delta in [0, 1].
      least: R_min in [0, 1]. Where there is a test, who falls below it must pass it again.
      start: R_gen and R_rank of a node that enters, in [0, 1].
      graded: whether g is by rank. Without it good nodes starve where N is large: the mean g is 1/N.
      domains: D >= 1. A vote on a question of domain d is weighted by `a R_rank + (1 - a) R_gen,d`;
        domains from D on count in the last.

    Raises:
      TypeError, ValueError: naming the argument.
    """
    named = {
        "share": share,
        "answering": answering,
        "judging": judging,
        "decay": decay,
        "least": least,
        "start": start,
    }
    for name, value in named.items():
        validation.probability(name, value)
    validation.flag("graded", graded)
    validation.integer("domains", domains, low=1)
    real = {name: jnp.asarray(value, jnp.float32) for name, value in named.items()}
    return DualTrack(**real, graded=graded, domains=domains)


def opened(nodes: int, track: DualTrack, *, admitted: bool) -> SwarmLedger:
    """Of nodes about which nothing is known."""
    at_start, zeros = jnp.full(nodes, track.start), jnp.zeros(nodes)
    return SwarmLedger(
        generation=at_start,
        ranking=at_start,
        by_domain=jnp.broadcast_to(at_start[:, None], (nodes, track.domains)),
        uncertainty=jnp.full(nodes, FIRST_UNCERTAINTY),
        active=jnp.full(nodes, admitted),
        barred=jnp.zeros(nodes, bool),
        statistic=zeros,
        stake=zeros,
        balance=zeros,
        idle=jnp.zeros(nodes, jnp.int32),
    )


def standing(ledger: SwarmLedger, track: DualTrack) -> Float[Array, " n"]:
    """R of each node, over all domains."""
    return track.share * ledger.ranking + (1.0 - track.share) * ledger.generation


def standing_in(
    ledger: SwarmLedger, track: DualTrack, domain: Int[Array, ""]
) -> Float[Array, " n"]:
    """R of each node in one domain."""
    return track.share * ledger.ranking + (1.0 - track.share) * ledger.by_domain[:, domain]


def vote_weights(
    reputation: Float[Array, " n"], present: Bool[Array, " n"], gamma: Float[Array, ""]
) -> Float[Array, " n"]:
    """`R^gamma` of who is there, mean 1 over them; where all of them have none, 1 each."""
    raw = jnp.where(present, reputation**gamma, 0.0)
    total, count = jnp.sum(raw), jnp.sum(present)
    scaled = raw * count / jnp.where(total > 0, total, 1.0)
    return jnp.where(total > 0, scaled, present.astype(raw.dtype))


def by_consensus(ballot: Ballot, score: Float[Array, " n"], graded: bool) -> Signals:
    """Signals measured against the swarm's own ranking."""
    there = ballot.present
    above = jnp.sum(there & (score > score[:, None]), axis=1)
    level = jnp.sum(there & (score == score[:, None]), axis=1) - 1
    rank = above + 0.5 * level
    if graded:
        answered = 1.0 - rank / jnp.maximum(jnp.sum(there) - 1, 1)
    else:
        best = jnp.argmax(jnp.where(there, score, -1.0))
        answered = (jnp.arange(there.shape[0]) == best).astype(score.dtype)
    first, second = score[ballot.pairs[..., 0]], score[ballot.pairs[..., 1]]
    truth = 0.5 * (1.0 + jnp.sign(first - second))
    return _signals(ballot, answered, truth, ballot.counted)


def by_truth(ballot: Ballot, correct: Bool[Array, " n"]) -> Signals:
    """Signals of an audited query: only pairs of which one answer is right tell of a judge."""
    first, second = correct[ballot.pairs[..., 0]], correct[ballot.pairs[..., 1]]
    dtype = ballot.verdicts.dtype
    telling = ballot.counted & (first != second)
    return _signals(ballot, correct.astype(dtype), first.astype(dtype), telling)


def moved(
    ledger: SwarmLedger,
    track: DualTrack,
    signals: Signals,
    present: Bool[Array, " n"],
    domain: Int[Array, ""],
) -> SwarmLedger:
    """The ledger after a query that `present` took part in."""

    def towards(old: Array, signal: Array, rate: Array, told: Array) -> Array:
        missed = jnp.where(present, old, (1.0 - track.decay) * old)
        return jnp.where(told, (1.0 - rate) * old + rate * signal, missed)

    g, there = signals.answered, present[:, None]
    asked = there & (jnp.arange(track.domains) == domain)
    missed = jnp.where(there, ledger.by_domain, (1.0 - track.decay) * ledger.by_domain)
    own = (1.0 - track.answering) * ledger.by_domain + track.answering * g[:, None]
    surer = jnp.maximum(LEAST_UNCERTAINTY, SHRINKS * ledger.uncertainty)
    return ledger._replace(
        generation=towards(ledger.generation, g, track.answering, present),
        ranking=towards(ledger.ranking, signals.agreed, track.judging, present & signals.judged),
        by_domain=jnp.where(asked, own, missed),
        uncertainty=jnp.where(present, surer, ledger.uncertainty),
        idle=ledger.idle + ~present,
    )


def slashed(ledger: SwarmLedger, faulty: Bool[Array, " n"]) -> SwarmLedger:
    """The ledger after a proven fault: no reputation, no stake, and barred for good."""

    def lost(old: Array) -> Array:
        return jnp.where(faulty.reshape((-1,) + (1,) * (old.ndim - 1)), 0.0, old)

    return ledger._replace(
        generation=lost(ledger.generation),
        ranking=lost(ledger.ranking),
        by_domain=lost(ledger.by_domain),
        stake=lost(ledger.stake),
        active=ledger.active & ~faulty,
        barred=ledger.barred | faulty,
    )


def _signals(ballot: Ballot, answered: Array, truth: Array, telling: Array) -> Signals:
    y = ballot.verdicts
    right = jnp.where(telling, y * truth + (1.0 - y) * (1.0 - truth), 0.0)
    count = jnp.sum(telling, axis=1)
    return Signals(answered, jnp.sum(right, axis=1) / jnp.maximum(count, 1), count > 0)
