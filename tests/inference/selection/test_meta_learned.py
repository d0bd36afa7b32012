"""The meta-learned selector: its training against loops written out, and in service."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import NamedSharding, PartitionSpec

import dflax as dx
from dflax.inference import selection as sel

KEY = jax.random.key(7)
N, K = 37, 3
DRAW = np.random.default_rng(2)
X = DRAW.normal(size=(N, 4)).astype(np.float32)
OBSERVED = DRAW.random((N, K)) < 0.8
OBSERVED[:, 0] |= ~OBSERVED.any(1)
SECONDS = np.exp(2 + X[:, :1] + 0.5 * X[:, 1:4]).astype(np.float32)
TABLE = sel.performance(SECONDS, OBSERVED)
WEIGHTS = (np.arange(N) % 4 > 0).astype(np.float32)
STILL = optax.sgd(0.0)
SMALL = {"hidden": (6,), "epochs": 3, "batch": 8, "patience": 2}


@functools.cache
def fit(**options):
    selector = sel.meta_learned(**{**SMALL, **options})
    return selector, jax.jit(selector.fit)


def by_hand(params, x):
    hidden = np.maximum(x @ params["Dense_0"]["kernel"] + params["Dense_0"]["bias"], 0)
    return hidden @ params["Dense_1"]["kernel"] + params["Dense_1"]["bias"]


def targets(rows):
    """Standardised descriptors, z, level, and the numbers that scale them, in float64."""
    x = (X - X[rows].mean(0, dtype=np.float64)) / X[rows].std(0, dtype=np.float64)
    logs = np.log(SECONDS.astype(np.float64)) * OBSERVED
    level = logs.sum(1) / OBSERVED.sum(1)
    z = np.where(OBSERVED, logs - level[:, None], 0)
    deviation = np.sqrt((z[rows] ** 2).sum() / OBSERVED[rows].sum())
    return x, z, level, (deviation, level[rows].mean(), level[rows].std())


@pytest.mark.slow
def test_one_epoch_of_full_batches_is_gradient_descent_on_the_loss():
    rows = WEIGHTS > 0
    x, z, level, (deviation, mean, spread) = targets(rows)
    optimizer = optax.sgd(0.05)
    _, untrained = fit(members=1, epochs=1, batch=N, held=0.0, optimizer=STILL)
    _, once = fit(members=1, epochs=1, batch=N, held=0.0, optimizer=optimizer)
    start = untrained(KEY, X, TABLE, WEIGHTS)
    params = jax.tree.map(lambda leaf: leaf[0], start.params)
    # The scale is that of the training rows.
    np.testing.assert_allclose(start.scale, (deviation, mean, spread), rtol=1e-5)

    def loss(params):
        hidden = jax.nn.relu(x[rows] @ params["Dense_0"]["kernel"] + params["Dense_0"]["bias"])
        out = hidden @ params["Dense_1"]["kernel"] + params["Dense_1"]["bias"]
        error = OBSERVED[rows] * (out[:, :K] - z[rows] / deviation) ** 2
        level_error = (out[:, K] - (level[rows] - mean) / spread) ** 2
        return error.sum() / OBSERVED[rows].sum() + level_error.mean()

    slope = jax.grad(loss)(params)
    after = once(KEY, X, TABLE, WEIGHTS)
    expected = jax.tree.map(lambda leaf, g: leaf - 0.05 * g, params, slope)
    for new, old in zip(jax.tree.leaves(after.params), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(new[0], old, rtol=2e-4, atol=1e-5)


@pytest.mark.slow
def test_scores_and_times_are_the_mean_network_in_its_own_units():
    selector, learn = fit(members=2)
    fitted = learn(KEY, X, TABLE, WEIGHTS)
    x, _, _, (deviation, mean, spread) = targets(WEIGHTS > 0)
    out = np.mean(
        [by_hand(jax.tree.map(lambda leaf, m=m: leaf[m], fitted.params), x) for m in (0, 1)], 0
    )
    np.testing.assert_allclose(
        selector.score(fitted, X), deviation * out[:, :K], rtol=1e-3, atol=1e-5
    )
    times = mean + spread * out[:, K:] + deviation * out[:, :K]
    np.testing.assert_allclose(selector.log_seconds(fitted, X), times, rtol=1e-3, atol=1e-4)
    assert fitted.losses.shape == (2, 3)


def test_rows_of_weight_0_change_nothing():
    _, learn = fit(members=2)
    fitted = learn(KEY, X, TABLE, WEIGHTS)
    spoiled = sel.performance(np.where(WEIGHTS[:, None] > 0, SECONDS, 9.0), OBSERVED)
    other = learn(KEY, np.where(WEIGHTS[:, None] > 0, X, 5.0), spoiled, WEIGHTS)
    for one, two in zip(jax.tree.leaves(fitted), jax.tree.leaves(other), strict=True):
        np.testing.assert_allclose(one, two, rtol=1e-4, atol=1e-6)


def test_training_stops_and_keeps_the_best_epoch():
    # Uphill: the first epoch is the best, and two more are waited for.
    uphill = optax.sgd(-0.002)
    _, learn = fit(members=1, epochs=6, patience=2, held=0.3, optimizer=uphill)
    fitted = learn(KEY, X, TABLE, None)
    losses = np.asarray(fitted.losses[0])
    assert losses[0] < losses[1] < losses[2]
    np.testing.assert_array_equal(losses[3:], losses[0])


def simulated_tasks(count=600):
    tasks = sel.random_tasks(KEY, count)
    return sel.descriptors(tasks), sel.simulated(KEY, tasks), sel.held_out(tasks, [4], [2])


@pytest.fixture(scope="module")
def simulated():
    return jax.jit(simulated_tasks)()


LOSSES = ("squared_error", "centred_squared_error", "pairwise_logistic", "softmax_of_best")


@pytest.mark.slow
@pytest.mark.parametrize("loss", LOSSES)
def test_it_learns_to_choose_for_a_model_and_a_device_nobody_tried(simulated, loss):
    x, table, out = simulated
    selector, learn = fit(
        hidden=(32, 32), epochs=40, batch=128, members=1, patience=20, loss=getattr(sel, loss)
    )
    fitted = learn(KEY, x, table, ~out)
    found = sel.judged(sel.choose(selector.score(fitted, x)), table.seconds, out)
    best = sel.global_best()
    common = best.score(best.fit(KEY, x, table, ~out), x)
    base = sel.judged(sel.choose(common), table.seconds, out)
    assert found.macro_f1 > base.macro_f1 + 0.1
    assert found.regret < 0.7 * base.regret


@pytest.mark.slow
def test_splits_and_rates_are_axes_and_devices_share_them(simulated):
    x, table, _ = simulated
    x, table = x[:80], sel.Performance(table.seconds[:80], table.observed[:80])
    splits = np.arange(80) % 8 != np.arange(8)[:, None]
    keys = jax.random.split(KEY, 8)
    rates = np.linspace(1e-3, 8e-3, 8).astype(np.float32)

    def one(key, weights, rate):
        selector = sel.meta_learned(**SMALL, members=1, optimizer=optax.adam(rate))
        return selector.score(selector.fit(key, x, table, weights), x)

    program = jax.jit(jax.vmap(one))
    whole = np.asarray(program(keys, splits, rates))
    mesh = dx.client_mesh()
    dealt = NamedSharding(mesh, PartitionSpec(mesh.axis_names[0]))
    given = jax.device_put((keys, jnp.asarray(splits), jnp.asarray(rates)), dealt)
    shared = program(*given)
    assert len(shared.sharding.device_set) == 8
    np.testing.assert_allclose(shared, whole, rtol=1e-4, atol=1e-5)
    assert np.abs(whole[3] - whole[4]).max() > 1e-3


# In service.


@functools.cache
def in_service(members=1):
    selector, learn = fit(members=members)
    return selector, learn(KEY, X, TABLE, WEIGHTS)


def arrivals(count=4, rounds=5, budget=np.inf):
    shape = (rounds, count)
    draw = np.random.default_rng(9)
    x = draw.normal(size=(*shape, 4)).astype(np.float32)
    return sel.Arrivals(
        x,
        np.exp(2 + x[..., :1] + 0.5 * x[..., 1:4]).astype(np.float32),
        np.ones((*shape, K), bool),
        np.full(shape, 3600.0, np.float32),
        np.full(shape, budget, np.float32),
    )


@pytest.mark.slow
def test_the_store_holds_the_training_tasks_and_then_the_newest():
    selector, fitted = in_service()
    service = sel.online(selector, capacity=30, batch=4)
    state = jax.jit(service.init)(KEY, fitted, X, TABLE, WEIGHTS)
    assert state.store.filled == WEIGHTS.sum() == 27
    kept = np.asarray(state.store.rows.x[:27])
    assert {tuple(row) for row in kept} == {tuple(row) for row in X[WEIGHTS > 0]}
    learn = jax.jit(service.learn)
    new = arrivals()
    state, _ = learn(state, KEY, new.x[0], np.array([0, 1, 2, 1]), np.arange(1.0, 5.0))
    np.testing.assert_array_equal(state.store.rows.x[27:], new.x[0, :3])
    np.testing.assert_array_equal(state.store.rows.x[0], new.x[0, 3])
    np.testing.assert_array_equal(state.store.rows.observed[28], [False, True, False])
    np.testing.assert_allclose(state.store.rows.log_seconds[28, 1], np.log(2.0), rtol=1e-6)
    assert state.round == 1


def test_an_update_is_a_step_on_the_seen_sum_of_both_heads():
    selector, fitted = in_service()
    service = sel.online(selector, capacity=30, batch=4, optimizer=optax.sgd(0.1), fresh=1.0)
    state = jax.jit(service.init)(KEY, fitted, X, TABLE, WEIGHTS)
    x, method, seconds = arrivals().x[0], np.array([0, 1, 2, 1]), np.array([5.0, 6, 7, 8])
    after, told = jax.jit(service.learn)(state, KEY, x, method, seconds)

    def error(params):
        times = selector.log_seconds(fitted._replace(params=params), x)
        seen = times[np.arange(4), method]
        return jnp.mean((seen - np.log(seconds)) ** 2) / fitted.scale.relative**2

    value, slope = jax.jit(jax.value_and_grad(error))(fitted.params)
    np.testing.assert_allclose(told["error"], value, rtol=1e-4)
    expected = jax.tree.map(lambda leaf, g: leaf - 0.1 * g, fitted.params, slope)
    for one, two in zip(
        jax.tree.leaves(after.fitted.params), jax.tree.leaves(expected), strict=True
    ):
        np.testing.assert_allclose(one, two, rtol=1e-3, atol=1e-5)
    assert after.fitted.standard is state.fitted.standard or np.array_equal(
        after.fitted.standard.mean, state.fitted.standard.mean
    )


@pytest.mark.slow
def test_a_budget_that_cannot_be_kept_is_flagged_and_what_is_not_there_is_not_chosen():
    selector, fitted = in_service()
    service = sel.online(selector, explore=0.5)
    state = jax.jit(service.init)(KEY, fitted, X, TABLE, WEIGHTS)
    choose = jax.jit(service.choose)
    row = jax.tree.map(lambda leaf: leaf[0], arrivals(200, 1))
    cost = np.exp(np.asarray(selector.log_seconds(fitted, row.x)))
    found, explored = choose(state, KEY, row)
    best = cost.argmin(1)
    assert (found.option[~explored] == best[~explored]).all()
    assert abs(explored.mean() - 0.5) < 0.15
    assert (found.option[explored] != best[explored]).any()
    there = row._replace(available=row.available & (np.arange(K) != best[:, None]))
    assert not (choose(state, KEY, there)[0].option == best).any()
    limit = float(np.median(cost))
    held, _ = choose(state, KEY, row._replace(budget=np.full(200, limit, np.float32)))
    assert (held.within == (cost.min(1) <= limit)).all()
    assert (held.cost[held.within] <= limit).all()
    assert (held.option[~held.within] == best[~held.within]).all()


@pytest.mark.slow
def test_a_run_in_service_learns_and_a_sweep_is_each_run():
    selector, fitted = in_service()

    def factory(explore, fresh):
        service = sel.online(
            selector, capacity=64, batch=8, optimizer=optax.adam(3e-3), explore=explore, fresh=fresh
        )
        return sel.deployed(service)

    def start(algorithm, key):
        return algorithm.init(key, fitted, X, TABLE, WEIGHTS)

    source = dx.Events(arrivals(8, 60))
    grid = {"explore": [0.0, 0.3], "fresh": [0.5, 1.0]}
    swept = dx.sweep(factory, start, source, grid=grid, seeds=2, key=KEY, rounds=60, progress=False)
    errors = swept.metrics["error"]
    assert errors.shape == (2, 2, 2, 60)
    assert (errors[..., -10:].mean(-1) < 0.7 * errors[..., :10].mean(-1)).all()
    assert (swept.metrics["explored"][0] == 0).all()
    assert abs(swept.metrics["explored"][1].mean() - 0.3) < 0.05
    assert (swept.metrics["violations"] == 0).all()
    algorithm, key = factory(0.3, 0.5), jax.random.fold_in(KEY, 1)
    _, history = dx.run(
        algorithm, start(algorithm, key), source, rounds=60, key=key, progress=False
    )
    for name, found in history.metrics.items():
        np.testing.assert_allclose(
            found, swept.metrics[name][1, 0, 1], rtol=1e-3, atol=1e-4, err_msg=name
        )


def test_selectors_without_times_cannot_serve():
    with pytest.raises(ValueError, match="selector must predict times"):
        sel.online(sel.nearest())
    selector, _ = in_service()
    with pytest.raises(TypeError, match="fitted must be of type Fitted"):
        sel.online(selector).init(KEY, 3, X, TABLE)
