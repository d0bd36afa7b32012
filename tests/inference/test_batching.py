"""Continuous batching from event to event beside a walk through every iteration."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from inference.every_iteration import walk

import dflax as dx
from dflax import inference
from dflax.inference import batching
from dflax.inference.costs import Costs

KEY = jax.random.key(0)
PREFILL, DECODE, LARGE = (0.012, 4e-5, 5e-10), (0.010, 2e-7, 3e-5), (0.008, 1e-7, 1e-3)
COSTS = inference.affine_costs(PREFILL, DECODE, large_decode=LARGE, large=6)
N, SLOTS = 150, 8
POLICIES = {
    "prefill first": batching.prefill_first(tokens=1500, requests=3),
    "chunked": batching.chunked_prefill(tokens=120),
    "decode only": batching.decode_only(requests=16),
}
TOKENS = {"prefill first": 1500, "chunked": 120, "decode only": np.inf}
MOST = {"prefill first": 3, "chunked": 16, "decode only": 16}


def plain_costs():
    """The same costs in Python's own numbers."""
    a, b, c = PREFILL

    def decode(batch, context):
        u, v, w = DECODE if batch < 6 else LARGE
        return u + v * context + w * batch

    return Costs(lambda tokens, squares: a + b * tokens + c * squares, decode)


def requests(seed, rate=6.0, n=N):
    draw = np.random.default_rng(seed)
    prompt = np.clip(draw.lognormal(5.5, 0.8, n), 1, 3000).astype(int)
    # Times that float32 holds, and answers of one token among the others.
    times = np.cumsum(draw.exponential(1 / rate, n)).astype(np.float32)
    return inference.trace(
        times,
        prompt,
        np.clip(draw.lognormal(3.5, 1.0, n), 1, 400).astype(int),
        prefix=draw.integers(0, 4, n),
        shared=prompt // 3,
    )


def one_replica(policy, memory=None, reuse=0.0, drain=True):
    return batching.replica(
        COSTS, slots=SLOTS, batching=POLICIES[policy], memory=memory, reuse=reuse, drain=drain
    )


@functools.cache
def serve(policy, memory=None, reuse=0.0):
    """Served times of a block."""
    replica = one_replica(policy, memory, reuse)
    own = slice(SLOTS, None)
    return jax.jit(
        lambda known: jax.tree.map(
            lambda column: column[own], replica.serve(replica.init(), known)[1].served
        )
    )


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize(("memory", "reuse", "rate"), [(None, 0.0, 6.0), (1500.0, 0.5, 40.0)])
def test_events_are_a_walk_through_every_iteration(policy, memory, reuse, rate):
    """To float64's accuracy: admission, budgets, memory in blocks, reuse, loads above capacity."""
    known = requests(1, rate)
    first, last = walk(
        plain_costs(),
        known,
        slots=SLOTS,
        policy=policy,
        tokens=TOKENS[policy],
        memory=memory or np.inf,
        reuse=reuse,
        most=MOST[policy],
    )
    with jax.enable_x64(True):
        found = serve(policy, memory, reuse)(jax.tree.map(jnp.asarray, known))
        assert found.first.dtype == jnp.float64
    np.testing.assert_allclose(found.first, first, rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(found.last, last, rtol=1e-9, atol=1e-9)
    if memory is not None:
        assert not np.isfinite(last).all()


def test_a_table_by_hand():
    """Two slots, prompts of 10 and 20 tokens: 1 s a prompt token, 10 s an iteration, 1 s a context."""
    costs = inference.affine_costs((0.0, 1.0, 0.0), (10.0, 1.0, 0.0))
    known = inference.trace([0.0, 5.0, 6.0], [10, 20, 10], [3, 1, 2])
    replica = batching.replica(costs, slots=2)
    _, block = jax.jit(replica.serve)(
        replica.init(), known._replace(arrived=jnp.float32([0, 5, 6]))
    )
    # Prompt 0 ends at 10; both others are admitted together, as one slot is left: only the first is.
    # It ends at 30 with its one token. Prompt 2 follows, 40. Iterations: 10 + (11 + 11), then the first
    # has 12 tokens and the second has ended: 10 + 12.
    np.testing.assert_allclose(block.served.first[2:], [10.0, 30.0, 40.0])
    np.testing.assert_allclose(block.served.last[2:], [94.0, 30.0, 72.0])
    np.testing.assert_allclose(block.mean_batch, 1.5)


def test_blocks_that_carry_on_are_one_long_block():
    """Requests that decode across the end of a block end when they would have, and count once."""
    known = requests(3, 8.0, 160)
    _, whole_last = walk(
        plain_costs(), known, slots=SLOTS, policy="chunked", tokens=TOKENS["chunked"]
    )
    cut = inference.blocks(known, 40)
    replica = one_replica("chunked", drain=False)
    serve_block = jax.jit(replica.serve)
    state, begins, found, counted = replica.init(), float(known.arrived[0]), [], 0
    for number in range(4):
        block = jax.tree.map(lambda column, number=number: jnp.asarray(column[number]), cut)
        state, done = serve_block(state, block)
        mine = np.asarray(done.counted)
        counted += mine.sum()
        latency = inference.latency(done.requests, done.served)
        found += np.asarray(latency.total)[mine].tolist()
        begins += float(block.arrived[-1])
        assert bool(done.finished)
    running = int((state.finish < 2**31 - 1).sum())
    assert counted + running == 160
    assert running > 0
    expected = np.sort(whole_last - known.arrived)
    # Those who still decode are the last to end.
    late = np.argsort(whole_last)[-running:]
    expected = np.sort(np.delete(whole_last - known.arrived, late))
    np.testing.assert_allclose(np.sort(found), expected, atol=2e-3)


def algorithm(memory=None, policy="prefill first"):
    return batching.continuous_batching(
        batching.replica(COSTS, slots=SLOTS, batching=POLICIES[policy], memory=memory),
        promised=inference.levels(ttft=0.5),
    )


CHAT = inference.scenario(
    inference.log_normal(5.5, 0.5, high=600), inference.log_normal(3.5, 0.6, high=200)
)
SOURCE = inference.traffic(inference.poisson(1.0), CHAT, 400)


@functools.cache
def swept():
    """Rates from idle to twice the capacity, by memories, two seeds: one program."""
    return dx.sweep(
        lambda rate, memory: inference.at_rate(algorithm(memory), rate),
        lambda algorithm, key: algorithm.init(key),
        SOURCE,
        grid={"rate": [0.5, 4.0, 60.0], "memory": [900.0, 1e6]},
        key=KEY,
        rounds=1,
        seeds=2,
    )


@pytest.mark.slow
def test_a_sweep_over_rates_and_memories_is_each_run_alone():
    own = inference.at_rate(algorithm(900.0), 4.0)
    key = jax.random.fold_in(KEY, 1)
    _, metrics = jax.jit(own.step)(own.init(key), SOURCE.draw(key, 0))
    for name, value in metrics.items():
        found = np.asarray(swept().metrics[name])[1, 0, 1, 0]
        np.testing.assert_allclose(found, value, rtol=1e-5, err_msg=name)


def test_above_capacity_it_runs_and_says_that_the_queue_grows():
    metrics = {name: np.asarray(value)[..., 0] for name, value in swept().metrics.items()}
    assert metrics["finished"].all()
    np.testing.assert_array_equal(metrics["served"], 1.0)
    np.testing.assert_array_equal(
        metrics["unbounded"][:, 1], [[False] * 2, [False] * 2, [True] * 2]
    )
    # More memory is never worse for the queue, and a full replica decodes with full slots.
    assert (metrics["ttft_p99"][:, 0] >= metrics["ttft_p99"][:, 1] - 1e-6).all()
    assert (metrics["mean_batch"][2, 1] > 0.9 * SLOTS).all()
    assert (metrics["mean_batch"][0] < 2).all()
    # Who waits longer is not within what is promised.
    assert (metrics["success"][2] < 0.2).all()
    assert (metrics["success"][0] > 0.95).all()


@pytest.mark.slow
def test_sharded_replicas_are_those_of_one_device():
    """Eight replicas, a block each, on eight devices."""
    run = jax.vmap(
        lambda key: algorithm().step(algorithm().init(key), SOURCE.draw(key, 0))[1]["total_p95"]
    )
    keys = jax.random.split(KEY, 8)
    mesh = jax.make_mesh((8,), ("clients",), axis_types=(jax.sharding.AxisType.Auto,))
    rows = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("clients"))
    spread = jax.jit(run, in_shardings=rows, out_shardings=rows)(keys)
    assert len(spread.sharding.device_set) == 8
    np.testing.assert_allclose(spread, jax.jit(run)(keys), rtol=1e-5)


def test_requests_that_never_fit_are_refused_and_counted():
    known = inference.trace([0.0, 1.0, 2.0], [10, 5000, 10], [3, 3, 3])
    replica = one_replica("prefill first", 1000.0)
    system = batching.continuous_batching(replica)
    known = known._replace(arrived=known.arrived.astype(np.float32))
    _, metrics = jax.jit(system.step)(system.init(KEY), (known, KEY))
    assert int(metrics["refused"]) == 1
    np.testing.assert_allclose(metrics["served"], 2 / 3)
    assert not np.isfinite(metrics["ttft_p99"])


def test_what_does_not_fit_is_refused():
    with pytest.raises(ValueError, match=r"tokens must be more than the 8 slots, got 8"):
        batching.replica(COSTS, slots=8, batching=batching.chunked_prefill(tokens=8))
    with pytest.raises(ValueError, match="slots"):
        batching.replica(COSTS, slots=0)
    with pytest.raises(ValueError, match="memory"):
        batching.replica(COSTS, slots=2, memory=-1.0)
