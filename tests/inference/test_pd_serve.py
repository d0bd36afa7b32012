"""P/D-Serve as rounds: metrics against queues event by event, blocks, sweeps, devices, refusals."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from inference import queues

import dflax as dx
from dflax import inference as inf

KEY = jax.random.key(23)
RNG = np.random.default_rng(6)
N = 200
ARRIVED = np.cumsum(RNG.gamma(0.5, 2.0 / 20.0, N)).astype(np.float32).astype(float)
TAKES = RNG.uniform(0.05, 0.2, N).astype(np.float32).astype(float)
LASTS = RNG.uniform(0.1, 0.8, N).astype(np.float32).astype(float)
ROWS = inf.Requests(
    jnp.asarray(ARRIVED, jnp.float32),
    *(jnp.asarray(column, jnp.int32) for column in (RNG.integers(100, 900, N), np.arange(N))),
    *(jnp.asarray(column, jnp.int32) for column in (np.arange(N) % 2, -np.ones(N), np.zeros(N))),
)


# A row's number is its `output`: durations are looked up by it.
def prefill_of(row):
    return jnp.asarray(TAKES, jnp.float32)[row.output]


def answer_of(row):
    return jnp.asarray(LASTS, jnp.float32)[row.output]


WORK = inf.fixed_work(prefill_of)
SMALL = {"decode_slots": 4, "promised": inf.levels(ttft=0.4)}
SOURCE = inf.traffic(inf.poisson(1.0), [inf.scenario(inf.constant(40), inf.constant(9))] * 2, 128)


def step(algorithm, rows=ROWS):
    return jax.jit(lambda: algorithm.step(algorithm.init(KEY, ()), (rows, KEY)))()


def test_a_block_is_queues_event_by_event():
    transfer = inf.block_free(inf.link(), messages=40)
    state, found = step(inf.pd_serve(2, 2, WORK, answer_of, transfer=transfer, **SMALL))
    starts, served = queues.on_demand(ARRIVED, TAKES, 2, 0.4)
    sends = np.asarray(ROWS.prompt) * 40 * 20480 / 25e9 + 40 * 11.2e-6
    began = queues.decoded(np.where(served, starts + TAKES, np.inf), sends, LASTS, 8)
    ttft = np.sort(np.where(served, starts + TAKES - ARRIVED, np.inf))
    total = np.sort(began + LASTS - ARRIVED)
    assert 0.5 < served.mean() < 0.98
    wanted = {
        "success": served.mean(),
        "served": served.mean(),
        "timed_out": 1 - served.mean(),
        "ttft_p50": ttft[N // 2 - 1],
        "ttft_p99": np.inf,
        "total_p50": total[N // 2 - 1],
        "late": 0.0,
        "wasted_seconds": 0.0,
        "refusals": np.mean(starts > ARRIVED + 1e-5),
        "transfer_seconds": sends[served].mean(),
        "decode_wait": (began - sends - starts - TAKES)[served].mean(),
        "throughput": served.sum() / (began + LASTS)[served].max(),
        "per_instance": served.sum() / (began + LASTS)[served].max() / 4,
        "prefill_load": TAKES.sum() / (2 * ARRIVED[-1]),
        "decode_load": LASTS[served].sum() / (8 * ARRIVED[-1]),
    }
    for name, value in wanted.items():
        np.testing.assert_allclose(found[name], value, rtol=1e-3, atol=1e-5, err_msg=name)
    assert not found["overloaded"] or wanted["prefill_load"] >= 1
    # The clocks of the state count from the last arrival.
    np.testing.assert_allclose(
        np.max(state.prefill.free), np.max((starts + TAKES)[served]) - ARRIVED[-1], atol=1e-4
    )


def test_a_queue_at_an_instance_wastes_what_comes_late():
    forwarding = inf.local_queue(inf.round_robin())
    _, found = step(inf.pd_serve(2, 8, WORK, answer_of, forwarding=forwarding, **SMALL))
    _, starts, served = queues.local(ARRIVED, TAKES, 2, 0.4, lambda i, now, free: i % 2)
    late = served & (starts + TAKES - ARRIVED > 0.4)
    assert late.sum() > 3
    np.testing.assert_allclose(found["late"], late.mean(), atol=1e-6)
    np.testing.assert_allclose(found["wasted_seconds"], TAKES[late].sum(), rtol=1e-4)
    np.testing.assert_allclose(found["success"], (served & ~late).mean(), atol=1e-6)
    assert found["refusals"] == 0


@pytest.mark.slow
def test_holding_prefill_costs_where_decoding_is_short():
    freed, kept = (
        step(inf.pd_serve(2, 1, WORK, answer_of, hold_prefill=hold, **SMALL))[1]
        for hold in (False, True)
    )
    assert kept["success"] < freed["success"] - 0.2
    # What waits for decoding is then bounded by the slots of prefill.
    assert kept["decode_wait"] < freed["decode_wait"]


def test_offers_in_turn_are_counted():
    retry = inf.on_demand(retry=0.02, waiting=64)
    found = step(inf.pd_serve(2, 8, WORK, answer_of, forwarding=retry, **SMALL))[1]
    starts, served = queues.retried(ARRIVED, TAKES, 2, 0.4, 0.02)
    np.testing.assert_allclose(found["success"], served.mean(), atol=1e-6)
    rounds = np.round((starts - ARRIVED) / 0.02)
    np.testing.assert_allclose(found["refusals"], rounds.mean(), rtol=1e-3)


@pytest.mark.slow
def test_groups_serve_their_own_scenarios():
    groups = step(inf.pd_serve([2, 1], [1, 2], WORK, answer_of, **SMALL))[1]
    parts = []
    for scenario, (p, d) in enumerate([(2, 1), (1, 2)]):
        rows = jax.tree.map(lambda column, of=scenario: column[of::2], ROWS)
        parts.append(step(inf.pd_serve(p, d, WORK, answer_of, **SMALL), rows)[1])
    for name in ("success", "decode_wait"):
        share = [part["served"] if name == "decode_wait" else 1.0 for part in parts]
        mean = sum(w * part[name] for w, part in zip(share, parts, strict=True)) / sum(share)
        np.testing.assert_allclose(groups[name], mean, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_blocks_in_turn_are_one_long_block():
    # Decoding has room, so that the order of blocks does not matter.
    algorithm = inf.pd_serve(2, 40, WORK, answer_of, contended=True, **SMALL)
    whole = step(algorithm)[1]

    @jax.jit
    def blocks():
        cut = jax.tree.map(lambda column: jnp.stack(jnp.split(column, 4)), ROWS)
        begins = jnp.concatenate([jnp.zeros(1), cut.arrived[:-1, -1]])
        cut = cut._replace(arrived=cut.arrived - begins[:, None])
        state = algorithm.init(KEY, ())
        return jax.lax.scan(lambda state, rows: algorithm.step(state, (rows, KEY)), state, cut)[1]

    found = blocks()
    for name in ("success", "refusals", "timed_out"):
        np.testing.assert_allclose(found[name].mean(), whole[name], atol=1e-6)


@pytest.mark.slow
def test_requests_beyond_the_context_are_refused_and_counted():
    long = ROWS._replace(prompt=jnp.where(jnp.arange(N) % 4 == 0, 5_000, 10))
    options = {"context": 4_000, **SMALL}
    found = step(inf.pd_serve(2, 8, WORK, answer_of, **options), long)[1]
    np.testing.assert_allclose(found["too_long"], 0.25)
    kept = jax.tree.map(lambda column: column[jnp.arange(N) % 4 != 0], long)
    alone = step(inf.pd_serve(2, 8, WORK, answer_of, **options), kept)[1]
    np.testing.assert_allclose(found["success"], 0.75 * alone["success"], atol=1e-6)
    np.testing.assert_allclose(found["prefill_load"], alone["prefill_load"], rtol=1e-2)


def test_loads_beyond_what_slots_can_do_are_told():
    found = [
        step(inf.at_rate(inf.pd_serve(2, 1, WORK, answer_of, **SMALL), rate))[1]
        for rate in (0.05, 4.0)
    ]
    assert not found[0]["overloaded"]
    assert found[1]["overloaded"]
    assert found[1]["decode_load"] > 1


@pytest.mark.slow
def test_a_cache_of_its_own_saves_what_was_computed_before():
    costs = inf.affine_costs((0.0, 1e-3, 0.0), (0.01, 0.0, 0.0))
    rows = ROWS._replace(
        prompt=jnp.full((N,), 100), prefix=ROWS.scenario, shared=jnp.full((N,), 80)
    )
    work = inf.cached_work(costs, instances=1, prefixes=2, capacity=1_000)
    small = inf.cached_work(costs, instances=1, prefixes=2, capacity=100)
    loads = [
        float(
            step(inf.pd_serve(1, 8, one, answer_of, promised=inf.levels()), rows)[1]["prefill_load"]
        )
        * ARRIVED[-1]
        for one in (work, small)
    ]
    # Two prefixes are computed once; where one fits they drive each other out every time.
    np.testing.assert_allclose(loads, [0.02 * N + 0.16, 0.1 * N], rtol=1e-3)
    ideal = step(inf.pd_serve(1, 8, inf.prompt_work(costs), answer_of, **SMALL), rows)[1]
    np.testing.assert_allclose(ideal["prefill_load"] * ARRIVED[-1], 0.02 * N, rtol=1e-3)


def test_an_answer_takes_its_tokens_in_a_full_batch():
    costs = inf.opt_13b_costs(1)
    row = jax.tree.map(lambda column: column[3], ROWS)
    context = 8 * (int(row.prompt) + 0.5 * int(row.output))
    wanted = int(row.output) * 1e-3 * (19.9347 + 6.2694e-4 * context + 0.038507 * 8)
    np.testing.assert_allclose(inf.decode_seconds(costs, 8)(row), wanted, rtol=1e-5)
    both = inf.scenario_seconds([1.0, 2.0])(ROWS)
    np.testing.assert_array_equal(both, 1.0 + ROWS.scenario)


@pytest.mark.parametrize("slots", [2, 50])
def test_instances_that_do_both_stall_their_answers(slots):
    algorithm = inf.aggregated_serve(
        3, prefill_of, answer_of, slots=slots, promised=SMALL["promised"]
    )
    found = step(algorithm)[1]
    first, last = queues.aggregated(ARRIVED, TAKES, LASTS, 3, slots, 0.4)
    served = np.isfinite(first)
    assert 0.2 < served.mean() < 0.999
    np.testing.assert_allclose(found["success"], served.mean(), atol=1e-6)
    total = np.sort(last - ARRIVED)
    np.testing.assert_allclose(found["total_p50"], total[N // 2 - 1], rtol=1e-3)
    assert np.mean(last[served] - first[served] - LASTS[served]) > 0.01
    np.testing.assert_allclose(inf.aggregated_throughput(0.8, 8.0, 32), 1 / 1.05)


@pytest.mark.slow
def test_a_group_short_of_prefill_gets_it():
    profile = inf.profile(0.2, 1.0, prefill_slots=1, decode_slots=4)
    rule = inf.ratio_adjustment(
        cooldown=5.0, warm_up=1.0, decay=0.9, reference=profile, underway=512
    )
    algorithm = inf.at_rate(
        inf.pd_serve(
            *(1, 6, inf.fixed_work(inf.scenario_seconds([0.2])), inf.scenario_seconds([1.0])),
            decode_slots=4,
            promised=inf.levels(ttft=20.0),
            organisation=rule,
        ),
        12.0,
    )
    rollout = jax.jit(lambda: dx.rollout(algorithm, algorithm.init(KEY, ()), SOURCE, KEY, 12))
    state, metrics = rollout()
    assert metrics["prefill_instances"][0] == 1
    assert metrics["prefill_instances"][-1] in (3, 4)
    both = metrics["prefill_instances"] + metrics["decode_instances"]
    np.testing.assert_array_equal(both, 7)
    assert metrics["success"][-1] > 0.99
    assert np.all(np.isinf(state.idle))


def designs(**options):
    def factory(load, prefill):
        algorithm = inf.pd_serve(
            prefill, 4 - prefill, inf.fixed_work(inf.scenario_seconds([0.1])),
            inf.scenario_seconds([0.5]), most=3, decode_slots=2,
        )  # fmt: skip
        return inf.at_rate(algorithm, load)

    return dx.sweep(
        factory,
        lambda algorithm, key: algorithm.init(key, ()),
        SOURCE,
        grid={"load": [2.0, 8.0], "prefill": [1.0, 2.0]},
        key=KEY,
        rounds=2,
        seeds=2,
        progress=False,
        **options,
    )


@pytest.mark.slow
def test_loads_and_designs_are_a_sweep_also_on_eight_devices():
    found = designs(devices=jax.devices())
    assert (np.diff(found.metrics["prefill_load"], axis=0) > 0).all()
    # The point (8, 2) with the first seed is a run of its own on one device.
    alone = inf.at_rate(
        inf.pd_serve(
            2, 2, inf.fixed_work(inf.scenario_seconds([0.1])), inf.scenario_seconds([0.5]),
            decode_slots=2,
        ),
        8.0,
    )  # fmt: skip
    own = jax.random.fold_in(KEY, 0)
    rolled = jax.jit(lambda: dx.rollout(alone, alone.init(own, ()), SOURCE, own, 2)[1])()
    for name in ("success", "ttft_p50", "decode_wait"):
        np.testing.assert_allclose(found.metrics[name][1, 1, 0], rolled[name], rtol=1e-5)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"prefill": 0}, "prefill must be .*instances of both kinds"),
        ({"decode": 0}, "decode must be .*instances of both kinds"),
        ({"prefill": 1.5}, "prefill must be a whole number"),
        ({"prefill": [2, 0], "decode": [1, 1]}, "prefill must be"),
        ({"prefill": [2, 1], "decode": [1]}, "decode must have as many groups"),
        ({"prefill": [2, 1]}, "decode must be"),
        ({"most": 1}, "prefill must be at most"),
        ({"context": 0}, "context must be"),
        (
            {"hold_prefill": True, "forwarding": inf.local_queue(inf.round_robin())},
            "hold_prefill must be False",
        ),
        (
            {"prefill": [2], "decode": [1], "forwarding": inf.on_demand(retry=0.1)},
            "forwarding must not retry",
        ),
        (
            {"prefill": [2], "decode": [1], "organisation": inf.ratio_adjustment()},
            "organisation must be None",
        ),
    ],
)
def test_wrong_services_are_refused(arguments, message):
    right = {"prefill": 2, "decode": 2, "work": WORK, "answer": answer_of}
    with pytest.raises((TypeError, ValueError), match=message):
        inf.pd_serve(**(right | arguments))


def test_numbers_that_are_traced_need_room():
    with pytest.raises(ValueError, match="most must say"):
        jax.jit(lambda n: inf.pd_serve(n, 1, WORK, answer_of).init(KEY, ()))(2)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: inf.group_throughput(inf.profile(1.0, 1.0), 0, 0), "decode must be > 0"),
        (lambda: inf.best_split(inf.profile(1.0, 1.0), 1), "instances must be"),
        (lambda: inf.organised([inf.profile(1.0, 1.0)] * 2, [1.0, 1.0], 3), "instances must be"),
        (lambda: inf.organised([inf.profile(1.0, 1.0)], [0.0], 3), "rates must be"),
        (
            lambda: inf.mixed_profile(
                [inf.profile(1.0, 1.0), inf.profile(1.0, 1.0, decode_slots=2)], [1.0, 1.0]
            ),
            "profiles must have the same slots",
        ),
        (lambda: inf.trace([0.0], [-5], [1]), "prompt must be"),
    ],
)
def test_what_is_wrong_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
