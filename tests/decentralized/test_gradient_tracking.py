import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from tasks import (
    assert_trees_close,
    half_square,
    quadratics,
    regression,
    softmax_loss,
)

import dflax as dx
from dflax import participation, topology
from dflax.decentralized import dpsgd, dsgt

KEY = jax.random.key(0)
N = 8
TASK = quadratics(N)
RING = dx.gossip.ring(N)
W = topology.metropolis(topology.ring(N)).dense()


def models(key):
    return jax.random.normal(key, (3,))


def advance(algorithm, source, rounds, params=models):
    return jax.jit(functools.partial(dx.rollout, algorithm, rounds=rounds))(
        algorithm.init(KEY, params), source, KEY
    )


def test_follows_the_published_recursion():
    """From a common model; y^0 = grad f(x^0), one round after a start at 0."""
    algorithm = dsgt(half_square, lambda t: 0.3 * 0.9**t, RING)
    state, metrics = advance(algorithm, TASK.federation(), 6, jnp.ones(3))
    x = np.ones((N, 3))
    g = y = x - TASK.centers
    for t in range(1, 6):
        x = W @ (x - 0.3 * 0.9**t * y)
        y = W @ y + (x - TASK.centers) - g
        g = x - TASK.centers
    np.testing.assert_allclose(state.clients.params, x, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(state.clients.memory.tracker, y, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(state.clients.memory.gradient, g, rtol=1e-5, atol=1e-6)
    lengths = np.linalg.norm(y, axis=1)
    np.testing.assert_allclose(metrics["tracker_norm"][-1], lengths.mean(), rtol=1e-5)


@pytest.mark.parametrize("mixer", [RING, dx.gossip.one_peer_exponential(N)])
def test_everyone_reaches_the_optimum_where_dpsgd_stays_apart(mixer):
    optimum = np.tile(TASK.centers.mean(0), (N, 1))
    state, _ = advance(dsgt(half_square, 0.1, mixer), TASK.federation(), 500)
    np.testing.assert_allclose(state.clients.params, optimum, atol=1e-5)
    biased, _ = advance(dpsgd(half_square, optax.sgd(0.1), mixer), TASK.federation(), 500)
    assert np.abs(biased.clients.params - optimum).max() > 0.05


def test_the_mean_tracker_is_the_mean_gradient_whoever_takes_part():
    task = regression(N)
    rule = participation.dropout(participation.stragglers(participation.uniform(5), 0.5), 0.3)
    source = dx.Federation(
        task.data, task.partition, batch_size=4, local_steps=2, participation=rule
    )
    algorithm = dsgt(softmax_loss, 0.2, RING)
    state = algorithm.init(KEY, task.params)
    step = jax.jit(algorithm.step)
    for t in range(6):
        state, _ = step(state, source.draw(KEY, t))
        tracker, own = (dx.weighted_mean(tree) for tree in state.clients.memory)
        assert_trees_close(tracker, own, rtol=1e-4, atol=1e-6)
    assert optax.tree.norm(own) > 1e-3


def test_all_minibatches_of_a_round_are_seen_at_one_model():
    task = regression(N)
    options = {"weights": jnp.ones(N), "batch_size": 4}
    algorithm = dsgt(softmax_loss, 0.2, RING)
    source = dx.Federation(task.data, task.partition, local_steps=3, **options)
    state, _ = advance(algorithm, source, 1, task.params)
    drawn = source.draw(KEY, 0).assignments.minibatches
    batch = task.data.fetch(drawn[5].reshape(-1))
    expected, _ = jax.jit(jax.grad(softmax_loss, has_aux=True))(task.params, batch, None)
    kept = jax.tree.map(lambda leaf: leaf[5], state.clients.memory.gradient)
    assert_trees_close(kept, expected, rtol=1e-4, atol=1e-6)


@pytest.mark.slow
def test_trains_digits():
    data = dx.data.digits()
    partition = dx.data.dirichlet(np.asarray(data.labels), 8, 0.3, seed=0)
    source = dx.Federation(data, partition, batch_size=32, local_steps=2)
    model = dx.models.MLP((), classes=10)
    loss = dx.losses.classification(model.apply)
    params = model.init(KEY, data.example)["params"]
    state, _ = advance(dsgt(loss, 0.3, RING), source, 80, params)
    measure = dx.evaluation.client_models(dx.evaluation.on(loss, data.test))
    assert measure(state)["accuracy_min"] > 0.8


@pytest.mark.slow
def test_on_devices_and_in_a_sweep_as_alone():
    source = quadratics(16).federation(participation=participation.uniform(8))

    def final(rate):
        algorithm = dsgt(half_square, rate, dx.gossip.ring(16))
        return dx.rollout(algorithm, algorithm.init(KEY, models), source, KEY, 4)[0].clients

    alone = jax.jit(final)(0.2)
    swept = jax.jit(jax.vmap(final))(jnp.asarray([0.0, 0.2]))
    assert_trees_close(jax.tree.map(lambda leaf: leaf[1], swept), alone, rtol=1e-5, atol=1e-6)
    with jax.set_mesh(dx.client_mesh()):
        dealt = jax.jit(final)(0.2)
    assert_trees_close(dealt, alone, rtol=1e-5, atol=1e-6)


def test_bad_arguments_are_refused():
    with pytest.raises(ValueError, match=r"rate must be .*got -0.1"):
        dsgt(half_square, -0.1, RING)
    with pytest.raises(ValueError, match="mixer must keep the mean of what gradient tracking"):
        dsgt(half_square, 0.1, dx.gossip.push_sum(topology.ring(N)))
