"""Committees, audits, proofs and ledgers against closed forms."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import binom, hypergeom
from tasks import assert_trees_close

import dflax as dx
from dflax import verified_inference as vi

KEY = jax.random.key(3)
N, D, C = 16, 6, 4
INPUTS = np.random.default_rng(3).normal(size=(50, D)).astype(np.float32)
PARAMS = {"w": np.random.default_rng(4).normal(size=(D, C)).astype(np.float32)}
SOURCE = vi.Queries(INPUTS, labels=np.argmax(INPUTS @ PARAMS["w"], 1))


def apply(params, inputs):
    return inputs @ params["w"]


@functools.cache
def program(faults=(), queries=2000, critical=0.0, **static):
    """A program of the real hyper-parameters, shared by tests."""
    source = vi.Queries(INPUTS, labels=SOURCE.labels, critical=critical)

    @jax.jit
    def simulate(kinds, rate, key, traced):
        algorithm = vi.verified_inference(
            apply,
            vi.Nodes(kinds, faults, jnp.asarray(rate, jnp.float32)),
            largest=13,
            **{"test": vi.never_removed(), **static, **traced},
        )
        return dx.rollout(algorithm, algorithm.init(key, PARAMS), source, key, queries)

    def run(kinds, rate=1.0, key=KEY, **traced):
        named = {
            "committee": 5,
            "quorum": 0.6,
            "tolerance": 1e-3,
            "audit": 1.0,
            "noise": 0.0,
            "absent": 0.0,
        }
        values = {name: jnp.asarray(value) for name, value in (named | traced).items()}
        return jax.tree.map(np.asarray, simulate(jnp.asarray(kinds, jnp.int32), rate, key, values))

    return run


FLIP = vi.label_flip(1)
ONE_SHOT = {"escalations": 0, "by_reputation": False}
TAILS = {
    (3, 2): (0.028, 0.104, 0.216),
    (5, 3): (0.00856, 0.05792, 0.16308),
    (7, 5): (0.000177, 0.004672, 0.028795),
    (13, 9): (0.0, 0.000166, 0.004031),
}


def test_the_sheets_tails_are_binomial():
    for (k, q), wanted in TAILS.items():
        found = [binom.sf(q - 1, k, f) for f in (0.1, 0.2, 0.3)]
        np.testing.assert_allclose(found, wanted, atol=1e-6)


def near(share, probability, count):
    return abs(share - probability) <= 4 * np.sqrt(probability * (1 - probability) / count) + 1e-3


@pytest.mark.parametrize(
    ("k", "q"),
    [
        (3, 2),
        (7, 5),
        pytest.param(5, 3, marks=pytest.mark.slow),
        pytest.param(13, 9, marks=pytest.mark.slow),
    ],
)
def test_wrong_answers_are_accepted_as_often_as_the_binomial_tail(k, q):
    run = program((FLIP,), **ONE_SHOT)
    for f in (0.2, 0.3):
        _, metrics = run(np.ones(N), f, committee=k, quorum=q / k)
        assert near(metrics["wrong"].mean(), binom.sf(q - 1, k, f), 2000)
        # Right ones by vote, or by a proof of who is honest.
        voted = ~metrics["proved"]
        assert near((voted & ~metrics["wrong"]).mean(), binom.sf(q - 1, k, 1 - f), 2000)
        assert not np.any(metrics["rejected"] & ~metrics["proved"])


def test_fixed_faulty_nodes_are_hypergeometric():
    run = program((FLIP,), **ONE_SHOT)
    _, metrics = run(np.arange(N) < 5)
    assert near(metrics["wrong"].mean(), hypergeom.sf(2, N, 5, 5), 2000)


def test_honest_nodes_are_always_accepted_with_the_exact_output():
    run = program((FLIP,), **ONE_SHOT)
    state, metrics = run(np.zeros(N), tolerance=0.0)
    assert metrics["accepted"].all()
    assert not (metrics["wrong"] | metrics["proved"]).any()
    assert metrics["executions"].tolist() == [5.0] * 2000
    np.testing.assert_array_equal(metrics["accuracy"], 1.0)
    assert state.server.accepted == 2000
    ledger = state.clients
    assert ledger.audits.sum() == 10_000 == ledger.executions.sum()
    assert ledger.failures.sum() == 0


def test_noise_within_half_the_tolerance_rejects_nobody_and_noise_above_it_does():
    run = program((FLIP,), **ONE_SHOT)
    _, metrics = run(np.zeros(N), noise=4.9e-4)
    assert not (metrics["proved"] | metrics["wrong"]).any()
    assert metrics["false_alarms"].sum() == 0
    _, metrics = run(np.zeros(N), noise=5e-3)
    assert metrics["proved"].mean() > 0.1


def test_one_node_is_believed():
    run = program((FLIP,), **ONE_SHOT)
    _, metrics = run(np.ones(N), 0.25, committee=1, quorum=1.0)
    assert near(metrics["wrong"].mean(), 0.25, 2000)
    assert (metrics["executions"] == 1).all()


def test_audited_mode_runs_the_model_one_and_p_times_the_others():
    run = program((FLIP,), **ONE_SHOT)
    _, metrics = run(np.zeros(N), audit=0.25)
    executions = metrics["executions"]
    assert set(executions.tolist()) == {1.0, 5.0}
    assert near((executions == 5).mean(), 0.25, 2000)
    assert abs(executions.mean() - (1 + 0.25 * 4)) < 4 * 4 * np.sqrt(0.25 * 0.75 / 2000)


@pytest.mark.slow
def test_without_collusion_almost_nothing_wrong_is_accepted():
    run = program((vi.random_output(),), **ONE_SHOT)
    _, metrics = run(np.ones(N), 0.3)
    assert metrics["wrong"].sum() == 0


@pytest.mark.slow
def test_with_collusion_wrong_answers_agree():
    together = program((vi.colluding(vi.random_output()),), **ONE_SHOT)
    _, metrics = together(np.ones(N), 0.3)
    assert near(metrics["wrong"].mean(), 0.16308, 2000)


@pytest.mark.slow
def test_copiers_copy_where_nobody_commits_first():
    early = program((vi.copying(),), commit_first=False, **ONE_SHOT)
    _, open_ = early(np.arange(N) < 8)
    assert open_["proved"].mean() < 0.05


@pytest.mark.slow
def test_who_commits_first_cannot_copy():
    late = program((vi.copying(),), **ONE_SHOT)
    _, committed = late(np.arange(N) < 8)
    assert committed["proved"].mean() > 0.3
    assert committed["wrong"].sum() == 0


def test_escalation_asks_more_nodes_before_it_asks_for_a_proof():
    escalating = program((FLIP,), escalations=2, by_reputation=False)
    _, metrics = escalating(np.ones(N), 0.3, committee=3, quorum=1.0)
    sizes = np.array([3, 7, 13])
    ran = metrics["executions"] - metrics["proved"]
    assert set(ran.tolist()) <= {3.0, 7.0, 13.0}
    np.testing.assert_array_equal(ran, sizes[metrics["escalations"].clip(0, 2)])
    first = binom.pmf(0, 3, 0.3) + binom.pmf(3, 3, 0.3)
    assert near((metrics["escalations"] == 0).mean(), first, 2000)


def test_absent_members_count_against_the_quorum():
    run = program((FLIP,), **ONE_SHOT)
    _, metrics = run(np.zeros(N), absent=0.3)
    assert near(metrics["proved"].mean(), binom.cdf(2, 5, 0.7), 2000)
    assert not metrics["wrong"].any()


def test_critical_queries_are_proved_by_attested_nodes():
    attested = np.arange(N) < 3
    trusted = vi.enclaves(attested, p_break=0.5, attestation=2.0)
    prover = vi.mock_prover(
        lambda x: x, bytes(32), cost=100.0, verification=1.0, soundness_error=0.1
    )
    run = program.__wrapped__(
        (FLIP,), critical=1.0, trusted=trusted, prover=prover, by_reputation=False
    )
    state, metrics = run(np.ones(N), 1.0)
    assert metrics["proved"].all()
    assert set(np.flatnonzero(state.clients.executions)) == {0, 1, 2}
    # All nodes are bad: an enclave holds in half of the queries, and one lie in ten gets through.
    assert near(metrics["rejected"].mean(), 0.5 * 0.9, 2000)
    assert near(metrics["wrong"].mean(), 0.5 * 0.1, 2000)
    np.testing.assert_allclose(metrics["cost"], 1.07 + 100 + 1 + 2, rtol=1e-6)


def test_reputation_moves_and_three_straight_failures_remove():
    test = vi.sequential_test()
    values = [float(value) for value in test]
    np.testing.assert_allclose(values, [3.4012, -0.34662, 6.90675, -6.90675], rtol=1e-4)
    assert 2 * values[0] < values[2] < 3 * values[0]
    # Nineteen passes, and the twentieth brings it to the lower threshold.
    assert 19 * values[1] > values[3] > 20 * values[1]
    run = program.__wrapped__((FLIP,), test=test, queries=300, **ONE_SHOT)
    pay = vi.incentives()
    state, metrics = run(np.arange(N) < 3, committee=7, quorum=2 / 3)
    ledger = state.clients
    assert not ledger.active[:3].any()
    assert ledger.active[3:].all()
    np.testing.assert_array_equal(ledger.failures[:3], 3)
    np.testing.assert_allclose(ledger.reputation[:3], 0.5 * 0.9**3, rtol=1e-5)
    np.testing.assert_allclose(ledger.stake[:3], 1 - pay.slash, atol=1e-6)
    np.testing.assert_allclose(ledger.balance[:3], -3 * (0.5 - 0.4), atol=1e-6)
    np.testing.assert_allclose(ledger.balance[3:], ledger.executions[3:] * 0.5, rtol=1e-4)
    assert metrics["removed_faulty"][-1] == 3
    assert metrics["removed_honest"][-1] == 0
    assert (ledger.removed[:3] >= 0).all()
    after = ledger.removed[:3].max()
    assert metrics["executions"][after + 1 :].mean() == 7
    wanted = 1 - 0.5 * 0.9 ** ledger.audits[3:]
    np.testing.assert_allclose(ledger.reputation[3:], wanted, rtol=1e-4)


@pytest.mark.slow
def test_cheating_pays_up_to_the_predicted_audit_rate():
    """Each failed audit is fined: the boundary is saved / (fine + reward) of a node's executions."""
    pay = vi.incentives(1.0, cost=0.5, saved=0.4, fine=1.0)
    run = program.__wrapped__((FLIP,), pay=pay, **ONE_SHOT)
    for share, gain in ((0.1, 1), (0.4, -1)):
        audit = share / (7 - share * 6)
        state, _ = run(np.arange(N) < 2, audit=audit, committee=7, quorum=0.5)
        ledger = state.clients
        np.testing.assert_allclose(ledger.audits.sum() / ledger.executions.sum(), share, rtol=0.15)
        each = ledger.balance / ledger.executions
        assert np.sign(each[:2].mean() - each[2:].mean()) == gain
        np.testing.assert_allclose(each[2:], 0.5, rtol=1e-3)


@pytest.mark.slow
def test_weights_alone_carry_a_quorum():
    run = program((FLIP,), weighted=True, escalations=0, queries=600)
    _, metrics = run(np.arange(N) < 6, committee=7, quorum=2 / 3)
    assert metrics["wrong"][300:].mean() <= metrics["wrong"][:300].mean() + 0.01
    assert metrics["proved"][300:].mean() < metrics["proved"][:300].mean()


@pytest.mark.parametrize(
    "measure",
    [
        vi.labels(),
        pytest.param(vi.jensen_shannon(), marks=pytest.mark.slow),
        pytest.param(vi.two_sample_test(samples=16, permutations=99), marks=pytest.mark.slow),
    ],
)
def test_other_measures_find_the_flipped(measure):
    run = program((FLIP,), queries=200, measure=measure, **ONE_SHOT)
    tolerance = 0.95 if measure.reveal(KEY, jnp.zeros((1, 3))).ndim == 3 else 1e-3
    state, _ = run(np.arange(N) < 4, committee=7, quorum=0.5, tolerance=tolerance)
    ledger = state.clients
    rate = ledger.failures / np.maximum(ledger.audits, 1)
    assert rate[:4].min() > rate[4:].max()


@pytest.mark.slow
def test_more_kinds_than_members_have_only_theirs_run():
    """Nine kinds of weights and a committee of three: the same answers as with all of them run."""
    faults = tuple(vi.fewer_bits(bits) for bits in range(2, 10))
    nodes = vi.nodes(np.arange(N) % 9, faults)

    def rolled(largest):
        algorithm = vi.verified_inference(apply, nodes, committee=3, largest=largest, escalations=0)
        return jax.jit(
            lambda: dx.rollout(algorithm, algorithm.init(KEY, PARAMS), SOURCE, KEY, 50)
        )()

    few, many = rolled(3), rolled(12)
    assert_trees_close(few[1], many[1], rtol=1e-6)
    assert_trees_close(few[0].clients, many[0].clients, rtol=1e-6)


@pytest.mark.slow
def test_nodes_dealt_over_devices_are_nodes_on_one():
    nodes = vi.nodes(np.arange(N) // 12, (FLIP,), rate=0.8)
    algorithm = vi.verified_inference(apply, nodes, committee=3, noise=1e-4)
    state = algorithm.init(KEY, PARAMS)
    alone, history = dx.run(algorithm, state, SOURCE, rounds=40, key=KEY)
    mesh = dx.client_mesh()
    assert mesh.devices.size == 8
    dealt, metrics = dx.run(algorithm, state, SOURCE, rounds=40, key=KEY, mesh=mesh)
    assert_trees_close((dealt.server, dealt.clients), (alone.server, alone.clients), rtol=1e-5)
    assert_trees_close(metrics.metrics, history.metrics, rtol=1e-5)
    assert not alone.clients.active[12:].all()


@pytest.mark.slow
def test_shares_tolerances_committees_and_seeds_are_one_program():
    def make(rate, committee):
        nodes = vi.nodes(np.ones(N, int), (FLIP,), rate=rate)
        return vi.verified_inference(
            apply,
            nodes,
            committee=committee,
            quorum=0.6,
            largest=5,
            escalations=0,
            by_reputation=False,
            test=vi.never_removed(),
        )

    swept = dx.sweep(
        make,
        lambda algorithm, key: algorithm.init(key, PARAMS),
        SOURCE,
        grid={"rate": [0.0, 0.3], "committee": [1, 3, 5]},
        seeds=2,
        key=KEY,
        rounds=300,
    )
    wrong = swept.metrics["wrong"].mean(-1)
    assert wrong.shape == (2, 3, 2)
    assert (wrong[0] == 0).all()
    tails = [0.3, 0.216, 0.16308]
    np.testing.assert_allclose(wrong[1].mean(-1), tails, atol=0.08)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"committee": 17}, r"committee must be an integer in \[1, 16\]"),
        ({"committee": 0}, "committee must be"),
        ({"quorum": 0.0}, "quorum must be"),
        ({"quorum": 1.5}, "quorum must be"),
        ({"tolerance": -1e-3}, "tolerance must be"),
        ({"audit": 1.1}, "audit must be"),
        ({"largest": 17}, "largest must be"),
        ({"largest": 3}, "largest must be at least committee"),
        ({"noise": np.ones(3)}, "noise must be one number or one for each"),
        ({"trusted": vi.enclaves(np.ones(3, bool))}, "trusted must be of the 16 nodes"),
    ],
)
def test_bad_arguments_are_refused_by_name(change, message):
    with pytest.raises(ValueError, match=message):
        vi.verified_inference(apply, vi.nodes(np.zeros(N, int)), **change)


def test_rates_kinds_memory_and_payments_are_refused_by_name():
    with pytest.raises(ValueError, match="rate must be"):
        vi.nodes(np.zeros(N, int), rate=1.2)
    with pytest.raises(ValueError, match="kinds must be"):
        vi.nodes(np.ones(N, int))
    with pytest.raises(ValueError, match="p1 must be above p0"):
        vi.sequential_test(0.3, 0.1)
    with pytest.raises(ValueError, match="saved must be at most"):
        vi.incentives(cost=0.1, saved=0.2)
    small = vi.enclaves(np.ones(N, bool), memory=10.0)
    algorithm = vi.verified_inference(apply, vi.nodes(np.zeros(N, int)), trusted=small)
    with pytest.raises(ValueError, match="params must fit in an attested node's memory"):
        algorithm.init(KEY, PARAMS)
    with pytest.raises(ValueError, match="largest must be said"):
        jax.jit(lambda k: vi.verified_inference(apply, vi.nodes(np.zeros(N, int)), committee=k))(3)
