"""Stations against queues that are known: Lindley, Erlang, hand-made tables."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import dflax as dx
from dflax import inference as inf

KEY = jax.random.key(5)
OWN = inf.fixed_work(lambda row: row)


def served(policy, arrived, durations, **options):
    place = inf.station(policy, OWN, **options)
    return place.serve(place.init(), jnp.asarray(arrived), jnp.asarray(durations), KEY)[1]


def test_one_slot_is_lindleys_queue():
    rng = np.random.default_rng(0)
    arrived, durations = np.cumsum(rng.exponential(1.0, 500)), rng.exponential(0.9, 500)
    found = jax.jit(lambda a, d: served(inf.first_free(), a, d, instances=1))(
        arrived.astype(np.float32), durations.astype(np.float32)
    )
    free, starts = 0.0, []
    for a, d in zip(arrived, durations, strict=True):
        starts.append(max(a, free))
        free = starts[-1] + d
    np.testing.assert_allclose(found.start, starts, rtol=1e-5)


@jax.jit
def waits(key, load):
    n, c = 20_000, 8
    coming, lasting, rest = jax.random.split(key, 3)
    arrived = inf.poisson(c * load)(coming, n)
    durations = jax.random.exponential(lasting, (n,))
    queue = inf.station(inf.first_free(), OWN, instances=c)
    loss = inf.station(inf.first_free(), OWN, instances=c, stays=lambda wait, d: wait <= 0.0)
    wait = queue.serve(queue.init(), arrived, durations, rest)[1].start - arrived
    return wait.mean(), 1.0 - loss.serve(loss.init(), arrived, durations, rest)[1].served.mean()


def test_waiting_and_loss_are_erlangs():
    found = np.mean(jax.vmap(waits, (0, None))(jax.random.split(KEY, 8), 0.8), axis=1)
    # c = 8, mu = 1, load .8: Erlang C / (c mu - lambda), and Erlang B.
    np.testing.assert_allclose(found, [0.2860, 0.1444], rtol=0.05)


def test_a_loss_and_a_queue_of_infinite_patience_differ_in_who_leaves():
    stay = served(inf.first_free(), [0.0, 0.1, 0.2], [1.0, 1.0, 1.0], instances=1)
    leave = served(
        inf.first_free(), [0.0, 0.1, 0.2], [1.0, 1.0, 1.0], instances=1, stays=lambda w, d: w < 0.85
    )
    np.testing.assert_allclose(stay.start, [0.0, 1.0, 2.0])
    np.testing.assert_array_equal(leave.served, [True, False, True])
    np.testing.assert_allclose(leave.start[2], 1.0)


def test_policies_choose_as_their_names_say():
    times, lasts = jnp.arange(6) * 0.1, jnp.array([5.0, 1.0, 3.0, 1.0, 1.0, 1.0])
    turn = served(inf.round_robin(), times, lasts, instances=3)
    np.testing.assert_array_equal(turn.instance, [0, 1, 2, 0, 1, 2])
    partly = served(inf.round_robin(), times, lasts, instances=3, on=2)
    np.testing.assert_array_equal(partly.instance, [0, 1, 0, 1, 0, 1])
    least = served(inf.least_work(), times, lasts, instances=2, slots=2)
    np.testing.assert_array_equal(least.instance, [0, 1, 1, 1, 1, 0])
    drawn = served(inf.at_random(), jnp.zeros(3_000), jnp.zeros(3_000), instances=3, on=2)
    shares = np.bincount(drawn.instance, minlength=3) / 3_000
    np.testing.assert_allclose(shares, [0.5, 0.5, 0.0], atol=0.03)


def test_blocks_in_turn_are_one_long_queue():
    rng = np.random.default_rng(1)
    arrived = np.cumsum(rng.exponential(1.0, 200)).astype(np.float32)
    durations = rng.exponential(1.8, 200).astype(np.float32)
    place = inf.station(inf.round_robin(), OWN, instances=2)
    whole = place.serve(place.init(), arrived, durations, KEY)[1]
    state, starts, begun = place.init(), [], 0.0
    for part in np.split(np.arange(200), 4):
        state, found = place.serve(state, arrived[part] - begun, durations[part], KEY)
        starts.append(found.start + begun)
        state = place.later(state, arrived[part][-1] - begun)
        begun = arrived[part][-1]
    np.testing.assert_allclose(np.concatenate(starts), whole.start, rtol=1e-4)


def test_sorted_rows_come_back_in_their_own_order():
    times = jnp.array([3.0, 1.0, jnp.inf, 2.0])
    kept, found = inf.sorted_by(times, lambda t, rows: (t, rows * 10))
    np.testing.assert_array_equal(kept, [1.0, 2.0, 3.0, np.inf])
    np.testing.assert_array_equal(found, [0, 10, 20, 30])


def test_a_cache_keeps_what_was_used_last():
    cache = inf.prefix_cache(2, 3)
    for prefix in (0, 1, 0, 2):
        cache = inf.kept(cache, 1, prefix, 40, capacity=100)
    np.testing.assert_array_equal(cache.tokens, [[0, 0, 0], [40, 0, 40]])
    np.testing.assert_array_equal(inf.hits(cache, 0, 64), [0, 40])
    np.testing.assert_array_equal(inf.hits(cache, 0, 64, block=16), [0, 32])
    np.testing.assert_array_equal(inf.hits(cache, -1, 64), [0, 0])
    untouched = inf.kept(cache, 1, 1, 101, capacity=100)
    np.testing.assert_array_equal(untouched.tokens, cache.tokens)


def test_costs_are_their_formulas():
    costs = inf.opt_13b_costs(4)
    np.testing.assert_allclose(
        costs.prefill(1000.0, 1e6), 1e-3 * (12.0623 + 38.0814 + 0.52262), rtol=1e-6
    )
    small = 1e-3 * (10.2562 + 1.8787e-4 * 5e4 + 0.032693 * 94)
    large = 1e-3 * (10.4835 + 1.7121e-4 * 5e4 + 0.045667 * 95)
    np.testing.assert_allclose(
        costs.decode(jnp.array([94.0, 95.0]), 5e4), [small, large], rtol=1e-6
    )
    chip = inf.accelerator(
        1e12,
        1e11,
        1e10,
        price=2.0,
        idle_watts=10.0,
        peak_watts=50.0,
        compute_efficiency=0.5,
        memory_efficiency=1.0,
    )
    model = inf.network(1e9, 1e5, layers=10, width=100)
    roofline = inf.roofline_costs(model, chip)
    np.testing.assert_allclose(roofline.prefill(1000.0, 1e6), 2e12 / 5e11 + 2e9 / 5e11)
    np.testing.assert_allclose(roofline.prefill(1.0, 0.0), 0.02)
    np.testing.assert_allclose(roofline.decode(1.0, 1e4), 0.02 + 0.01)
    np.testing.assert_allclose(roofline.decode(10.0, 0.0), 0.04)
    np.testing.assert_allclose(inf.cache_tokens(model, chip), 8e4)
    cost = inf.spent(chip, 900.0, 3600.0)
    np.testing.assert_allclose([cost.joules, cost.dollars], [20.0 * 3600.0, 2.0])


def test_service_counts_those_who_were_never_served():
    requests = inf.trace([0.0, 1.0, 2.0, 3.0], [9, 9, 9, 9], [1, 3, 3, 3])
    inf_ = np.inf
    served_ = inf.Served(jnp.array([0.5, 1.5, 2.2, inf_]), jnp.array([0.5, 2.5, 6.2, inf_]))
    latencies = inf.latency(requests, served_)
    np.testing.assert_allclose(latencies.tpot, [0.0, 0.5, 2.0, inf_])
    found = inf.service(requests, served_, inf.levels(ttft=0.5, tpot=1.0))
    np.testing.assert_allclose(found["success"], 0.5)
    np.testing.assert_allclose(found["served"], 0.75)
    np.testing.assert_allclose(found["goodput"], 2 / 6.2, rtol=1e-6)
    np.testing.assert_allclose(found["token_throughput"], 7 / 6.2, rtol=1e-6)
    np.testing.assert_allclose([found["ttft_p50"], found["ttft_p99"]], [0.5, inf_])
    some = inf.service(
        requests, served_, inf.levels(), counted=jnp.array([True, True, True, False])
    )
    np.testing.assert_allclose([some["success"], some["ttft_p99"]], [1.0, 0.5])
    np.testing.assert_allclose(inf.quantile(jnp.arange(1.0, 101.0), 99), 99.0)


def test_a_queue_is_a_step_of_a_sweep():
    source = inf.traffic(inf.poisson(1.0), inf.scenario(inf.constant(8), inf.constant(2)), 64)

    def queue(rate, duration):
        place = inf.station(inf.first_free(), inf.fixed_work(lambda row: duration), instances=2)

        def step(state, round):
            requests, key = round
            state, found = place.serve(state, requests.arrived, requests.prompt, key)
            return place.later(state, requests.arrived[-1]), {
                "wait": jnp.mean(found.start - requests.arrived)
            }

        return inf.at_rate(dx.Algorithm(lambda key, params: place.init(), step), rate)

    swept = dx.sweep(
        queue,
        lambda algorithm, key: algorithm.init(key, ()),
        source,
        grid={"rate": [0.1, 1.0, 3.0], "duration": [1.0]},
        key=KEY,
        rounds=3,
        progress=False,
    )
    waits = swept.metrics["wait"][:, 0, 0].mean(-1)
    assert (np.diff(waits) > 0).all()


def test_wrong_stations_are_refused():
    with pytest.raises(ValueError, match="on must be"):
        inf.station(inf.first_free(), OWN, instances=2, on=3)
    with pytest.raises(ValueError, match="instances must be"):
        inf.station(inf.first_free(), OWN, instances=0)
