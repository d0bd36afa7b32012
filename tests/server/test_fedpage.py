"""FedPAGE and BVR-L-SGD, the recursive baselines of FedAMD."""

from operator import itemgetter

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from tasks import assert_trees_close, assert_trees_equal, regression, softmax_loss

import dflax as dx
from dflax import participation
from dflax.server import bvr_l_sgd, fedpage

KEY = jax.random.key(0)
QUADRATICS = dx.data.quadratics(KEY, 6, 4, curvature_heterogeneity=0.8)
HESSIANS = np.asarray(QUADRATICS.hessians, np.float64)
CENTERS = np.asarray(QUADRATICS.client_optima, np.float64)
LOGISTIC = regression()
ZEROS = jnp.zeros(4)


def slopes(x):
    return np.einsum("kij,...kj->...ki", HESSIANS, x - CENTERS)


def quadratic_federation(rule=None, local_steps=3):
    return dx.Federation(
        QUADRATICS.data.train,
        QUADRATICS.partition,
        batch_size=1,
        local_steps=local_steps,
        participation=rule,
    )


def federation(rule=None):
    return dx.Federation(
        LOGISTIC.data, LOGISTIC.partition, batch_size=8, local_steps=3, participation=rule
    )


def run(algorithm, source, rounds, params=ZEROS):
    """The models after every round, and the metrics."""

    @jax.jit
    def all_rounds(state, source):
        def one(state, index):
            state, metrics = algorithm.step(state, source.draw(KEY, index))
            return state, (state.server.params, metrics)

        return jax.lax.scan(one, state, jnp.arange(rounds, dtype=jnp.int32))[1]

    return all_rounds(algorithm.init(KEY, params), source)


@pytest.mark.some(1)
@pytest.mark.parametrize("steps", [1, 3])
def test_fedpage_follows_its_recursion_on_quadratics(steps):
    algorithm = fedpage(dx.data.quadratic_loss, 0.1, 0.3, server_rate=0.2)
    models, metrics = run(algorithm, quadratic_federation(None, steps), 400)
    np.testing.assert_allclose(models[-1], QUADRATICS.optimum, atol=2e-5)
    x = before = np.zeros(4)
    full = np.asarray(metrics["full"])
    assert full[0] == 1
    assert 1 < full[:12].sum() < 12
    for t in range(12):
        if full[t]:
            g = slopes(x).mean(0)
        else:
            direction = g - slopes(before) + slopes(x)
            y = x - 0.1 * direction
            last = np.tile(x, (6, 1))
            for _ in range(steps - 1):
                direction = direction - slopes(last) + slopes(y)
                last, y = y, y - 0.1 * direction
            g = ((x - y) / (0.1 * steps)).mean(0)
        before, x = x, x - 0.2 * g
        np.testing.assert_allclose(models[t], x, rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(metrics["gradients"][0], 6)


@pytest.mark.some(1)
@pytest.mark.parametrize("everyone", [True, False])
def test_bvr_l_sgd_lets_one_client_walk_along_the_corrected_direction(everyone):
    rule = None if everyone else participation.uniform(3)
    algorithm = bvr_l_sgd(dx.data.quadratic_loss, optax.sgd(0.1), 4)
    models, metrics = run(algorithm, quadratic_federation(rule), 400)
    if everyone:
        np.testing.assert_allclose(models[-1], QUADRATICS.optimum, atol=2e-5)
    np.testing.assert_array_equal(metrics["full"], [1, 0, 0, 0] * 100)
    x = before = np.zeros(4)
    for t in range(9):
        cohort = (
            np.arange(6) if everyone else np.asarray(quadratic_federation(rule).draw(KEY, t)[2])
        )
        g = 0.0 if t % 4 == 0 else g + (slopes(x) - slopes(before))[cohort].mean(0)
        g = slopes(x)[cohort].mean(0) if t % 4 == 0 else g
        # With one example per client the walk is exact: it must be that of one member.
        y = last = np.tile(x, (6, 1))
        direction = np.tile(g, (6, 1))
        for _ in range(3):
            direction = direction - slopes(last) + slopes(y)
            last, y = y, y - 0.1 * direction
        gaps = np.abs(y - np.asarray(models[t])).max(1)
        assert gaps[cohort].min() < 1e-5
        before, x = x, np.asarray(models[t], np.float64)


def page(rate):
    return fedpage(softmax_loss, rate, 0.3, server_rate=3 * rate)


def walk(rate):
    return bvr_l_sgd(softmax_loss, optax.sgd(rate), 3)


@pytest.mark.slow
@pytest.mark.parametrize("make", [page, walk])
def test_on_devices_and_within_a_sweep_it_is_the_same_and_it_learns(make):
    source = federation(participation.uniform(4))

    def end(rate):
        algorithm = make(rate)
        state = algorithm.init(KEY, LOGISTIC.params)
        return dx.rollout(algorithm, state, source, KEY, 30)[0].server.params

    swept = jax.jit(jax.vmap(end))(jnp.array([0.05, 0.2]))
    algorithm = make(0.2)
    state = algorithm.init(KEY, LOGISTIC.params)
    dealt, _ = dx.run(algorithm, state, source, rounds=30, key=KEY, mesh=dx.client_mesh())
    assert_trees_close(
        dealt.server.params, jax.tree.map(itemgetter(1), swept), rtol=1e-3, atol=1e-4
    )
    batch = LOGISTIC.data.fetch(jnp.arange(len(LOGISTIC.data)))
    assert softmax_loss(dealt.server.params, batch, None)[1]["accuracy"] > 0.85


@pytest.mark.some(1)
@pytest.mark.parametrize(
    "algorithm", [fedpage(softmax_loss, 0.1, 0.0), bvr_l_sgd(softmax_loss, optax.sgd(0.1), 2)]
)
def test_a_round_in_which_nobody_reports_leaves_the_server(algorithm):
    nobody = participation.dropout(participation.everyone(), 1.0)
    state = algorithm.init(KEY, LOGISTIC.params)._replace(round=jnp.int32(5))
    step = jax.jit(lambda state, source: algorithm.step(state, source.draw(KEY, 5)))
    after, metrics = step(state, federation(nobody))
    assert_trees_equal(after.server, state.server)
    assert np.isnan(metrics["loss"])
    assert metrics["clients_reporting"] == 0


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: fedpage(softmax_loss, 0.0, 0.5), "rate must be a finite number in"),
        (lambda: fedpage(softmax_loss, 0.1, 1.5), r"full must be a finite number in \[0, 1\]"),
        (lambda: fedpage(softmax_loss, 0.1, 0.5, server_rate=-1.0), "server_rate must be"),
        (lambda: fedpage(softmax_loss, 0.1, 0.5, batch_size=0), "batch_size must be"),
        (lambda: fedpage(softmax_loss, 0.1, 0.5).init(0, ZEROS), "one typed JAX key"),
        (lambda: bvr_l_sgd(softmax_loss, 0.1, 2), "optimizer must be an optax optimiser"),
        (lambda: bvr_l_sgd(softmax_loss, optax.sgd(0.1), 0), "period must be an integer >= 1"),
        (
            lambda: bvr_l_sgd(softmax_loss, optax.sgd(0.1), 2, examples=0),
            "examples must be an integer >= 1",
        ),
        (
            lambda: bvr_l_sgd(softmax_loss, optax.sgd(0.1), 2).init(KEY, {}),
            "params must be a pytree",
        ),
    ],
)
def test_bad_arguments_are_refused(call, message):
    with pytest.raises((TypeError, ValueError), match=message):
        call()
