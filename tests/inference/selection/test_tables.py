"""Performance tables, tasks, the simulator, choices within budgets and their judgement, files."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.metrics import f1_score

import dflax as dx
from dflax.inference import selection as sel

KEY = jax.random.key(3)
DRAW = np.random.default_rng(0)
SECONDS = np.exp(DRAW.normal(size=(40, 4))).astype(np.float32)
OBSERVED = DRAW.random((40, 4)) < 0.6


def reference_latencies(net, chip, work):
    """The sheet's formulas for one task, in float64 and in the sheet's own units."""
    p, kv = net["billions"], net["megabytes"]
    tera, giga, room = chip
    b, L, G, share, cv = work
    F, W = 0.45 * tera * 1e12, 0.7 * giga * 1e9
    left = max(room * 1e9 - 2 * p * 1e9, 0.5e9)
    most = min(max(left / (kv * 1e6 * (L + G)), 1), b)
    waves = np.ceil(b / most)
    longest = G * (1 + cv * np.log(1 + b) / 2)
    hit = share * (1 - np.exp(-b / 6))
    pen = 1.05 + 0.25 * (b * kv * 1e6 * L > 0.8 * left)
    pre = 2 * p * 1e9 * most * L / F
    dec = max(2 * p * 1e9 / W, 2 * p * 1e9 * most / F) + most * (L + G / 2) * kv * 1e6 / W
    root = np.sqrt(waves)
    return [
        waves * (pre + longest * dec),
        1.02 * pen * waves * (pre * (1 - hit) + longest * dec),
        root * (pre + 1.10 * G * dec) + 4e-3 * G,
        waves * (1.12 * pre + longest * dec - 0.35 * pre),
        1.05 * pen * root * (1.12 * pre * (1 - hit) + 1.10 * G * dec) + 12e-3 * G,
    ]


def test_the_simulator_is_the_formulas():
    networks, chips = sel.studied_networks(), sel.studied_accelerators()
    tasks = sel.random_tasks(KEY, 60)
    found = jax.jit(sel.latencies)(tasks.network, tasks.accelerator, tasks.workload)
    work = np.stack(tasks.workload, -1).astype(np.float64)
    for row in range(60):
        model, device = int(tasks.model[row]), int(tasks.device[row])
        net = {
            "billions": round(float(networks.parameters[model]) / 1e9, 3),
            "megabytes": round(float(networks.cache_bytes[model]) / 1e6, 3),
        }
        chip = [
            round(float(value[device]) / unit, 3)
            for value, unit in ((chips.flops, 1e12), (chips.bandwidth, 1e9), (chips.memory, 1e9))
        ]
        np.testing.assert_allclose(found[row], reference_latencies(net, chip, work[row]), rtol=2e-5)


def one_task(**changes):
    work = {"batch": 4.0, "prompt": 100.0, "output": 50.0, "shared": 0.6, "variation": 0.5}
    chip = dx.inference.accelerator(312e12, 2039e9, 80e9)
    return sel.latencies(dx.inference.network(8e9, 0.13e6), chip, sel.workload(**(work | changes)))


def test_without_a_shared_prefix_its_caching_costs_exactly_the_look_up():
    found = np.asarray(one_task(shared=0.0), np.float64)
    np.testing.assert_allclose(found[1] / found[0], 1.02 * 1.05, rtol=1e-6)
    crowded = np.asarray(one_task(shared=0.0, batch=128.0, prompt=4096.0))
    np.testing.assert_allclose(crowded[1] / crowded[0], 1.02 * 1.30, rtol=1e-6)


def test_batching_alone_costs_a_tenth_of_decoding_and_its_schedule():
    found = np.asarray(one_task(variation=0.0), np.float64)
    W, F = 0.7 * 2039e9, 0.45 * 312e12
    decode = max(16e9 / W, 16e9 * 4 / F) + 4 * 125 * 0.13e6 / W
    np.testing.assert_allclose(found[2] - found[0], 0.1 * 50 * decode + 4e-3 * 50, rtol=1e-4)


@pytest.mark.slow
def test_the_law_of_tasks():
    tasks = jax.jit(lambda key: sel.random_tasks(key, 3000))(KEY)
    work = tasks.workload
    assert set(np.unique(work.batch)) == {2.0**i for i in range(8)}
    assert work.prompt.min() >= 64
    assert work.prompt.max() <= 4096
    assert work.output.min() >= 16
    assert work.output.max() <= 725
    np.testing.assert_allclose(np.unique(work.shared), [0, 0.3, 0.6, 0.9], rtol=1e-6)
    out = np.asarray(sel.held_out(tasks, np.array([4]), np.array([2])))
    np.testing.assert_array_equal(out, (np.asarray(tasks.model) == 4) | (tasks.device == 2))
    # One in six twice: 11/36 of 3000 is 917.
    assert abs(out.sum() - 917) < 100
    assert not np.asarray(sel.held_out(tasks, np.zeros(0, int), np.zeros(0, int))).any()
    x = sel.descriptors(tasks)
    assert x.shape == (3000, 12)
    np.testing.assert_allclose(x[:, 7], np.log(work.batch), rtol=1e-6)
    rule = (np.asarray(work.shared) > 0.5) & (np.asarray(work.batch) >= 16)
    np.testing.assert_array_equal(sel.expert_rule(x), np.where(rule, 1, 2))
    table = sel.simulated(KEY, tasks, 0.0)
    exact = sel.latencies(tasks.network, tasks.accelerator, tasks.workload)
    np.testing.assert_allclose(table.seconds, exact, rtol=1e-6)
    noisy = np.log(sel.simulated(KEY, tasks).seconds / exact)
    np.testing.assert_allclose([noisy.mean(), noisy.std()], [0, 0.03], atol=1e-3)


def test_centring_forgets_a_tasks_scale():
    table = sel.performance(SECONDS, OBSERVED)
    found = sel.centred(table)
    for row in range(40):
        logs = np.log(SECONDS[row][OBSERVED[row]].astype(np.float64))
        expected = logs - logs.mean() if len(logs) else logs
        np.testing.assert_allclose(found.relative[row][OBSERVED[row]], expected, atol=1e-6)
    assert not np.asarray(found.relative)[~OBSERVED].any()
    scaled = sel.centred(sel.performance(SECONDS * np.exp(DRAW.normal(size=(40, 1))), OBSERVED))
    np.testing.assert_allclose(scaled.relative, found.relative, atol=1e-5)
    order = np.array([2, 0, 3, 1])
    moved = sel.centred(sel.performance(SECONDS[:, order], OBSERVED[:, order]))
    np.testing.assert_allclose(moved.relative, found.relative[:, order], atol=1e-6)
    gaps = sel.performance(np.where(OBSERVED, SECONDS, np.nan))
    np.testing.assert_array_equal(gaps.observed, OBSERVED)
    same = sel.performance(np.full((3, 4), 2.0))
    np.testing.assert_array_equal(sel.centred(same).relative, 0)
    np.testing.assert_array_equal(sel.best_method(same), 0)


def test_judgement_by_hand_and_by_scikit_learn():
    # Nobody chooses 3, which is the fastest somewhere: it counts in the mean of F1, with 0.
    chosen = DRAW.integers(0, 3, 40)
    judge = jax.jit(sel.judged)
    found = judge(chosen, SECONDS)
    best = SECONDS.argmin(1)
    taken = SECONDS[np.arange(40), chosen].astype(np.float64)
    np.testing.assert_allclose(found.accuracy, (chosen == best).mean(), rtol=1e-6)
    np.testing.assert_allclose(found.macro_f1, f1_score(best, chosen, average="macro"), rtol=1e-6)
    np.testing.assert_allclose(found.speed_up, (SECONDS[:, 0] / taken).mean(), rtol=1e-5)
    np.testing.assert_allclose(found.slowdown, (taken / SECONDS.min(1)).mean(), rtol=1e-5)
    np.testing.assert_allclose(found.regret, np.log(taken / SECONDS.min(1)).mean(), rtol=1e-5)
    half = np.arange(40) < 20
    parts = (
        jax.jit(sel.judged)(chosen, SECONDS, half),
        jax.jit(sel.judged)(chosen[:20], SECONDS[:20]),
    )
    np.testing.assert_allclose(*parts, rtol=1e-5)
    assert judge(np.zeros(40, int), SECONDS).speed_up == 1
    oracle = judge(best, SECONDS)
    assert (oracle.accuracy, oracle.regret, oracle.slowdown, oracle.macro_f1) == (1, 0, 1, 1)


@pytest.mark.slow
def test_a_budget_leaves_the_fastest_that_can_be_paid():
    cost = np.exp(DRAW.normal(size=(40, 4))).astype(np.float32)
    free = DRAW.random((40, 4)) < 0.7
    free[:, 1] = True
    choose = jax.jit(sel.within_budget)
    for budget in (0.3, 1.0, np.linspace(0.1, 3, 40)):
        found = choose(SECONDS, cost, budget, free)
        limits = np.broadcast_to(budget, 40)
        for row in range(40):
            options = [k for k in range(4) if free[row, k] and cost[row, k] <= limits[row]]
            ways = [k for k in range(4) if free[row, k]]
            by = (lambda k, r=row: SECONDS[r, k]) if options else (lambda k, r=row: cost[r, k])
            assert found.option[row] == min(options or ways, key=by)
            assert found.within[row] == bool(options)
            assert found.cost[row] == cost[row, found.option[row]]
            assert not options or found.cost[row] <= limits[row]
    everything = choose(SECONDS, cost, float("inf"))
    np.testing.assert_array_equal(everything.option, SECONDS.argmin(1))
    none = choose(SECONDS, cost, cost.min() / 2)
    assert not none.within.any()
    np.testing.assert_array_equal(none.option, cost.argmin(1))
    ties = sel.within_budget(np.ones((2, 3)), np.ones((2, 3)), 1.0)
    np.testing.assert_array_equal(ties.option, 0)
    one = sel.within_budget(SECONDS[:, :1], cost[:, :1], 1.0)
    np.testing.assert_array_equal(one.option, 0)


@pytest.mark.slow
def test_several_nodes_are_one_choice():
    logs = DRAW.normal(size=(10, 3, 4)).astype(np.float32) + 8
    price = np.array([0.5, 1.0, 3.0])
    found = jax.jit(sel.on_nodes)(logs, price, 1.0)
    cost = np.exp(logs) * price[:, None] / 3600
    for row in range(10):
        payable = np.where(cost[row] <= 1.0, logs[row], np.inf)
        assert found.within[row] == np.isfinite(payable).any()
        best = payable if found.within[row] else cost[row]
        node, method = np.unravel_index(best.argmin(), best.shape)
        assert (found.node[row], found.method[row]) == (node, method)
    free = sel.on_nodes(logs, price)
    np.testing.assert_array_equal(free.node * 4 + free.method, logs.reshape(10, 12).argmin(1))
    alone = np.zeros((10, 3, 4), bool)
    alone[:, 2, 1] = True
    kept = sel.on_nodes(logs, price, 1e-9, alone)
    assert (kept.node == 2).all()
    assert (kept.method == 1).all()
    assert not kept.within.any()


def test_tables_come_back_from_files(tmp_path):
    tasks = sel.random_tasks(KEY, 40)
    names = tuple(f"model, {i}" for i in range(6)), tuple(f"device {i}" for i in range(6))
    table = sel.performance(SECONDS, OBSERVED)
    measured = sel.Measurements(tasks, table, ("none", "a, b", "c", "all"), *names)
    path = tmp_path / "measured.csv"
    sel.write_measurements(path, measured)
    found = sel.read_measurements(path)
    assert found.methods == measured.methods
    assert [found.models[i] for i in found.tasks.model] == [names[0][i] for i in tasks.model]
    assert [found.devices[i] for i in found.tasks.device] == [names[1][i] for i in tasks.device]
    np.testing.assert_array_equal(found.table.observed, OBSERVED)
    np.testing.assert_allclose(
        np.asarray(found.table.seconds)[OBSERVED], SECONDS[OBSERVED], rtol=1e-5
    )
    np.testing.assert_allclose(
        sel.descriptors(found.tasks), sel.descriptors(tasks), rtol=1e-5, atol=1e-5
    )


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("batch", "requests", "the columns batch"),
        ("seconds: ", "time ", "seconds: NAME"),
        ("x0,", ",", "model, got an empty one in line 2"),
        ("64,", "many,", "batch, got 'many' in line 2"),
        ("7.5", "none", "seconds: none, got 'none' in line 2"),
        ("7.5", "nan", "seconds: none, got 'nan' in line 2"),
        ("7.5", "-7.5", "seconds must be > 0"),
    ],
)
def test_files_that_are_no_tables_are_refused_by_name(tmp_path, old, new, message):
    columns = (
        "model,device,parameters,layers,cache_bytes,parameter_bytes,flops,bandwidth,memory,price"
    )
    text = f"{columns},batch,prompt,output,shared,variation,seconds: none\n"
    text += "x0,d,1e9,2,1000,2,1e12,1e11,1e10,1,64,100,10,0.5,0.5,7.5\n"
    path = tmp_path / "table.csv"
    path.write_text(text)
    sel.read_measurements(path)
    path.write_text(text.replace(old, new))
    with pytest.raises(ValueError, match=message):
        sel.read_measurements(path)
    path.write_text(text.splitlines()[0] + "\n")
    with pytest.raises(ValueError, match="path must be a CSV file with lines"):
        sel.read_measurements(path)


def test_wrong_tables_are_refused():
    with pytest.raises(ValueError, match="seconds must be > 0 where observed"):
        sel.performance([[1.0, 0.0]])
    with pytest.raises(ValueError, match="seconds must be known where observed"):
        sel.performance([[1.0, np.nan]], [[True, True]])
    assert not sel.performance([[1.0, np.nan]], [[True, False]]).observed[0, 1]
    with pytest.raises(ValueError, match="observed must be booleans of shape"):
        sel.performance(SECONDS, OBSERVED[:, :2])
    with pytest.raises(ValueError, match="weights must have a positive one"):
        sel.judged(np.zeros(40, int), SECONDS, np.zeros(40))
    with pytest.raises(ValueError, match="available must leave every task"):
        sel.within_budget(SECONDS, SECONDS, 1.0, SECONDS < 0)
    with pytest.raises(ValueError, match="budget must be one number, or one for each task"):
        sel.within_budget(SECONDS, SECONDS, np.ones(3))
    with pytest.raises(ValueError, match="networks must have leaves of one length"):
        sel.random_tasks(KEY, 3, dx.inference.network(np.ones(3), np.ones(2)))


@pytest.mark.slow
def test_many_tasks_are_one_program():
    tasks = sel.random_tasks(KEY, 1)
    many = jax.eval_shape(lambda key: sel.simulated(key, sel.random_tasks(key, 1_000_000)), KEY)
    assert many.seconds.shape == (1_000_000, 5)
    keys = jax.random.split(KEY, 3)
    batched = jax.vmap(lambda key: sel.simulated(key, tasks).seconds)(keys)
    assert batched.shape == (3, 1, 5)
    assert jnp.isfinite(batched).all()
