import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from tasks import (
    assert_trees_close,
    assert_trees_equal,
    half_square,
    quadratics,
    regression,
    softmax_loss,
)

import dflax as dx
from dflax import participation
from dflax.decentralized import Order, dfedavg, dpsgd

KEY = jax.random.key(0)
TASK = quadratics(clients=8)
START = jnp.array([1.0, -1.0, 0.5])
RATE = 0.1
W = np.eye(8) / 3 + np.roll(np.eye(8), 1, 0) / 3 + np.roll(np.eye(8), -1, 0) / 3


def advance(algorithm, federation, rounds, params=START):
    state = algorithm.init(KEY, params)
    return jax.jit(functools.partial(dx.rollout, algorithm, rounds=rounds))(state, federation, KEY)


def adapt(models, steps):
    shrink = (1 - RATE) ** steps
    return TASK.centers + shrink * (models - TASK.centers)


RECURSIONS = {
    Order.ADAPT_THEN_COMBINE: lambda x, k: W @ adapt(x, k),
    Order.COMBINE_THEN_ADAPT: lambda x, k: adapt(W @ x, k),
    Order.PARALLEL: lambda x, k: W @ x + adapt(x, k) - x,
}


@pytest.mark.some(2)
@pytest.mark.parametrize("order", list(Order))
@pytest.mark.parametrize("steps", [1, 3])
def test_each_order_is_its_matrix_recursion_on_quadratics(order, steps):
    algorithm = dfedavg(half_square, optax.sgd(RATE), dx.gossip.ring(8), order=order)
    state, metrics = advance(algorithm, TASK.federation(steps), 5)
    models = np.tile(np.asarray(START, np.float64), (8, 1))
    for _ in range(5):
        models = RECURSIONS[order](models, steps)
    np.testing.assert_allclose(state.clients.params, models, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(metrics["models_sent"], 16.0)
    np.testing.assert_array_equal(metrics["clients_active"], 8.0)


def test_dpsgd_is_the_published_recursion():
    """x+ = W x - eta grad(x), which does not reach consensus under a constant rate."""
    state, _ = advance(
        dpsgd(half_square, optax.sgd(RATE), dx.gossip.ring(8)), TASK.federation(), 400
    )
    fixed = np.linalg.solve(np.eye(8) * (1 + RATE) - W, RATE * TASK.centers)
    np.testing.assert_allclose(state.clients.params, fixed, atol=1e-5)
    assert np.std(np.asarray(state.clients.params), axis=0).min() > 1e-2


def test_gossip_steps_multiply_the_mixing_matrix():
    algorithm = dfedavg(half_square, optax.sgd(RATE), dx.gossip.ring(8, steps=3))
    state, metrics = advance(algorithm, TASK.federation(2), 1)
    expected = np.linalg.matrix_power(W, 3) @ adapt(np.tile(START, (8, 1)), 2)
    np.testing.assert_allclose(state.clients.params, expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(metrics["models_sent"], 48.0)


def test_on_the_complete_graph_dfedavg_is_fedavg():
    task = regression()
    federation = dx.Federation(
        task.data, task.partition, batch_size=6, local_steps=3, weights=jnp.ones(8)
    )
    gossiped, _ = advance(
        dfedavg(softmax_loss, optax.sgd(0.3, momentum=0.9), dx.gossip.complete(8)),
        federation,
        4,
        task.params,
    )
    averaged, _ = advance(
        dx.server.fedavg(softmax_loss, optax.sgd(0.3, momentum=0.9)), federation, 4, task.params
    )
    everyone = dx.replicate(averaged.server.params, 8)
    assert_trees_close(gossiped.clients.params, everyone, rtol=1e-4, atol=1e-5)


def test_the_mean_model_of_quadratics_does_not_depend_on_the_graph():
    """For doubly stochastic W the mean follows its own recursion (an instance of single merging)."""
    means = []
    for mixer in (dx.gossip.identity(8), dx.gossip.ring(8), dx.gossip.one_peer_exponential(8)):
        state, _ = advance(dfedavg(half_square, optax.sgd(RATE), mixer), TASK.federation(2), 5)
        means.append(np.asarray(state.clients.params).mean(0))
    np.testing.assert_allclose(means[1], means[0], rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(means[2], means[0], rtol=1e-4, atol=1e-6)


def test_momentum_is_fresh_in_dfedavg_and_kept_in_dpsgd():
    heavy = optax.sgd(RATE, momentum=0.9)
    alone = dx.gossip.identity(8)
    kept, _ = advance(dpsgd(half_square, heavy, alone), TASK.federation(), 3)
    fresh, _ = advance(dfedavg(half_square, heavy, alone), TASK.federation(), 3)
    x = y = np.tile(np.asarray(START, np.float64), (8, 1))
    velocity = 0.0
    for _ in range(3):
        velocity = 0.9 * velocity + (x - TASK.centers)
        x = x - RATE * velocity
        y = y - RATE * (y - TASK.centers)
    np.testing.assert_allclose(kept.clients.params, x, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(fresh.clients.params, y, rtol=1e-5, atol=1e-6)
    assert fresh.clients.optimizer is None


@pytest.mark.some(2)
@pytest.mark.parametrize("order", list(Order))
def test_absent_clients_keep_model_and_optimiser_bit_for_bit(order):
    rule = participation.dropout(participation.uniform(5), 0.3)
    federation = TASK.federation(2, participation=rule)
    algorithm = dfedavg(
        half_square, optax.adam(0.1), dx.gossip.ring(8), order=order, keep_optimizer=True
    )
    state = algorithm.init(KEY, lambda key: jax.random.normal(key, (3,)))
    step = jax.jit(algorithm.step)
    for t in range(6):
        drawn = federation.draw(KEY, t)
        after, metrics = step(state, drawn)
        present = np.asarray(drawn.cohort)[np.asarray(drawn.weights) > 0]
        absent = np.setdiff1d(np.arange(8), present)
        assert metrics["clients_active"] == len(present)
        assert len(absent) >= 3
        assert_trees_equal(
            jax.tree.map(lambda leaf: leaf[absent], after.clients),  # noqa: B023
            jax.tree.map(lambda leaf: leaf[absent], state.clients),  # noqa: B023
        )
        if len(present):
            moved = np.asarray(after.clients.params != state.clients.params)[present]
            assert moved.any(axis=1).all()
        state = after


def test_partial_participation_still_averages():
    """Masked mixing stays doubly stochastic: without training the mean never moves."""
    federation = TASK.federation(1, participation=participation.uniform(3))
    algorithm = dfedavg(half_square, optax.sgd(0.0), dx.gossip.exponential(8))
    start = algorithm.init(KEY, lambda key: jax.random.normal(key, (3,)))
    state, _ = jax.jit(functools.partial(dx.rollout, algorithm, rounds=60))(start, federation, KEY)
    before, after = np.asarray(start.clients.params), np.asarray(state.clients.params)
    assert np.std(after, axis=0).max() < 0.1 * np.std(before, axis=0).min()


@pytest.mark.some(1)
@pytest.mark.parametrize("order", list(Order))
def test_a_diverged_client_poisons_nobody_when_its_models_are_checked(order):
    def explodes(params, batch, key):
        gradient, _ = jax.grad(half_square, has_aux=True)(params, batch, key)
        bad = batch.inputs[0, 0] == TASK.centers[2, 0]
        return jnp.where(bad, jnp.nan, gradient), {"loss": jnp.float32(1)}

    oracle = dx.local.Oracle(explodes)
    checked = dfedavg(
        oracle, optax.sgd(RATE), dx.gossip.ring(8), order=order, channel=dx.channel.finite_only()
    )
    state, metrics = advance(checked, TASK.federation(2), 6)
    others = np.delete(np.asarray(state.clients.params), 2, axis=0)
    assert np.isfinite(others).all()
    assert metrics["messages_dropped"][-1] == 1
    unchecked = dfedavg(oracle, optax.sgd(RATE), dx.gossip.ring(8), order=order)
    state, _ = advance(unchecked, TASK.federation(2), 6)
    assert np.isnan(np.asarray(state.clients.params)).any(axis=1).sum() > 1


def test_a_perfect_channel_is_no_channel_and_a_lost_model_is_mixed_by_nobody():
    ring = dx.gossip.ring(8)
    plain, _ = advance(dfedavg(half_square, optax.sgd(RATE), ring), TASK.federation(2), 3)
    through, _ = advance(
        dfedavg(half_square, optax.sgd(RATE), ring, channel=dx.channel.perfect()),
        TASK.federation(2),
        3,
    )
    assert_trees_close(through.clients.params, plain.clients.params, rtol=1e-5, atol=1e-6)
    alone, _ = advance(
        dfedavg(half_square, optax.sgd(RATE), dx.gossip.identity(8)), TASK.federation(2), 3
    )
    lost, metrics = advance(
        dfedavg(half_square, optax.sgd(RATE), ring, channel=dx.channel.lossy(1.0)),
        TASK.federation(2),
        3,
    )
    assert_trees_close(lost.clients.params, alone.clients.params, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(metrics["messages_lost"], 8.0)
    np.testing.assert_array_equal(metrics["models_sent"], 0.0)


def test_a_channels_memory_stays_with_its_client():
    def apply(messages, weights, state, sending):
        return messages, weights, state + 1, {}

    counting = dx.channel.Channel(lambda message: jnp.int32(0), apply)
    federation = TASK.federation(participation=participation.uniform(3))
    algorithm = dfedavg(half_square, optax.sgd(RATE), dx.gossip.ring(8), channel=counting)
    state, _ = advance(algorithm, federation, 5)
    times = np.zeros(8, int)
    for t in range(5):
        times[np.asarray(federation.draw(KEY, t).cohort)] += 1
    np.testing.assert_array_equal(state.clients.channel, times)


@pytest.mark.slow
def test_four_fifths_dropping_out_still_trains():
    task = regression()
    rule = participation.dropout(participation.everyone(), 0.8)
    federation = dx.Federation(
        task.data, task.partition, batch_size=8, local_steps=4, participation=rule
    )
    algorithm = dfedavg(softmax_loss, optax.sgd(0.3), dx.gossip.exponential(8))
    state, _ = advance(algorithm, federation, 80, task.params)
    mean = dx.weighted_mean(state.clients.params)
    assert softmax_loss(mean, task.data.fetch(jnp.arange(240)), None)[1]["accuracy"] > 0.85


def test_a_function_gives_independent_starts():
    algorithm = dfedavg(half_square, optax.sgd(RATE), dx.gossip.ring(8))
    state = algorithm.init(KEY, lambda key: jax.random.normal(key, (3,)))
    assert len(np.unique(np.asarray(state.clients.params))) == 24


def test_a_sweep_over_rates_is_one_program():
    def final(rate):
        algorithm = dfedavg(half_square, optax.sgd(rate), dx.gossip.ring(8))
        return dx.rollout(algorithm, algorithm.init(KEY, START), TASK.federation(2), KEY, 3)[
            0
        ].clients.params

    rates = jnp.array([0.01, 0.1, 0.5])
    swept = jax.jit(jax.vmap(final))(rates)
    for row, rate in enumerate(rates):
        np.testing.assert_allclose(swept[row], jax.jit(final)(rate), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("make", [dfedavg, dpsgd])
def test_bad_arguments_are_refused(make):
    ring = dx.gossip.ring(8)
    with pytest.raises(TypeError, match=r"mixer must be a Mixer.*dflax.gossip.ring"):
        make(half_square, optax.sgd(0.1), np.eye(8))
    with pytest.raises(TypeError, match="channel must be of type Channel, not str"):
        make(half_square, optax.sgd(0.1), ring, channel="lossy")
    with pytest.raises(TypeError, match="must be an array of real numbers, got int32"):
        make(half_square, optax.sgd(0.1), ring).init(KEY, jnp.ones(3, jnp.int32))
    with pytest.raises(TypeError, match="order must be one of"):
        make(half_square, optax.sgd(0.1), ring, order="adapt")
    with pytest.raises(TypeError, match="optimizer must be an optax optimiser"):
        make(half_square, 0.1, ring)
    algorithm = make(half_square, optax.sgd(0.1), dx.gossip.ring(5))
    state = algorithm.init(KEY, START)
    for rule in (participation.everyone(), participation.uniform(3)):
        drawn = TASK.federation(participation=rule).draw(KEY, 0)
        with pytest.raises(ValueError, match=r"mixer must mix the federation's 8 clients.*for 5"):
            jax.jit(algorithm.step)(state, drawn)
