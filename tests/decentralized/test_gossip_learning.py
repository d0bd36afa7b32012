import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from tasks import assert_trees_close, half_square, quadratics

import dflax as dx
from dflax import participation
from dflax.decentralized import gossip_learning
from dflax.gossip import Mixing
from dflax.gossip.age_weighted import Aged, age_weighted, random_peers

KEY = jax.random.key(0)
N = 8
TASK = quadratics(N)


def advance(rounds, source, rate=0.3):
    method = gossip_learning(half_square, optax.sgd(rate), N)
    rollout = jax.jit(functools.partial(dx.rollout, method, rounds=rounds))
    return rollout(method.init(KEY, jnp.ones(3)), source, KEY)


def test_models_are_trained_sent_and_merged_by_age():
    present = np.random.default_rng(0).random((6, N)) < 0.7
    source = TASK.federation(participation=participation.present(jnp.asarray(present)))
    state, metrics = advance(6, source)
    x, age = np.ones((N, 3)), np.zeros(N)
    for t, there in enumerate(present):
        key = source.draw(KEY, jnp.int32(t)).key
        peers = np.asarray(random_peers(key, N))
        assert (peers != np.arange(N)).all()
        x = np.where(there[:, None], x - 0.3 * (x - TASK.centers), x)
        age = age + there
        rows, ages = x.copy(), age.copy()
        for i in np.flatnonzero(there):
            got = [j for j in np.flatnonzero(there) if peers[j] == i]
            group = [i, *got]
            rows[i] = age[group] @ x[group] / age[group].sum()
            ages[i] = age[group].max()
        x, age = rows, ages
    np.testing.assert_allclose(state.clients.params, x, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(state.clients.memory, age)
    # An age travels with every model of three numbers.
    np.testing.assert_allclose(metrics["models_sent"], present.sum(1) * 4 / 3, rtol=1e-6)


def test_wandering_models_come_nearer_to_the_optimum_than_lonely_ones():
    state, _ = advance(400, TASK.federation(), rate=0.02)
    far = np.square(TASK.centers - TASK.centers.mean(0)).sum(1).mean()
    near = np.square(np.asarray(state.clients.params) - TASK.centers.mean(0)).sum(1).mean()
    assert near < 0.1 * far


def test_a_merge_keeps_models_that_nobody_trained_and_those_of_the_absent():
    models = Aged(jnp.arange(6.0).reshape(3, 2), jnp.zeros(3))
    mixer = age_weighted(3)
    after, _, _ = mixer.apply(models, mixer.init(models), Mixing(KEY, 0))
    np.testing.assert_array_equal(after.model, models.model)
    aged = Aged(models.model.at[1].set(jnp.nan), jnp.array([1.0, 5.0, 2.0]))
    after, _, metrics = mixer.apply(aged, (), Mixing(KEY, 0, jnp.array([1.0, 0.0, 1.0])))
    np.testing.assert_array_equal(after.age[1], 5.0)
    assert np.isfinite(np.asarray(after.model)[[0, 2]]).all()
    assert np.isnan(np.asarray(after.model)[1]).all()
    assert float(metrics["models_sent"]) == 2.0


@pytest.mark.slow
def test_on_eight_devices_and_in_a_sweep_it_is_the_same():
    plain, _ = advance(4, TASK.federation())
    with jax.set_mesh(dx.client_mesh()):
        dealt, _ = advance(4, TASK.federation())
    assert_trees_close(dealt.clients.params, plain.clients.params, rtol=1e-5, atol=1e-6)

    def final(rate):
        method = gossip_learning(half_square, optax.sgd(rate), N)
        state = method.init(KEY, jnp.ones(3))
        return dx.rollout(method, state, TASK.federation(), KEY, 4)[0].clients.params

    swept = jax.jit(jax.vmap(final))(jnp.array([0.3, 0.1]))
    np.testing.assert_allclose(swept[0], plain.clients.params, rtol=1e-5, atol=1e-6)
    assert np.abs(np.asarray(swept[1] - swept[0])).max() > 1e-3


def test_bad_arguments_are_refused():
    with pytest.raises(ValueError, match="clients must be an integer"):
        gossip_learning(half_square, optax.sgd(0.1), 1)
    with pytest.raises(TypeError, match="optimizer"):
        gossip_learning(half_square, "sgd", N)
    with pytest.raises(TypeError, match="models must be"):
        age_weighted(3).init(jnp.ones((3, 2)))
