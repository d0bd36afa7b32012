import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from admm_tasks import KEY, TASK, D, N, objectives, textbook_admm, trajectory
from admm_tasks import federation as exact_federation
from tasks import assert_trees_equal, regression, softmax_loss

import dflax as dx
from dflax import channel, participation
from dflax.server import dual_free_admm

RHO = 20.0


def whole_clients(rule=None, local_steps=60):
    """Every minibatch is a client's whole data: its rows as often as there is room in 60."""
    return dx.Federation(
        TASK.data, TASK.partition, batch_size=60, local_steps=local_steps, participation=rule
    )


def summed_loss(params, batch, key):
    """f_k of the quadratic objectives: 60 examples are each of 3, 4 or 5 rows equally often."""
    loss, metrics = dx.data.least_squares_loss(params, batch)
    distinct = jnp.sum(jnp.abs(batch.labels[:, None] - batch.labels[None]) < 1e-7) / 60
    return loss * 60 / distinct, metrics


@pytest.fixture
def float64():
    with jax.enable_x64(True):
        yield


def descent():
    return optax.sgd(1.0 / (RHO + 40.0))


def test_with_exact_proximal_steps_it_is_textbook_admm(float64):
    data = jax.tree.map(lambda leaf: leaf.astype(np.float64), TASK.data)
    federation = dx.Federation(data, TASK.partition, batch_size=60, local_steps=400)
    algorithm = dual_free_admm(summed_loss, descent(), RHO, N)
    state = algorithm.init(KEY, jnp.zeros(D))
    states = trajectory(algorithm, state, federation, 8)
    models, means = textbook_admm(RHO, 8, np.zeros(D))
    np.testing.assert_allclose(states.clients.memory.params, models, atol=1e-9)
    np.testing.assert_allclose(states.server.params, means, atol=1e-9)


def test_on_quadratics_with_some_clients_a_round_it_is_rerce_fed():
    rule = participation.uniform(4)
    algorithm = dual_free_admm(summed_loss, descent(), RHO, N)
    starts = dx.local.proximal_points(objectives(), jnp.zeros(D), RHO)
    ours = trajectory(
        algorithm, algorithm.init(KEY, jnp.zeros(D), starts), whole_clients(rule, 200), 10
    )
    closed = dx.server.rerce_fed(RHO)
    exact = trajectory(
        closed, closed.init(KEY, jnp.zeros(D), objectives()), exact_federation(rule), 10
    )
    np.testing.assert_allclose(ours.clients.memory.params, exact.clients.params, atol=2e-4)
    np.testing.assert_allclose(ours.server.params, exact.server.params, atol=2e-4)


@pytest.mark.slow
def test_few_inner_steps_reach_the_optimum_too():
    """Where everything stands still the inner steps have converged, however few they are."""
    algorithm = dual_free_admm(summed_loss, descent(), RHO, N)
    state = algorithm.init(KEY, jnp.zeros(D))
    run = jax.jit(functools.partial(dx.rollout, algorithm, rounds=3000))
    state, metrics = run(state, whole_clients(local_steps=3), KEY)
    np.testing.assert_allclose(state.server.params, TASK.optimum, atol=2e-3)
    np.testing.assert_array_equal(metrics["clients_reporting"], N)


def noisy(deviation=0.01, rho=0.3, **options):
    noise = channel.gaussian_noise(deviation)
    return dual_free_admm(
        softmax_loss, optax.sgd(0.3), rho, 8, uplink=noise, downlink=noise, **options
    )


LOGISTIC = regression()


def federation(rule=None):
    return dx.Federation(
        LOGISTIC.data, LOGISTIC.partition, batch_size=16, local_steps=4, participation=rule
    )


@pytest.mark.slow
def test_on_devices_and_within_a_sweep_it_is_the_same():
    source = federation(participation.uniform(4))

    def end(rho, deviation):
        algorithm = noisy(deviation, rho)
        state = algorithm.init(KEY, LOGISTIC.params)
        return dx.rollout(algorithm, state, source, KEY, 4)[0].server.params["w"]

    swept = jax.jit(jax.vmap(end))(jnp.array([0.3, 1.0, 1.0]), jnp.array([0.01, 0.01, 0.1]))
    algorithm = noisy(0.01, 1.0)
    state = algorithm.init(KEY, LOGISTIC.params)
    dealt, _ = dx.run(algorithm, state, source, rounds=4, key=KEY, mesh=dx.client_mesh())
    np.testing.assert_allclose(dealt.server.params["w"], swept[1], rtol=1e-3, atol=1e-4)
    assert not np.allclose(swept[1], swept[2], atol=1e-2)
    assert not np.allclose(swept[0], swept[1], atol=1e-3)


def test_a_lost_broadcast_leaves_the_centre_and_a_lost_message_everything():
    start = noisy().init(KEY, LOGISTIC.params)
    deaf = dual_free_admm(softmax_loss, optax.sgd(0.3), 0.3, 8, downlink=channel.lossy(1.0))
    state, _ = jax.jit(functools.partial(dx.rollout, deaf, rounds=3))(start, federation(), KEY)
    assert_trees_equal(state.clients.memory.center, start.clients.memory.center)
    assert not np.allclose(state.clients.memory.params["w"], 0.0)
    mute = dual_free_admm(softmax_loss, optax.sgd(0.3), 0.3, 8, uplink=channel.lossy(1.0))
    state, _ = jax.jit(functools.partial(dx.rollout, mute, rounds=3))(start, federation(), KEY)
    assert_trees_equal((state.server, state.clients), (start.server, start.clients))


@pytest.mark.slow
def test_over_noisy_links_it_learns_the_digits():
    data = dx.data.digits()
    labels = np.asarray(data.labels)
    source = dx.Federation(
        data,
        dx.data.dirichlet(labels, 16, 0.3, seed=0),
        batch_size=32,
        local_steps=10,
        participation=participation.uniform(8),
    )
    model = dx.models.Linear(classes=10)
    loss = dx.losses.classification(model.apply)
    noise = channel.gaussian_noise(0.02)
    algorithm = dual_free_admm(loss, optax.sgd(0.5), 0.1, 16, uplink=noise, downlink=noise)
    params = model.init(KEY, data.example)["params"]
    state, _ = dx.run(algorithm, algorithm.init(KEY, params), source, rounds=80, key=KEY)
    measured = dx.evaluation.on(loss, data.test)(state.server.params)
    assert measured["accuracy"] > 0.88


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: dual_free_admm(1, optax.sgd(0.1), 1.0, 4), "loss must be a function"),
        (lambda: dual_free_admm(softmax_loss, 0.1, 1.0, 4), "optimizer must be an optax optimiser"),
        (lambda: dual_free_admm(softmax_loss, optax.sgd(0.1), -1.0, 4), "penalty must be a finite"),
        (
            lambda: dual_free_admm(softmax_loss, optax.sgd(0.1), 1.0, 0),
            "clients must be an integer",
        ),
        (
            lambda: dual_free_admm(softmax_loss, optax.sgd(0.1), 1.0, 4, uplink=3),
            "uplink must be of type Channel",
        ),
        (
            lambda: noisy().init(KEY, LOGISTIC.params, dx.replicate(LOGISTIC.params, 7)),
            "starts must have a leading axis of length 8, got 7",
        ),
    ],
)
def test_bad_arguments_are_refused(call, message):
    with pytest.raises((TypeError, ValueError), match=message):
        call()
