"""Inference by nodes that nobody trusts: a query a round."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Key, PyTree

from dflax import validation
from dflax.algorithm import Algorithm, FederatedState, Metrics, Params
from dflax.clients import everywhere, map_clients
from dflax.verified_inference.agreement import Measure, relative_difference
from dflax.verified_inference.consensus import Consensus, consensus, heaviest, quorum_of
from dflax.verified_inference.enclaves import Enclaves, bytes_of, capable, no_enclaves
from dflax.verified_inference.faults import Nodes, copied, told, variants
from dflax.verified_inference.proofs.prover import Prover
from dflax.verified_inference.queries import Query
from dflax.verified_inference.reputation import (
    Incentives,
    Ledger,
    Outcome,
    SequentialTest,
    entered,
    incentives,
    opened_ledger,
    sequential_test,
)

HASH_BYTES = 32
WORD_BYTES = 4


class Service(NamedTuple):
    """What there is once.

    Attributes:
      models: leaves `[v, ...]`, all weights that some node runs, the right ones first.
      accepted: `[]` int32, queries answered so far.
      rejected: `[]` int32, not answered, since a proof was refused or nobody was there.
      escalated: `[]` int32, committees enlarged so far.
    """

    models: PyTree[Array]
    accepted: Int[Array, ""]
    rejected: Int[Array, ""]
    escalated: Int[Array, ""]


class _Rules(NamedTuple):
    """The factory's arguments, checked."""

    apply: Callable[[Params, Array], Array]
    held: Nodes
    measure: Measure
    size: Any
    quorum: Any
    tolerance: Any
    levels: int
    largest: int
    by_reputation: bool
    weighted: bool
    audit: Any
    commit_first: bool
    noise: Any
    absent: Any
    eta: Any
    test: SequentialTest
    pay: Incentives
    trusted: Enclaves
    proof: tuple[Any, Any, Any, int]


class _Drawn(NamedTuple):
    """Who is asked: k candidates for the committee, in their order, and behind them who would prove."""

    nodes: Int[Array, " k+1"]
    present: Bool[Array, " k+1"]
    kinds: Int[Array, " k+1"]
    sizes: Int[Array, " levels"]


class _Judged(NamedTuple):
    """How the query ended.

    Attributes:
      accepted: whether there is an answer.
      result: `[B, C]`.
      executed: `[k+1]` bool.
      audited: `[k+1]` bool.
      agreed: `[k+1]` bool.
      paid: `[k+1]` bool.
      level: committees enlarged.
      proved: whether a proof was asked for.
    """

    accepted: Bool[Array, ""]
    result: Array
    executed: Bool[Array, " k+1"]
    audited: Bool[Array, " k+1"]
    agreed: Bool[Array, " k+1"]
    paid: Bool[Array, " k+1"]
    level: Int[Array, ""]
    proved: Bool[Array, ""]


def verified_inference(
    apply: Callable[[Params, Array], Float[Array, "B C"]],
    nodes: Nodes,
    *,
    measure: Measure | None = None,
    committee: int | Int[Array, ""] = 7,
    quorum: float | Float[Array, ""] = 2 / 3,
    tolerance: float | Float[Array, ""] = 1e-3,
    escalations: int = 2,
    largest: int | None = None,
    by_reputation: bool = True,
    weighted: bool = False,
    audit: float | Float[Array, ""] = 1.0,
    commit_first: bool = True,
    noise: float | Float[Array, "..."] = 0.0,
    absent: float | Float[Array, ""] = 0.0,
    eta: float | Float[Array, ""] = 0.1,
    test: SequentialTest | None = None,
    pay: Incentives | None = None,
    trusted: Enclaves | None = None,
    prover: Prover | None = None,
) -> Algorithm:
    """A model served by a committee of nodes, a query a round: consensus, audits, proofs, reputation.

        committee   k of n nodes without replacement, with probability as their reputation
        answers     y_i, each within the tolerance of another or not: A_ij = 1[dist(y_i, y_j) <= tau]
        consensus   the leader i0 = argmax sum_j A_ij, if q = ceil(quorum k) agree with it
        escalation  else k -> min(2 k + 1, n), at most `escalations` times
        proof       else, and for critical queries at once: one node proves its answer

    With `audit` = p below 1 the first member alone answers, and the others run the model in a share p of
    the queries: 1 + p (k - 1) executions a query. p = 0 with k = 1 is a single node that is believed.

    Consensus verifies agreement, not truth. If faulty nodes collude and each is faulty with probability
    f, a wrong answer is accepted with probability P[Bin(k, f) >= q]; without escalation a right one
    is with P[Bin(k, 1 - f) >= q].

    Of members that were audited (all of a committee that agreed, or whose query was proved after it did
    not) those that agree with the result pass: `reputation <- (1 - eta) reputation + eta passed`, and
    Wald's test removes who fails too often. Committees are drawn after the query is fixed. With
    `commit_first` members send hashes of their answers before any is revealed: without it those
    that copy find something to copy.

    Nodes run the same function on the same inputs, so each set of weights that anybody uses is run
    once a query and its outputs handed to all who run it; if these are more than the largest
    committee, its members' are run. Rounding of different machines is a uniform relative noise of
    each node's own.

    Args:
      apply: `apply(params, inputs [B, ...]) -> outputs [B, C]`.
      nodes: who is faulty, see `nodes`; it tells n.
      measure: how answers are compared; default `relative_difference()`.
      committee: k in [1, n]; traceable with `largest`.
      quorum: share of the committee that must agree, in (0, 1]; traceable.
      tolerance: tau >= 0, in units of the measure; traceable.
      escalations: >= 0.
      largest: the largest committee there can be, in [1, n]; needed where `committee` is traced, else
        what k and the escalations give.
      by_reputation: whether the draw follows reputation, or is uniform.
      weighted: whether agreement is counted by reputation; the quorum is then a share of the weight of
        those present.
      audit: p in [0, 1]; traceable.
      commit_first: whether answers are committed to before any is revealed.
      noise: relative, >= 0; one number, or one for each node. Twice as much of it is what the
        tolerance must allow for.
      absent: probability that a member does not answer, in [0, 1]; traceable.
      eta: rate of reputation, in [0, 1]; traceable.
      test: Wald's, see `sequential_test`, which is the default; `never_removed()` removes nobody.
      pay: see `incentives`.
      trusted: who is in an enclave, see `enclaves`; default nobody.
      prover: costs and soundness error of proofs; default 1000 executions, and sound.

    Returns:
      An `Algorithm`. `init(key, params)` takes the right weights; rounds come from `Queries`. The state
      is a `FederatedState` of `Service` and, by node, `Ledger`. Metrics of a query: `accepted`;
      `wrong`, accepted and not what the right model gives; `rejected`; `escalations`; `proved`;
      `executions` and their `cost` with enclaves and proofs; `bytes_sent`; `false_alarms`, honest
      members that failed their audit; `removed_honest` and `removed_faulty`, nodes so far;
      `accuracy` where the queries have labels, of those accepted.

    Raises:
      TypeError, ValueError: naming the argument.

    References:
      Zhang et al., Towards secure and private AI: a framework for decentralized inference, arXiv
      2407.19401.
    """
    given = dict(locals())
    rules = _rules(**given)
    count = rules.held.kinds.shape[0]
    runs = _runs(rules.held)

    def init(key: Key[Array, ""], params: Params) -> FederatedState:
        validation.model("params", params)
        _require_memory(rules.trusted, bytes_of(params))
        models, _ = variants(params, rules.held.faults)
        none = jnp.int32(0)
        return FederatedState(none, Service(models, none, none, none), opened_ledger(count))

    def step(state: FederatedState, round: Query) -> tuple[FederatedState, Metrics]:
        service, ledger = state.server, everywhere(state.clients)
        chance = _chance(round.key, count)
        size = bytes_of(service.models) // jax.tree.leaves(service.models)[0].shape[0]
        drawn = _drawn(rules, chance, ledger, size)
        right, outputs = _answers(rules, runs, chance, service.models, drawn, round.inputs)
        judged = _judged(rules, chance, ledger, round.critical, drawn, outputs)
        outcome = _outcome(count, drawn, judged)
        after = entered(ledger, outcome, rules.test, rules.pay, rules.eta, state.round)
        wrong = judged.accepted & rules.measure.wrong(judged.result, right, rules.tolerance)
        service = service._replace(
            accepted=service.accepted + judged.accepted,
            rejected=service.rejected + ~judged.accepted,
            escalated=service.escalated + judged.level,
        )
        metrics = {
            "accepted": judged.accepted,
            "wrong": wrong,
            "rejected": ~judged.accepted,
            "escalations": judged.level,
            "proved": judged.proved,
            **_costs(rules, drawn, judged, round.inputs, right),
            "false_alarms": jnp.sum(judged.audited & ~judged.agreed & (drawn.kinds == 0)),
            "removed_honest": jnp.sum(~after.active & (rules.held.kinds == 0)),
            "removed_faulty": jnp.sum(~after.active & (rules.held.kinds > 0)),
        }
        if round.labels is not None:
            hit = jnp.mean(jnp.argmax(judged.result, axis=-1) == round.labels)
            metrics["accuracy"] = jnp.where(judged.accepted, hit, jnp.nan)
        return FederatedState(state.round + 1, service, after), metrics

    return Algorithm(init, step)


class _Chance(NamedTuple):
    """All that is random in a query, in few calls of the generator: they take longest to compile."""

    committee: Float[Array, " n"]
    prover: Float[Array, " n"]
    lies: Float[Array, " n"]
    broken: Float[Array, " n"]
    absent: Float[Array, " n"]
    audit: Float[Array, ""]
    proof: Float[Array, ""]
    told: Key[Array, ""]
    noise: Key[Array, ""]
    compared: Key[Array, ""]


def _chance(key: Key[Array, ""], count: int) -> _Chance:
    numbers, *keys = jax.random.split(key, 4)
    drawn = jax.random.uniform(numbers, (5 * count + 2,), minval=jnp.finfo(jnp.float32).tiny)
    scores = -jnp.log(-jnp.log(drawn[: 2 * count])).reshape(2, count)
    lies, broken, absent = drawn[2 * count : 5 * count].reshape(3, count)
    own, noise, compared = keys
    return _Chance(
        *(scores[0], scores[1], lies, broken, absent), drawn[-2], drawn[-1], own, noise, compared
    )


def _drawn(rules: _Rules, chance: _Chance, ledger: Ledger, size: int) -> _Drawn:
    """Who is asked, who is there, and who lies."""
    held, count = rules.held, rules.held.kinds.shape[0]
    weights = jnp.maximum(ledger.reputation, 1e-6) if rules.by_reputation else jnp.ones(count)
    weights = jnp.where(ledger.active, weights, 0.0)
    members, drawn = heaviest(weights, chance.committee, rules.largest)
    able = capable(rules.trusted, size) & ledger.active
    provers = jnp.where(jnp.any(rules.trusted.attested), jnp.where(able, weights, 0.0), weights)
    prover, found = heaviest(provers, chance.prover, 1)
    who = jnp.concatenate([members, prover])
    lies = chance.lies < held.rate
    lies &= ~rules.trusted.attested | (chance.broken < rules.trusted.p_break)
    kinds = jnp.where(lies, held.kinds, 0)[who]
    missing = chance.absent < rules.absent
    present = jnp.concatenate([drawn & ~missing[members], found])
    sizes = [jnp.minimum(jnp.asarray(rules.size, jnp.int32), rules.largest)]
    for _ in range(rules.levels):
        sizes.append(jnp.minimum(2 * sizes[-1] + 1, rules.largest))
    return _Drawn(who, present, kinds, jnp.stack(sizes))


def _answers(
    rules: _Rules,
    runs: tuple[int, ...],
    chance: _Chance,
    models: PyTree[Array],
    drawn: _Drawn,
    inputs: Array,
) -> tuple[Array, Array]:
    """The right outputs `[B, C]`, and what everybody who is asked would tell `[k+1, B, C]`."""
    own = jnp.asarray(runs, jnp.int32)[drawn.kinds]
    stacked = jax.tree.leaves(models)[0].shape[0]
    if stacked > own.shape[0] + 1:
        wanted = jnp.concatenate([jnp.zeros(1, jnp.int32), own])
        models = jax.tree.map(lambda leaf: leaf[wanted], models)
        own = 1 + jnp.arange(own.shape[0])
    outputs = everywhere(
        map_clients(lambda params, x: rules.apply(params, x), models, shared=(inputs,))
    )
    _require_outputs(outputs)
    right, outputs = outputs[0], outputs[own]
    if rules.noise is not None:
        levels = jnp.broadcast_to(rules.noise, rules.held.kinds.shape)[drawn.nodes]
        rounding = jax.random.uniform(chance.noise, outputs.shape, outputs.dtype, -1.0, 1.0)
        outputs = outputs * (1.0 + levels.reshape(-1, *(1,) * (outputs.ndim - 1)) * rounding)
    lying = jax.vmap(jax.random.fold_in, in_axes=(None, 0))(chance.told, drawn.nodes)
    outputs = told(rules.held.faults, drawn.kinds, lying, chance.told, outputs)
    if not rules.commit_first:
        seen = drawn.present.at[-1].set(False)
        everyone = copied(rules.held.faults, drawn.kinds, seen, outputs)
        # Who proves alone has nobody to copy from.
        outputs = everyone.at[-1].set(outputs[-1])
    return right, outputs


def _judged(
    rules: _Rules,
    chance: _Chance,
    ledger: Ledger,
    critical: Array,
    drawn: _Drawn,
    outputs: Array,
) -> _Judged:
    """Consensus at the first committee that has it, the first member's word, or a proof."""
    k = rules.largest
    places, present = jnp.arange(k), drawn.present[:k]
    fold = jax.vmap(jax.random.fold_in, in_axes=(None, 0))
    answers = jax.vmap(rules.measure.reveal)(fold(chance.compared, drawn.nodes), outputs)
    distances = rules.measure.distances(chance.compared, answers)
    near = distances <= rules.tolerance
    inside = jax.vmap(lambda size: places < size)(drawn.sizes)
    found = _at_every_level(rules, ledger, drawn, near[:k, :k], inside & present)
    agreed_at_all = jnp.any(found.accepted)
    level = jnp.where(agreed_at_all, jnp.argmax(found.accepted), rules.levels)

    audited = chance.audit < rules.audit
    alone = ~critical & ~audited & jnp.any(present)
    voted = ~critical & audited
    by_vote = voted & agreed_at_all
    proved = ~alone & ~by_vote
    first = (places == jnp.argmax(present)) & present

    members = by_vote & found.members[level] | alone & first
    there = inside[level] & present
    honest = drawn.kinds[-1] == 0
    passes = chance.proof < rules.proof[2]
    held = drawn.present[-1] & (honest | passes)
    last = jnp.arange(k + 1) == k
    chosen = jnp.where(proved, last, jnp.append(members, False))
    near_proved = near[k] & held
    ran = jnp.where(alone, first, voted & there)
    agreed = jnp.where(proved, near_proved[:k], members)
    return _Judged(
        accepted=jnp.where(proved, held, True),
        result=rules.measure.combine(answers, chosen),
        executed=jnp.append(ran, proved & drawn.present[-1]),
        audited=jnp.append(voted & there & (by_vote | held), proved & drawn.present[-1]),
        agreed=jnp.append(agreed, held),
        paid=jnp.append(ran & (alone | agreed), proved & held),
        level=jnp.where(voted, level, 0).astype(jnp.int32),
        proved=proved,
    )


def _at_every_level(
    rules: _Rules, ledger: Ledger, drawn: _Drawn, near: Array, there: Array
) -> Consensus:
    """The consensus of each committee, smallest first."""
    if rules.weighted:
        weights = ledger.reputation[drawn.nodes[:-1]]
        needed = jnp.maximum(rules.quorum * (there @ weights) - 1e-5, 1e-6)
    else:
        weights = jnp.ones(near.shape[0])
        needed = jax.vmap(lambda size: quorum_of(size, rules.quorum))(drawn.sizes)
    return jax.vmap(lambda there, q: consensus(near, there, q, weights=weights))(there, needed)


def _outcome(count: int, drawn: _Drawn, judged: _Judged) -> Outcome:
    """By node what is by member: who proves may be a member, too."""

    def spread(values: Array) -> Array:
        return jnp.zeros(count, jnp.int32).at[drawn.nodes].add(values.astype(jnp.int32))

    failed = spread(judged.audited & ~judged.agreed) > 0
    audited = spread(judged.audited) > 0
    return Outcome(
        executed=spread(judged.executed),
        lied=spread(judged.executed & (drawn.kinds > 0)) > 0,
        audited=audited,
        agreed=audited & ~failed,
        paid=spread(judged.paid) > 0,
    )


def _costs(rules: _Rules, drawn: _Drawn, judged: _Judged, inputs: Array, right: Array) -> Metrics:
    """Executions, what they cost in units of one, and bytes sent by and to nodes."""
    prove, verify, _, proof_bytes = rules.proof
    attested = rules.trusted.attested[drawn.nodes]
    each = jnp.where(attested, rules.trusted.slowdown, 1.0)
    done = judged.executed.astype(jnp.float32)
    proved = judged.proved & drawn.present[-1]
    extra = jnp.where(proved, prove + verify, 0.0)
    extra += jnp.where(proved & attested[-1], rules.trusted.attestation, 0.0)
    executions = jnp.sum(done)
    words = WORD_BYTES * (inputs.size + right.size) + HASH_BYTES * rules.commit_first
    return {
        "executions": executions,
        "cost": jnp.sum(done * each) + extra,
        "bytes_sent": executions * words + jnp.where(proved, float(proof_bytes), 0.0),
    }


def _runs(held: Nodes) -> tuple[int, ...]:
    """Which of the stacked weights each kind runs."""
    place, runs = 0, [0]
    for fault in held.faults:
        place += fault.alter is not None
        runs.append(place if fault.alter is not None else 0)
    return tuple(runs)


def _rules(
    *,
    apply: Any,
    nodes: Any,
    measure: Any,
    committee: Any,
    quorum: Any,
    tolerance: Any,
    escalations: Any,
    largest: Any,
    by_reputation: Any,
    weighted: Any,
    audit: Any,
    commit_first: Any,
    noise: Any,
    absent: Any,
    eta: Any,
    test: Any,
    pay: Any,
    trusted: Any,
    prover: Any,
) -> _Rules:
    """All arguments checked, and what is left out filled in."""
    validation.function("apply", apply, "It gives outputs of (params, inputs).", takes=2)
    validation.instance("nodes", nodes, Nodes, "Make them with dflax.verified_inference.nodes.")
    count = nodes.kinds.shape[0]
    measure = relative_difference() if measure is None else measure
    validation.instance("measure", measure, Measure, "For example relative_difference().")
    validation.integer("escalations", escalations, low=0, high=16)
    most = _largest(committee, largest, count, escalations)
    validation.probability("quorum", quorum, low_open=True)
    validation.real("tolerance", tolerance, low=0.0, scalar=True)
    validation.flag("by_reputation", by_reputation)
    validation.flag("weighted", weighted)
    validation.probability("audit", audit)
    validation.flag("commit_first", commit_first)
    validation.real("noise", noise, low=0.0)
    _require_one_or_each("noise", noise, count)
    validation.probability("absent", absent)
    validation.probability("eta", eta)
    for name, value, kind, make in (
        ("test", test, SequentialTest, "sequential_test()"),
        ("pay", pay, Incentives, "incentives()"),
        ("trusted", trusted, Enclaves, "enclaves(attested)"),
        ("prover", prover, Prover, "mock_prover(apply, model)"),
    ):
        if value is not None:
            validation.instance(name, value, kind, f"Make it with {make}.")
    if trusted is not None and trusted.attested.shape != (count,):
        raise ValueError(f"trusted must be of the {count} nodes, got {trusted.attested.shape[0]}.")
    proof: tuple[Any, Any, Any, int] = (1000.0, 0.1, 0.0, 28_000)
    if prover is not None:
        proof = (prover.cost, prover.verification, prover.soundness_error, prover.proof_bytes)
    return _Rules(
        *(apply, nodes, measure, committee, quorum, tolerance, escalations, most),
        *(by_reputation, weighted, audit, commit_first, _none_if_zero(noise), absent),
        eta,
        sequential_test() if test is None else test,
        incentives() if pay is None else pay,
        no_enclaves(count) if trusted is None else trusted,
        proof,
    )


def _largest(size: Any, largest: Any, count: int, escalations: int) -> int:
    """The largest committee, n at most."""
    if largest is not None:
        validation.integer("largest", largest, low=1, high=count)
    if validation.is_traced(size):
        if np.ndim(size):
            raise ValueError(
                "committee must be one number, got an array. Sweep it with dflax.sweep."
            )
        if largest is None:
            raise ValueError(
                "largest must be said where committee is traced, got None. Shapes depend on it."
            )
        return int(largest)
    fix = "There are no more nodes to choose from."
    value = int(size) if hasattr(size, "dtype") and np.ndim(size) == 0 else size
    if hasattr(size, "dtype") and np.asarray(size).dtype.kind not in "iu":
        raise TypeError(f"committee must be an integer, got {validation.shown(size)}.")
    validation.integer("committee", value, low=1, high=count, fix=fix)
    if largest is not None:
        if value > largest:
            raise ValueError(f"largest must be at least committee = {value}, got {largest}.")
        return int(largest)
    most = int(value)
    for _ in range(escalations):
        most = min(2 * most + 1, count)
    return most


def _none_if_zero(noise: Any) -> Any:
    """None for no noise at all, which need not be drawn."""
    if not validation.is_traced(noise) and not np.any(np.asarray(noise)):
        return None
    return jnp.asarray(noise, jnp.float32)


def _require_one_or_each(name: str, value: Any, count: int) -> None:
    if np.ndim(value) and np.shape(value) != (count,):
        raise ValueError(
            f"{name} must be one number or one for each of the {count} nodes, got shape "
            f"{np.shape(value)}."
        )


def _require_memory(trusted: Enclaves, size: int) -> None:
    if validation.is_traced(trusted.attested) or validation.is_traced(trusted.memory):
        return
    attested = np.asarray(trusted.attested)
    # On the host: within a trace even an operation on known numbers is traced.
    memory = np.broadcast_to(np.asarray(trusted.memory), attested.shape)
    if attested.any() and not (memory[attested] >= size).any():
        raise ValueError(
            f"params must fit in an attested node's memory: they take {size} bytes, got "
            f"{memory[attested].max():.0f} at most. Give trusted more memory."
        )


def _require_outputs(outputs: Array) -> None:
    if outputs.ndim < 2 or not jnp.issubdtype(outputs.dtype, jnp.floating):
        raise ValueError(
            f"apply must give real outputs [B, C], got {outputs.dtype} of shape {outputs.shape[1:]}."
        )
