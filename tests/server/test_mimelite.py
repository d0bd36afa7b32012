import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from tasks import assert_trees_close, half_square, quadratics, regression, softmax_loss

import dflax as dx
from dflax.server import fixed_adam, fixed_momentum, mimelite

KEY = jax.random.key(0)
TASK = quadratics()
FEDERATION = TASK.federation(3)


def end(algorithm, rounds=4, federation=FEDERATION, params=None):
    state = algorithm.init(KEY, jnp.ones(3) if params is None else params)
    return dx.rollout(algorithm, state, federation, KEY, rounds)[0]


@pytest.mark.parametrize("name", ["momentum", "adam"])
def test_it_is_the_papers_algorithm(name):
    """In float64, with statistics fixed through the local steps and tracked at the server's model."""
    base = fixed_momentum(0.9) if name == "momentum" else fixed_adam(0.9, 0.99, 1e-2, initial=0.5)
    state = end(mimelite(half_square, optax.sgd(0.1), base, server_rate=0.8))
    c = TASK.centers.astype(np.float64)
    x, m, v = np.ones(3), np.zeros(3), np.full(3, 0.5)
    for _ in range(4):
        y = np.tile(x, (6, 1))
        for _ in range(3):
            step = 0.1 * (y - c) + 0.9 * m
            y = y - 0.1 * (step if name == "momentum" else step / (np.sqrt(v) + 1e-2))
        g = (x - c).mean(0)
        x = x + 0.8 * (y.mean(0) - x)
        m, v = 0.9 * m + 0.1 * g, 0.99 * v + 0.01 * g**2
    np.testing.assert_allclose(state.server.params, x, rtol=1e-4, atol=1e-6)
    memory = state.server.memory if name == "momentum" else state.server.memory[0]
    np.testing.assert_allclose(memory, m, rtol=1e-4, atol=1e-6)
    if name == "adam":
        np.testing.assert_allclose(state.server.memory[1], v, rtol=1e-4)


def test_without_momentum_it_is_fedavg():
    task = regression()
    federation = dx.Federation(task.data, task.partition, batch_size=6, local_steps=2)
    ours = end(
        mimelite(softmax_loss, optax.sgd(0.2), fixed_momentum(0.0)), 3, federation, task.params
    )
    theirs = end(dx.server.fedavg(softmax_loss, optax.sgd(0.2)), 3, federation, task.params)
    assert_trees_close(ours.server.params, theirs.server.params, rtol=1e-5, atol=1e-6)


def test_an_epoch_of_minibatches_gives_the_clients_full_gradients():
    task = regression(clients=4, examples=40)
    sizes = np.full(4, 10)
    owned = np.split(np.arange(40), np.cumsum(sizes)[:-1])
    federation = dx.Federation(task.data, dx.data.from_indices(owned), batch_size=5, local_steps=2)
    algorithm = mimelite(softmax_loss, optax.sgd(0.1), fixed_momentum(0.0))
    params = task.params | {"b": jnp.asarray([0.3, -0.2, 0.1])}
    state = end(algorithm, 1, federation, params)
    full, _ = jax.jit(dx.local.gradient(softmax_loss).evaluate)(
        params, task.data.fetch(jnp.arange(40)), KEY
    )
    assert_trees_close(state.server.memory, full, rtol=1e-4, atol=1e-6)


@pytest.mark.slow
def test_clients_are_dealt_over_devices_and_all_numbers_can_be_swept():
    def made(beta, rate):
        return mimelite(half_square, optax.sgd(rate), fixed_momentum(beta))

    def swept(beta, rate):
        return end(made(beta, rate), 3).server.params

    points = jnp.asarray([[0.0, 0.1], [0.9, 0.3]])
    found = jax.jit(jax.vmap(swept))(*points.T)
    for point, params in zip(points.tolist(), found, strict=True):
        algorithm = made(*point)
        state, _ = dx.run(
            algorithm,
            algorithm.init(KEY, jnp.ones(3)),
            FEDERATION,
            rounds=3,
            key=KEY,
            mesh=dx.client_mesh(),
        )
        np.testing.assert_allclose(params, state.server.params, rtol=1e-5, atol=1e-6)


def test_digits_are_learnt_with_the_servers_momentum():
    data = dx.data.digits()
    partition = dx.data.dirichlet(np.asarray(data.labels), 10, 0.3, seed=0)
    federation = dx.Federation(data, partition, batch_size=16, local_steps=5)
    model = dx.models.Linear(10)
    loss = dx.losses.classification(model.apply)
    params = model.init(KEY, data.example)["params"]
    state = end(mimelite(loss, optax.sgd(0.3)), 40, federation, params)
    assert dx.evaluation.on(loss, data.test)(state.server.params)["accuracy"] > 0.88


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: fixed_momentum(1.0), "beta must be a finite number"),
        (lambda: fixed_adam(b2=1.0), "b2 must be a finite number"),
        (lambda: fixed_adam(eps=0.0), "eps must be a finite number"),
        (
            lambda: mimelite(half_square, optax.sgd(0.1), optax.adam(0.1)),
            "base must be of type Base",
        ),
        (lambda: mimelite(half_square, optax.sgd(0.1), server_rate=-1.0), "server_rate must be"),
        (lambda: mimelite(half_square, 0.1), "optimizer must be an optax optimiser"),
    ],
)
def test_bad_arguments_are_refused(make, message):
    with pytest.raises((ValueError, TypeError), match=message):
        make()
