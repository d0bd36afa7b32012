import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from tasks import assert_trees_close, half_square, quadratics, regression, softmax_loss

import dflax as dx
from dflax.local import travel
from dflax.participation import Cohort
from dflax.server import fednova

KEY = jax.random.key(0)
TASK = quadratics()
EFFORT = jnp.asarray([1.0, 0.1, 0.3, 1.0, 0.5, 0.2])
STEPS = np.array([10, 1, 3, 10, 5, 2])
WEIGHTS = np.arange(1.0, 7.0)
FEDERATION = TASK.federation(
    10,
    weights=jnp.asarray(WEIGHTS),
    participation=lambda key, index, clients: Cohort(None, None, EFFORT),
)


def end(algorithm, rounds, federation=FEDERATION, params=None):
    state = algorithm.init(KEY, jnp.ones(3) if params is None else params)
    return dx.rollout(algorithm, state, federation, KEY, rounds)


@pytest.mark.parametrize("done", [0, 1, 7])
def test_travel_has_the_papers_closed_forms(done):
    eta, m, mu = 0.1, 0.9, 0.5
    plain = travel(optax.sgd(eta), 7, done)
    np.testing.assert_allclose(plain, eta * done, rtol=1e-6)
    heavy = travel(optax.sgd(eta, momentum=m), 7, done)
    expected = eta * (done - m * (1 - m**done) / (1 - m)) / (1 - m)
    np.testing.assert_allclose(heavy, expected, rtol=1e-5, atol=1e-7)
    pulled = travel(optax.sgd(eta), 7, done, pull=mu)
    np.testing.assert_allclose(pulled, (1 - (1 - eta * mu) ** done) / mu, rtol=1e-5)


@pytest.mark.parametrize("pull", [None, 0.5])
def test_a_round_is_the_papers_formula(pull):
    """f_i = |x - c_i|^2 / 2: y_i is known in closed form."""
    eta = 0.1
    state, metrics = end(fednova(half_square, optax.sgd(eta), pull=pull), 1)
    mu, c, x = pull or 0.0, TASK.centers.astype(np.float64), np.ones(3)
    shrink = 1 - (1 - eta * (1 + mu)) ** STEPS
    change = shrink[:, None] * ((c + mu * x) / (1 + mu) - x)
    length = eta * STEPS if pull is None else (1 - (1 - eta * mu) ** STEPS) / mu
    p = WEIGHTS / WEIGHTS.sum()
    expected = x + (p @ length) * (p @ (change / length[:, None]))
    np.testing.assert_allclose(state.server.params, expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(metrics["travel"][0], p @ length, rtol=1e-5)


@pytest.mark.parametrize("momentum", [None, 0.5])
def test_with_stragglers_it_finds_the_optimum_that_fedavg_misses(momentum):
    optimizer = optax.sgd(0.005, momentum=momentum)
    optimum = WEIGHTS @ TASK.centers / WEIGHTS.sum()
    biased = (WEIGHTS * STEPS) @ TASK.centers / (WEIGHTS @ STEPS)
    ours, _ = end(fednova(half_square, optimizer), 600)
    theirs, _ = end(dx.server.fedavg(half_square, optimizer), 600)
    distance = np.linalg.norm(optimum - biased)
    assert np.linalg.norm(ours.server.params - optimum) < 0.1 * distance
    assert np.linalg.norm(theirs.server.params - optimum) > 0.7 * distance
    if momentum is None:
        assert np.linalg.norm(theirs.server.params - biased) < 0.1 * distance


@pytest.mark.slow
def test_equal_steps_are_fedavg():
    task = regression()
    federation = dx.Federation(task.data, task.partition, batch_size=6, local_steps=3)
    descent = optax.sgd(0.2, momentum=0.9)
    ours, _ = end(fednova(softmax_loss, descent), 3, federation, task.params)
    theirs, _ = end(dx.server.fedavg(softmax_loss, descent), 3, federation, task.params)
    assert_trees_close(ours.server.params, theirs.server.params, rtol=1e-5, atol=1e-6)
    algorithm = fednova(softmax_loss, descent)
    start = algorithm.init(KEY, task.params)
    dealt, _ = dx.run(algorithm, start, federation, rounds=3, key=KEY, mesh=dx.client_mesh())
    assert_trees_close(ours.server.params, dealt.server.params, rtol=1e-5, atol=1e-6)


@pytest.mark.slow
def test_digits_are_learnt_by_stragglers():
    data = dx.data.digits()
    partition = dx.data.dirichlet(np.asarray(data.labels), 6, 0.3, seed=0)
    federation = dx.Federation(
        data, partition, batch_size=16, local_steps=10, participation=FEDERATION.participation
    )
    model = dx.models.Linear(10)
    loss = dx.losses.classification(model.apply)
    params = model.init(KEY, data.example)["params"]
    state, _ = end(fednova(loss, optax.sgd(0.2)), 40, federation, params)
    measured = dx.evaluation.on(loss, data.test)(state.server.params)
    assert measured["accuracy"] > 0.88


def test_rate_and_pull_can_be_swept():
    def swept(rate, pull):
        return end(fednova(half_square, optax.sgd(rate), pull=pull), 2)[0].server.params

    points = jnp.asarray([[0.1, 0.5], [0.05, 2.0]])
    found, alone = jax.jit(jax.vmap(swept))(*points.T), jax.jit(swept)
    for point, params in zip(points, found, strict=True):
        np.testing.assert_allclose(params, alone(*point), rtol=1e-5, atol=1e-6)


def test_bad_arguments_are_refused():
    with pytest.raises(ValueError, match="pull must be"):
        fednova(half_square, optax.sgd(0.1), pull=-1.0)
    with pytest.raises(TypeError, match="optimizer must be an optax optimiser"):
        fednova(half_square, 0.1)
    for curved in (optax.adam(0.1), optax.chain(optax.clip_by_global_norm(1.0), optax.sgd(0.1))):
        with pytest.raises(ValueError, match="optimizer must be linear in its gradients"):
            fednova(half_square, curved)


@pytest.mark.slow
def test_other_linear_optimisers_are_taken_and_with_equal_steps_are_fedavg():
    federation = TASK.federation(4, weights=jnp.asarray(WEIGHTS))
    for linear in (
        optax.chain(optax.add_decayed_weights(1e-3), optax.sgd(0.1, 0.9, nesterov=True)),
        lambda t: optax.sgd(0.1 * 0.998**t),
        optax.sgd(lambda k: 0.2 / (k + 1)),
    ):
        ours, theirs = (
            jax.jit(
                lambda make=make, linear=linear: end(make(half_square, linear), 2, federation)[0]
            )()
            for make in (fednova, dx.server.fedavg)
        )
        assert_trees_close(ours.server.params, theirs.server.params, rtol=1e-5, atol=1e-6)
        assert float(jnp.abs(ours.server.params - 1.0).max()) > 0.01
