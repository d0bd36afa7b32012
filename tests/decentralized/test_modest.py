import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tasks import assert_trees_close, assert_trees_equal, half_square, quadratics

import dflax as dx
from dflax import participation
from dflax.decentralized import Probe, md5_ranks, modest, probe
from dflax.decentralized.modest import views
from dflax.decentralized.modest.hash_sampling import first_arrivals
from dflax.decentralized.modest.partial_aggregation import elect
from dflax.decentralized.modest.traffic import traffic

KEY = jax.random.key(0)
N = 12
TASK = quadratics(clients=N)
START = jnp.array([1.0, -1.0, 0.5])


def algorithm(**options):
    options = {"clients": N, "sample": 4} | options
    return modest(half_square, optax.sgd(0.2), **options)


def advance(method, rounds, *given, table=None, steps=2):
    rule = None if table is None else participation.present(jnp.asarray(table))
    federation = TASK.federation(steps, participation=rule)
    state = method.init(KEY, START, *given)
    rollout = jax.jit(functools.partial(dx.rollout, method, rounds=rounds))
    return rollout(state, federation, KEY)


def test_orders_are_those_of_md5():
    ranks = np.asarray(md5_ranks(10, 3, first=1))
    known = ([6, 5, 4, 2, 8, 7, 9, 0, 3, 1], [6, 8, 4, 2, 9, 7, 1, 3, 5, 0])
    known = (*known, [5, 1, 4, 0, 3, 9, 2, 7, 8, 6])
    for row, order in zip(ranks, known, strict=True):
        np.testing.assert_array_equal(np.argsort(row), order)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**31 - 1))
def test_a_probe_is_the_shortest_prefix_with_enough_live_nodes(seed):
    generator = np.random.default_rng(seed)
    keys = generator.permutation(N)
    inside, live = generator.random((2, N)) < 0.6
    found = COMPILED(jnp.asarray(keys), jnp.asarray(inside), jnp.asarray(live))
    order = [i for i in np.argsort(keys) if inside[i]]
    chosen, failed = [], 0
    for node in order:
        if len(chosen) == 4:
            break
        chosen, failed = ([*chosen, node], failed) if live[node] else (chosen, failed + 1)
    # Waves: all outstanding pings time out together.
    end, waves = 4, 0
    missing = sum(not live[i] for i in order[:4])
    while missing:
        missing, end = sum(not live[i] for i in order[end : end + missing]), end + missing
        waves += 1
    np.testing.assert_array_equal(found.chosen, chosen + [N] * (4 - len(chosen)))
    assert (int(found.failed), int(found.waves)) == (failed, waves)


COMPILED = jax.jit(functools.partial(probe, wanted=4))


def test_failed_pings_follow_the_negative_hypergeometric_law():
    online = jnp.arange(100) < 20
    keys = jax.vmap(lambda key: jax.random.permutation(key, 100))(jax.random.split(KEY, 4000))
    found = jax.jit(jax.vmap(lambda k: probe(k, jnp.ones(100, bool), online, 10)))(keys)
    assert float(found.failed.mean()) == pytest.approx(10 * 80 / 21, abs=0.6)
    assert float(found.waves.mean()) == pytest.approx(12, abs=1.5)


def test_removing_a_node_changes_a_sample_by_at_most_one():
    everyone = jnp.ones(N, bool)
    for row in md5_ranks(N, 5):
        before = set(np.asarray(COMPILED(row, everyone, everyone).chosen).tolist())
        for gone in range(N):
            after = COMPILED(row, np.arange(N) != gone, everyone)
            assert len(before - set(np.asarray(after.chosen).tolist())) == int(gone in before)


def random_views(seed):
    generator = np.random.default_rng(seed)
    joined = generator.random((1, N)) < 0.5
    return views.Views(
        jnp.asarray(generator.integers(-1, 9, (1, N)), jnp.int32),
        jnp.asarray(generator.integers(0, 3, (1, N)), jnp.int32),
        jnp.asarray(joined),
        jnp.zeros((1, N), bool),
    )


def test_merging_views_is_commutative_associative_and_idempotent():
    for seed in range(20):
        a, b, c = (random_views(3 * seed + k) for k in range(3))
        assert_trees_equal(views.merge(a, b), views.merge(b, a))
        assert_trees_equal(views.merge(views.merge(a, b), c), views.merge(a, views.merge(b, c)))
        assert_trees_equal(views.merge(a, a), a)
        stack = jax.tree.map(lambda *leaves: jnp.concatenate(leaves), a, b, c)
        whole = views.merge(views.merge(a, b), c)
        assert_trees_equal(
            views.merge_rows(stack, jnp.ones(3, bool)), jax.tree.map(lambda leaf: leaf[0], whole)
        )


def test_the_first_arrivals_are_averaged():
    models, when = jnp.array([1.0, 3.0, 8.0]), jnp.array([0.1, 0.2, 0.3])
    inside = first_arrivals(when, jnp.ones(3, bool), jnp.int32(2))
    assert float(dx.weighted_mean(models, inside.astype(jnp.float32))) == 2.0


def fedavg_on(sampled, rounds, steps=2):
    """FedAvg of the same samples, clients counted alike."""
    cohorts = jnp.asarray(sampled)

    def rule(key, index, clients):
        return participation.Cohort(cohorts[index])

    federation = TASK.federation(steps, participation=rule)
    method = dx.server.fedavg(half_square, optax.sgd(0.2))
    rollout = jax.jit(functools.partial(dx.rollout, method, rounds=rounds))
    return rollout(method.init(KEY, START), federation, KEY)[0]


@pytest.mark.some(1)
@pytest.mark.parametrize("idealised", [True, False])
@pytest.mark.parametrize("aggregators", [1, 2])
def test_with_everyone_there_it_is_fedavg(idealised, aggregators):
    state, metrics = advance(algorithm(idealised=idealised, aggregators=aggregators), 40)
    averaged = fedavg_on(metrics["sampled"], 40)
    assert_trees_close(state.server.params, averaged.server.params, rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(metrics["models"], 4)
    np.testing.assert_array_equal(metrics["disagreements"], 0)
    np.testing.assert_array_equal(metrics["failed_pings"], 0)
    # 2 a s models, less what a node would send itself: aggregators are the next sample's first.
    sampled = np.asarray(metrics["sampled"])
    for t in range(1, 39):
        senders, heads = sampled[t], sampled[t + 1][:aggregators]
        local = aggregators + np.isin(senders, heads).sum()
        assert int(metrics["models_sent"][t]) == 2 * aggregators * 4 - local


@pytest.mark.slow
def test_messages_and_bytes_are_counted_by_kind():
    table = np.random.default_rng(3).random((60, N)) < 0.7
    _, metrics = advance(algorithm(aggregators=2), 60, table=table)
    found = {k: np.asarray(metrics[k]) for k in metrics}
    # Nobody dies within a round: who answers a ping is sent the model, and the other way round.
    np.testing.assert_array_equal(found["answers"], found["models_sent"])
    unanswered = found["pings"] - found["answers"] - found["failed_pings_upward"]
    one, both = found["failed_pings"], 2 * found["failed_pings"]
    assert ((unanswered == one) | (unanswered == both) | (found["models_sent"] == 0)).all()
    assert (unanswered[one > 0] == both[one > 0]).any()
    np.testing.assert_array_equal(found["model_bytes"], 12 * found["models_sent"])
    np.testing.assert_array_equal(found["view_bytes"], 9 * N * found["models_sent"])
    np.testing.assert_array_equal(found["ping_bytes"], 8 * (found["pings"] + found["answers"]))
    # A holder, two on line and one off line; three trainers of two aggregators, one of them itself.
    invited = Probe(jnp.array([5, 2, 7]), jnp.ones(3, bool), jnp.int32(1), jnp.int32(1))
    chosen = jnp.array([[2, 4], [2, 4], [2, N]])
    found = Probe(chosen, chosen < N, jnp.array([0, 1, 3]), jnp.zeros(3, jnp.int32))
    trains = jnp.array([True, True, False])
    election = elect(jnp.where(trains[:, None], chosen, N), jnp.arange(N))
    counts = traffic(
        *(jnp.array([5, N]), jnp.array([True, False]), invited, found, trains, election),
        *(jnp.int32(3),),
        size=100.0,
        entries=N,
    )
    np.testing.assert_array_equal(election.chosen, [2, 4])
    expected = {"answers": 2 + 3, "pings": 2 + 1 + 3 + 1, "models_sent": 5, "adverts": 3}
    assert {k: int(counts[k]) for k in expected} == expected
    assert float(counts["view_bytes"]) == 5 * 9 * N + 3 * 13


def test_those_whom_most_name_aggregate():
    named = jnp.array([[3, 5], [5, 1], [3, 6], [6, 6]])
    found = elect(named, jnp.array([5, 3, 1, 0, 2, 4]))
    np.testing.assert_array_equal(found.chosen, [5, 3])
    np.testing.assert_array_equal(
        found.heard, [[True, True], [True, False], [False, True], [False, False]]
    )
    nobody = elect(jnp.full((2, 2), 6), jnp.arange(6))
    np.testing.assert_array_equal(nobody.chosen, [6, 6])
    assert not nobody.heard.any()


@pytest.mark.slow
def test_views_and_true_membership_give_the_same_samples_and_md5_ones_are_known():
    ranks = md5_ranks(N, 41)
    _, ideal = advance(algorithm(idealised=True, ranks=ranks), 30)
    _, viewed = advance(algorithm(ranks=ranks), 30)
    np.testing.assert_array_equal(ideal["sampled"], viewed["sampled"])
    np.testing.assert_array_equal(ideal["sampled"], np.argsort(ranks, axis=1)[1:31, :4])


def test_full_participation_is_parallel_sgd():
    state, _ = advance(algorithm(sample=N), 5, steps=1)
    x = np.asarray(START, np.float64)
    for _ in range(5):
        x = x - 0.2 * (x - TASK.centers.mean(0))
    np.testing.assert_allclose(state.server.params, x, rtol=1e-5, atol=1e-6)


def test_everyone_is_sampled_equally_often():
    _, metrics = advance(algorithm(idealised=True), 1500, steps=1)
    counts = np.bincount(np.asarray(metrics["sampled"]).reshape(-1), minlength=N)
    expected = 1500 * 4 / N
    # One chi-square over nodes, 11 degrees of freedom: 36 has probability 2e-4.
    assert np.square(counts - expected).sum() / expected < 36


@pytest.mark.slow
def test_ageing_forgets_the_dead_and_pings_find_them_before():
    table = np.ones((60, N), bool)
    table[10:, 6:] = False
    _, never = advance(algorithm(), 60, table=table)
    _, ages = advance(algorithm(inactivity=15), 60, table=table)
    np.testing.assert_array_equal(ages["failed_pings"][27:], 0)
    assert float(never["failed_pings"][30:].mean()) == pytest.approx(4 * 6 / 7, abs=1.5)
    for metrics in (never, ages):
        np.testing.assert_array_equal(metrics["lost"], 0)
        # Ageing drops live nodes as well: a sample may then stay short, which shows as node N.
        late = np.asarray(metrics["sampled"])[10:]
        assert ((late < 6) | (late == N)).all()
    assert (np.asarray(never["sampled"])[10:] < 6).all()


@pytest.mark.slow
def test_too_few_models_wait_for_the_timeout_or_lose_the_round():
    table = np.ones((8, N), bool)
    table[2:, 3:] = False
    waits, seen = advance(algorithm(idealised=True), 8, table=table)
    np.testing.assert_array_equal(seen["models"][2:], 3)
    np.testing.assert_array_equal(seen["lost"], 0)
    assert float(seen["seconds"][5]) >= 300.0
    stalls, lost = advance(algorithm(idealised=True, aggregation_timeout=None), 8, table=table)
    np.testing.assert_array_equal(lost["lost"], [0, 0] + [1] * 6)
    _, enough = advance(
        algorithm(idealised=True, aggregation_timeout=None, success_fraction=0.75), 8, table=table
    )
    np.testing.assert_array_equal(enough["lost"], 0)
    # A lost round leaves the model as it was.
    two, _ = advance(algorithm(idealised=True, aggregation_timeout=None), 2, table=table)
    assert_trees_equal(stalls.server.params, two.server.params)
    assert np.isfinite(np.asarray(waits.server.params)).all()


def test_the_first_holder_is_somebody_on_line():
    ranks = md5_ranks(N, 3)
    for lone in range(N):
        state = algorithm(ranks=ranks).init(KEY, START, present=jnp.arange(N) == lone)
        assert int(state.server.holders[0]) == lone
        assert bool(state.clients.views.joined.all())


@pytest.mark.slow
def test_deaths_within_rounds_and_partial_aggregation():
    patient, metrics = advance(algorithm(death=0.2, success_fraction=0.5), 60)
    assert float(metrics["lost"].mean()) < 0.1
    assert np.asarray(metrics["models"])[np.asarray(metrics["lost"]) == 0].min() >= 2
    _, strict = advance(algorithm(death=0.2, aggregation_timeout=None), 60)
    assert float(strict["lost"].mean()) > 0.3
    mean = TASK.centers.mean(0)
    assert np.abs(np.asarray(patient.server.params) - mean).max() < 1.0


def test_joins_spread_with_the_models_and_departures_at_once():
    arrivals = jnp.where(jnp.arange(N) == 7, 5, 0)
    departures = jnp.where(jnp.arange(N) == 2, 30, 1 << 30)
    state, metrics = advance(algorithm(), 60, arrivals, departures)
    sampled = np.asarray(metrics["sampled"])
    assert not (sampled[:4] == 7).any()
    assert (sampled[4:] == 7).any()
    assert not (sampled[29:] == 2).any()
    assert (sampled[:29] == 2).any()
    assert float(metrics["view_errors"][-1]) == 0.0
    assert np.asarray(state.clients.views.joined)[:, 7].sum() >= N - 1
    np.testing.assert_array_equal(metrics["lost"], 0)


@pytest.mark.slow
def test_a_network_takes_its_time_and_the_slow_come_too_late():
    ones = jnp.ones(N)
    network = dx.decentralized.Network(
        0.1 * jnp.ones((N, N)), ones.at[3].set(50.0), 1e3 * ones, 1e3 * ones
    )
    everyone = algorithm(sample=N, network=network, success_fraction=0.9)
    _, metrics = advance(everyone, 3)
    np.testing.assert_array_equal(metrics["models"], 10)
    # 2 steps of a second, 12 bytes down by a twelfth of the uplink, and up; two latencies.
    expected = 2.0 + 12 / (1e3 / N) + 12 / 1e3 + 0.2
    np.testing.assert_allclose(metrics["seconds"], expected, rtol=1e-5)


@pytest.mark.slow
def test_on_eight_devices_and_in_a_sweep_it_is_the_same():
    method = algorithm()
    plain, _ = advance(method, 6)
    with jax.set_mesh(dx.client_mesh()):
        dealt, _ = advance(method, 6)
    assert_trees_close(dealt.server.params, plain.server.params, rtol=1e-5, atol=1e-6)

    def final(death):
        own = algorithm(death=death)
        return dx.rollout(own, own.init(KEY, START), TASK.federation(2), KEY, 6)[0].server.params

    swept = jax.jit(jax.vmap(final))(jnp.array([0.0, 0.3]))
    np.testing.assert_allclose(swept[0], plain.server.params, rtol=1e-5, atol=1e-6)
    assert np.abs(np.asarray(swept[1] - swept[0])).max() > 1e-3


def test_bad_arguments_are_refused():
    with pytest.raises(ValueError, match=r"sample must be an integer in \[1, 12\], got 13"):
        algorithm(sample=13)
    with pytest.raises(ValueError, match=r"aggregators must be an integer in \[1, 4\], got 5"):
        algorithm(aggregators=5)
    with pytest.raises(ValueError, match="success_fraction must be a finite number in"):
        algorithm(success_fraction=0.0)
    with pytest.raises(ValueError, match="inactivity must be a finite number"):
        algorithm(inactivity=0)
    with pytest.raises(ValueError, match="death must be a finite number"):
        algorithm(death=1.5)
    with pytest.raises(
        ValueError, match=r"ranks must have shape \[T, 12\] with T >= 1, got \(3, 5\)"
    ):
        algorithm(ranks=md5_ranks(5, 3))
    with pytest.raises(TypeError, match=r"ranks must be of type .*not list"):
        algorithm(ranks=[[0, 1]])
    with pytest.raises(TypeError, match="ranks must hold integers, got float32"):
        algorithm(ranks=jnp.ones((2, N)))
    for empty in (jnp.zeros(0), jnp.zeros((1, 1))):
        with pytest.raises(ValueError, match="aggregation_timeout must be a single real number"):
            algorithm(aggregation_timeout=empty)
    with pytest.raises(TypeError, match="channel must be of type Channel"):
        algorithm(channel=3)
    with pytest.raises(TypeError, match="network must be of type Network"):
        algorithm(network=3)
    with pytest.raises(ValueError, match="nodes must hold at least one id"):
        md5_ranks([], 3)
    with pytest.raises(TypeError, match=r"nodes\[1\] must be of type bytes"):
        md5_ranks([b"0", "1"], 3)
    method = modest(half_square, optax.sgd(0.1), clients=5, sample=2)
    with pytest.raises(ValueError, match="clients must be the federation's 12 clients"):
        method.step(method.init(KEY, START), TASK.federation().draw(KEY, 0))
    with pytest.raises(ValueError, match="table must have shape"):
        participation.present(jnp.ones(3))
