"""Peers and those who go where the cache is: queues by hand, reductions, blocks, sweeps, fluids."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import dflax as dx
from dflax import inference as inf
from dflax.inference import supernode as sn

KEY = jax.random.key(7)
COSTS = inf.affine_costs((0.0, 1e-3, 0.0), (0.01, 0.0, 0.0))
PLAIN = {"costs": COSTS, "guesses": sn.speculation(on=False, slowdown=1.0), "block": 1}
SMALL = {**PLAIN, "prefill_npus": 1, "decode_npus": 1, "batch": 8}


def table(arrived, prefix, shared, prompt=100, output=3):
    n = len(arrived)
    made = inf.trace(
        arrived, np.full(n, prompt), np.full(n, output), prefix=prefix, shared=np.full(n, shared)
    )
    return jax.tree.map(jnp.asarray, made)._replace(arrived=jnp.asarray(arrived, jnp.float32))


def run(algorithm, requests):
    return jax.jit(algorithm.step)(algorithm.init(KEY, ()), (requests, KEY))


def test_one_instance_is_lindleys_queue():
    arrived = np.arange(1, 21) * 0.08
    place = sn.deployment(1, prefill=1, position_bytes=0.0, **SMALL)
    requests = table(arrived, np.full(20, -1), 0)
    _, metrics = run(sn.peer(place), requests)
    # Starts are i s from the first on, as service takes 0.1 s and requests come every 0.08 s.
    first = 0.08 + 0.1 * np.arange(1, 21)
    waits = np.sort(first - arrived)
    np.testing.assert_allclose(metrics["ttft_p50"], waits[9], rtol=1e-4)
    np.testing.assert_allclose(metrics["ttft_p99"], waits[-1], rtol=1e-4)
    np.testing.assert_allclose(metrics["tpot_p99"], 0.01, rtol=1e-2)
    # More work than time: the queue grows without bound, and the metrics say so.
    np.testing.assert_allclose(metrics["prefill_use"], 0.1 / 0.08, rtol=1e-4)


@pytest.mark.parametrize(
    ("make", "wanted", "reused"),
    [
        # Two instances, the same prefix of 80 in all: a pool has it from the second request on.
        (sn.peer, [0.1, 0.06, 0.06, 0.06], 240),
        # The second goes where the prefix is not, as the other is busy, and fetches it: 100 - 80 / 4.
        (lambda d, near: sn.kv_centric(d, near=near, far=0.75), [0.1, 0.08, 0.06, 0.06], 240),
        (sn.local_only, [0.1, 0.1, 0.06, 0.06], 160),
    ],
)
def test_a_prefix_is_found_where_the_cache_is(make, wanted, reused):
    place = sn.deployment(1, prefill=2, capacity=100, position_bytes=0.0, **SMALL)
    requests = table([1.0, 1.001, 2.0, 2.001], np.zeros(4, int), 80)
    _, metrics = run(make(place, near=0.5), requests)
    np.testing.assert_allclose(metrics["reused"], reused / 400, rtol=1e-5)
    np.testing.assert_allclose(metrics["ttft_p99"], max(wanted), rtol=1e-3)
    np.testing.assert_allclose(metrics["prefill_rate"], 400 / sum(wanted), rtol=1e-3)


@pytest.mark.slow
def test_without_prefixes_all_of_them_are_one_queue():
    source = inf.traffic(inf.poisson(50.0), inf.scenario(inf.constant(100), inf.constant(4)), 100)
    requests, _ = jax.jit(source.draw)(KEY, 0)
    place = sn.deployment(4, **{**SMALL, "prefill": 6, "batch": 64})
    found = [run(make(place), requests)[1] for make in (sn.peer, sn.kv_centric, sn.local_only)]
    for name, value in found[0].items():
        for other in found[1:]:
            np.testing.assert_allclose(other[name], value, rtol=1e-5)
    assert float(found[0]["reused"]) == 0.0


def test_the_slowest_link_holds_up_the_second_token():
    place = sn.deployment(1, prefill=1, position_bytes=1e6, link=sn.plane(0.25, 1e9), **SMALL)
    requests = table([1.0], [-1], 0)
    _, metrics = run(sn.peer(place), requests)
    # 100 positions of 1 MB at 1 GB/s and the latency, then two tokens of 10 ms.
    np.testing.assert_allclose(metrics["total_p50"], 0.1 + 0.35 + 0.02, rtol=1e-4)
    np.testing.assert_allclose(metrics["ttft_p50"], 0.1, rtol=1e-4)


def test_two_blocks_are_one():
    rng = np.random.default_rng(2)
    arrived = np.cumsum(rng.exponential(0.05, 40))
    prefix = rng.integers(0, 5, 40)
    place = sn.deployment(5, prefill=3, capacity=200, position_bytes=0.0, **SMALL)
    algorithm = sn.kv_centric(place)
    step = jax.jit(algorithm.step)
    whole = table(arrived, prefix, 80)
    state, one = step(algorithm.init(KEY, ()), (whole, KEY))
    cut = inf.blocks(whole, 20)
    begun, totals = algorithm.init(KEY, ()), []
    for part in range(2):
        begun, found = step(begun, (jax.tree.map(lambda leaf: jnp.asarray(leaf[part]), cut), KEY))  # noqa: B023
        totals.append(float(found["reused"]))
    np.testing.assert_allclose(np.mean(totals), one["reused"], rtol=1e-5)
    np.testing.assert_array_equal(begun.prefill.work.cache.tokens, state.prefill.work.cache.tokens)
    np.testing.assert_allclose(begun.prefill.free, state.prefill.free, atol=1e-4)


@pytest.mark.slow
def test_loads_and_ratios_are_a_sweep():
    scenario = inf.scenario(inf.constant(100), inf.constant(4), prefixes=8, reused=0.8)
    source = inf.traffic(inf.poisson(1.0), scenario, 64)
    place = sn.deployment(8, **{**SMALL, "prefill": 2, "capacity": 400})
    swept = dx.sweep(
        lambda rate, near: inf.at_rate(sn.peer(place, near=near), rate),
        lambda algorithm, key: algorithm.init(key, ()),
        source,
        grid={"rate": [5.0, 20.0], "near": [0.2, 0.9]},
        key=KEY,
        rounds=2,
        progress=False,
    )
    p99 = np.asarray(swept.metrics["ttft_p99"])[..., -1].reshape(2, 2)
    assert (np.diff(p99, axis=0) > 0).all()
    assert (np.diff(p99, axis=1) > 0).all()


def test_a_fluid_decodes_at_the_pace_of_its_load():
    costs = inf.affine_costs((0.0, 0.0, 0.0), (0.0, 0.0, 0.01))
    found = jax.jit(
        lambda ready, output: sn.fluid_decode(
            ready,
            np.full(3, 10),
            output,
            costs,
            PLAIN["guesses"],
            npus=1,
            slots=2,
            ticks=400,
            tick=1e-3,
        )
    )(np.array([0.0, 0.0, 0.05], np.float32), np.array([6, 11, 2]))
    # Two share until the first has its five tokens at 20 ms; the third takes its place; then alone.
    np.testing.assert_allclose(found, [0.1, 0.16, 0.12], atol=3e-3)


@pytest.mark.slow
def test_stations_and_fluid_agree_where_the_pace_is_even():
    arrived = np.arange(1, 201, dtype=np.float32) * 0.025
    requests = table(arrived, np.full(200, -1), 0, prompt=50, output=20)
    costs = inf.affine_costs((0.0, 1e-4, 0.0), (0.01, 0.0, 0.0004))
    given = {**SMALL, "costs": costs, "batch": 64, "position_bytes": 0.0}
    _, metrics = run(sn.peer(sn.deployment(1, **given)), requests)
    sizes = {"npus": 1, "slots": 64, "ticks": 1200, "tick": 5e-3}
    ready = requests.arrived + 50e-4
    last = jax.jit(
        lambda ready: sn.fluid_decode(
            ready, requests.prompt, requests.output, costs, PLAIN["guesses"], **sizes
        )
    )(ready)
    # 40 requests a second of 19 tokens: t = 10 ms + 0.4 ms 40 19 t.
    np.testing.assert_allclose(np.median(np.asarray(last - ready)) / 19, 0.01 / 0.696, rtol=0.03)
    np.testing.assert_allclose(metrics["tpot_p50"], 0.01 / 0.696, rtol=0.03)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "message"),
    [({"prefill": 0}, "prefill must be"), ({"capacity": 0}, "capacity must be")],
)
def test_wrong_deployments_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        sn.deployment(4, **arguments)
