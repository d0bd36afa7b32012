"""Fortytwo: answers ranked by the nodes that gave them, weighted by reputation, a query a round."""

from collections.abc import Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key, PyTree

from dflax import validation
from dflax.algorithm import Algorithm, FederatedState, Metrics
from dflax.clients import everywhere
from dflax.inference.swarm.economics import CapabilityTest, RoundRewards, earned, needed
from dflax.inference.swarm.ledger import (
    DualTrack,
    SwarmLedger,
    by_consensus,
    by_truth,
    moved,
    opened,
    slashed,
    standing,
    standing_in,
    vote_weights,
)
from dflax.inference.swarm.measures import kendall, of_sides
from dflax.inference.swarm.nodes import Swarm, answers_of, preferences_of
from dflax.inference.swarm.pairs import all_pairs, sampled_pairs
from dflax.inference.swarm.questions import Question
from dflax.inference.swarm.rules import Ballot, Ranked, Rule
from dflax.inference.swarm.settings import Settings, require_round, settled
from dflax.verified_inference.reputation import SequentialTest


class SwarmNodes(NamedTuple):
    """The nodes of a swarm, leaves `[N, ...]`.

    Attributes:
      members: what each is, see `Swarm.init`.
      ledger: what is known of it.
    """

    members: PyTree[Array]
    ledger: SwarmLedger


def fortytwo(
    swarm: Swarm,
    *,
    pairs: int | None = None,
    rule: Rule | None = None,
    beside: Mapping[str, Rule] | None = None,
    gamma: float | Float[Array, ""] = 1.0,
    track: DualTrack | None = None,
    audit: float | Float[Array, ""] = 0.05,
    test: CapabilityTest | None = None,
    hidden_test: SequentialTest | None = None,
    pay: RoundRewards | None = None,
    soft: bool = False,
    distinct: bool = False,
) -> Algorithm:
    """Fortytwo: nodes answer, compare each other's answers in pairs, and the strongest answer is given.

        answers    of who is asked and admitted
        pairs      K for each judge, none with its own answer, drawn after the answers
        verdicts   y_kij in [0, 1], judge k's preference for i over j
        weights    w_k = R_k^gamma, mean 1 over judges
        wins       W_ij = sum_k w_k (y of pairs (i, j), 1 - y of pairs (j, i)) + eps
        ranking    pi by Bradley-Terry; the winner is argmax pi, the confidence pi_winner / sum pi
        reputation towards each answer's rank and each judge's agreement, see `dual_track`

    With probability `audit` the query is one whose answer is known: reputation then moves towards
    whether answers are right, and whether verdicts are on pairs of which one answer is. Without it
    reputation is agreement, not truth: where liars carry the ranking it is theirs.

    Aggregation and rates are not public in all details: weights and prior are the standard weighted
    likelihood, other defaults are named in `dual_track`, `capability_test` and `round_rewards`.

    Args:
      swarm: see `Swarm`, for example `latent_swarm()`.
      pairs: K >= 1 for each judge, drawn with replacement; None: each judge compares every pair once.
      rule: which answer is given, and what reputation follows; default `by_strength()`.
      beside: further rules by name, asked about the same ballots; their accuracies are metrics.
        Default `{"majority": by_majority()}`.
      gamma: >= 0, how much reputation counts; 0 is unweighted; traceable.
      track: see `dual_track`.
      audit: probability in [0, 1]; traceable.
      test: who is not active must pass the round's calibration questions, see `capability_test`, and
        `Questions(exam=M)`; None: everyone is active from the start, and nothing is staked.
      hidden_test: a sequential test of wrong answers at audits; who fails it is slashed: reputation
        0, stake lost, barred for good. Default: nobody is. Honest nodes err, too: choose its rates
        above and below theirs (`dflax.verified_inference.sequential_test`).
      pay: see `round_rewards`.
      soft: whether a verdict is the judge's probability itself, or drawn with it, 0 or 1.
      distinct: whether pairs of identical answers are left out.

    Returns:
      An `Algorithm`. `init(key, params=None)`; rounds come from `Questions`. The state's `clients` are
      `SwarmNodes`. Metrics: `correct`, whether the answer given is right; `confidence`; `single`, the
      share of right answers, which is the accuracy of a random node; each rule of `beside` by its name,
      whether its answer is right; `right`, `[N]` who answered rightly; `honest_reputation` and
      `liar_reputation`, means (NaN of nobody); `liar_share` of the vote; `tau`, Kendall's between
      the ranking and qualities; `iterations`; `regularised`; `audited`; `present`, `active` and
      `slashed`, counts of nodes; `honest_balance`, `liar_balance`, means. Where nobody is there,
      nothing is right.

    Raises:
      TypeError, ValueError: naming the argument.

    References:
      Larin et al., Fortytwo: Swarm Inference with Peer-Ranked Consensus, arXiv 2510.24801.
    """
    rules = settled(
        swarm, pairs, rule, beside, gamma, track, audit, test, hidden_test, pay, soft, distinct
    )
    nodes = swarm.nodes

    def init(key: Key[Array, ""], params: PyTree[Array] = None) -> FederatedState:
        validation.typed_key("key", key)
        ledger = opened(nodes, rules.track, admitted=rules.test is None)
        return FederatedState(jnp.int32(0), (), SwarmNodes(swarm.init(key, params), ledger))

    def step(state: FederatedState, round: Question) -> tuple[FederatedState, Metrics]:
        require_round(rules, round)
        # What is known of nodes is a few numbers; what they are may be large, and stays where it is.
        members, ledger = state.clients.members, everywhere(state.clients.ledger)
        exam_key, ballot_key, audit_key = jax.random.split(round.key, 3)
        ledger = _admitted(rules, exam_key, members, ledger, round)
        present = round.present & ledger.active
        ballot, quality = _ballot(rules, ballot_key, members, ledger, present, round)
        correct = (ballot.choices == round.asked.truth) & present
        ranked = rules.rule(ballot)
        audited = jax.random.bernoulli(audit_key, rules.audit)
        ledger = _after(rules, ledger, ballot, ranked, correct, audited, round)
        metrics = {
            "correct": correct[ranked.winner],
            "confidence": ranked.confidence,
            "single": jnp.sum(correct) / jnp.maximum(jnp.sum(present), 1),
            "right": correct,
            **{name: correct[rule(ballot).winner] for name, rule in rules.beside.items()},
            "tau": kendall(ranked.score, quality, present),
            "iterations": ranked.iterations,
            "regularised": ranked.regularised,
            "audited": audited,
            "present": jnp.sum(present),
            **of_sides(swarm.liars, ledger, standing(ledger, rules.track), ballot.weights),
        }
        return FederatedState(state.round + 1, (), SwarmNodes(members, ledger)), metrics

    return Algorithm(init, step)


def _ballot(
    rules: Settings,
    key: Key[Array, ""],
    members: PyTree[Array],
    ledger: SwarmLedger,
    present: Bool[Array, " n"],
    round: Question,
) -> tuple[Ballot, Float[Array, " n"]]:
    """Answers, who compares which, and verdicts; and how good the answers are."""
    swarm, asked = rules.swarm, round.asked
    answer_key, quality_key, pair_key, verdict_key = jax.random.split(key, 4)
    choices = answers_of(swarm, answer_key, members, asked)
    quality = swarm.quality(quality_key, asked, choices)
    if rules.pairs is None:
        pairs = jnp.asarray(all_pairs(swarm.nodes))
    else:
        pairs = sampled_pairs(pair_key, swarm.nodes, rules.pairs)
    first, second = pairs[..., 0], pairs[..., 1]
    counted = present[:, None] & present[first] & present[second]
    if rules.distinct:
        counted = counted & (choices[first] != choices[second])
    preferred = preferences_of(swarm, members, asked, choices, quality, pairs)
    if not rules.soft:
        drawn = jax.random.uniform(verdict_key, preferred.shape, preferred.dtype)
        preferred = (drawn < preferred).astype(preferred.dtype)
    reputation = standing_in(ledger, rules.track, _domain(rules, round))
    weights = vote_weights(reputation, present, rules.gamma)
    return Ballot(choices, present, pairs, preferred, counted, weights), quality


def _admitted(
    rules: Settings,
    key: Key[Array, ""],
    members: PyTree[Array],
    ledger: SwarmLedger,
    round: Question,
) -> SwarmLedger:
    """Who is asked, not active and not barred answers the calibration questions; who passes enters."""
    test, exam = rules.test, round.exam
    if test is None or exam is None:
        return ledger
    questions = exam.truth.shape[0]
    candidate = round.present & ~ledger.active & ~ledger.barred

    def examined() -> Array:
        keys = jax.random.split(key, questions)
        # A liar wants to be admitted: it answers what it knows.
        answers = jax.vmap(rules.swarm.answer, in_axes=(0, None, 0))(keys, members, exam)
        return jnp.sum(answers == exam.truth[:, None], axis=0, dtype=jnp.int32)

    nothing = jnp.zeros(candidate.shape, jnp.int32)
    right = jax.lax.cond(jnp.any(candidate), examined, lambda: nothing)
    enters = candidate & (right >= needed(questions, test.threshold))
    new = jnp.where(enters, rules.track.start, 0.0)
    locked = jnp.where(enters, jnp.maximum(test.stake - ledger.stake, 0.0), 0.0)
    spent = jnp.where(candidate, questions * rules.pay.cost, 0.0) + locked
    return ledger._replace(
        generation=jnp.where(enters, new, ledger.generation),
        ranking=jnp.where(enters, new, ledger.ranking),
        by_domain=jnp.where(enters[:, None], new[:, None], ledger.by_domain),
        active=ledger.active | enters,
        stake=ledger.stake + locked,
        balance=ledger.balance - spent,
    )


def _after(
    rules: Settings,
    ledger: SwarmLedger,
    ballot: Ballot,
    ranked: Ranked,
    correct: Bool[Array, " n"],
    audited: Bool[Array, ""],
    round: Question,
) -> SwarmLedger:
    """Reputation, the hidden test, rewards, and who must be tested again."""
    agreed = by_consensus(ballot, ranked.score, rules.track.graded)
    known = by_truth(ballot, correct)
    signals = jax.tree.map(lambda a, b: jnp.where(audited, a, b), known, agreed)
    there = ballot.present
    pay = earned(rules.pay, ranked.winner, standing(ledger, rules.track), there)
    ledger = moved(ledger, rules.track, signals, there, _domain(rules, round))
    ledger = ledger._replace(balance=ledger.balance + pay)
    failed, passed = audited & there & ~correct, audited & there & correct
    hidden = rules.hidden_test
    statistic = ledger.statistic + jnp.where(failed, hidden.failure, 0.0)
    statistic = statistic + jnp.where(passed, hidden.passed, 0.0)
    caught = there & (statistic >= hidden.upper)
    statistic = jnp.where(statistic <= hidden.lower, 0.0, statistic)
    ledger = slashed(ledger._replace(statistic=statistic), caught)
    if rules.test is None:
        return ledger
    enough = standing(ledger, rules.track) >= rules.track.least
    return ledger._replace(active=ledger.active & enough)


def _domain(rules: Settings, round: Question) -> Int[Array, ""]:
    """The question's domain; those beyond the last count in it."""
    return jnp.clip(round.asked.domain, 0, rules.track.domains - 1)
