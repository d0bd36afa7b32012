"""Anarchic federated learning on quadratics, against the limits that theory predicts."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from quadratic_rounds import LOSS, federation

from dflax import asynchronous, recipes

N, KEY = 10, jax.random.key(0)
TARGETS = np.arange(N, dtype=np.float64)
LINEAR = np.linspace(1, 4, N)


def limit(memory, rounds=20_000, **arrivals):
    """Mean and deviation of the model over the second half, and how often each client came."""
    table = asynchronous.arrivals(N, 4, rounds, delay=5, memory=memory, seed=7, **arrivals)
    cut = asynchronous.waves(table, 4)
    source = federation(10, N, np.ones((N, 1, 1)), TARGETS[:, None])
    algorithm = recipes.afa(LOSS, 0.05, 0.02, cut, memory=memory)

    @jax.jit
    def run(source):
        def one(state, index):
            state, _ = algorithm.step(state, source.draw(KEY, index))
            return state, state.server.params[0]

        return jax.lax.scan(one, algorithm.init(KEY, jnp.zeros(1)), jnp.arange(cut.rounds))[1]

    models = np.asarray(run(asynchronous.join(source, cut)), np.float64)[cut.rounds // 2 :]
    return models.mean(), models.std(), table.frequencies()


def shrunk(steps):
    """c(K): what K steps make of the distance to the client's own optimum, a step."""
    return (1 - 0.95**steps) / (0.05 * steps)


@pytest.mark.slow
@pytest.mark.parametrize("steps", [np.full(N, 5), np.arange(1, N + 1)], ids=["equal", "unequal"])
def test_without_a_memory_the_limit_leans_to_those_who_come_often(steps):
    mean, _, often = limit(False, probabilities=LINEAR, local_steps=steps)
    share = often * shrunk(steps)
    assert mean == pytest.approx(share @ TARGETS / share.sum(), abs=0.04)
    assert mean == pytest.approx(5.4016 if (steps == 5).all() else 5.2231, abs=0.05)


@pytest.mark.parametrize(
    ("steps", "wanted"), [(np.full(N, 5), 4.5), (np.arange(1, N + 1), 4.2984)], ids=["equal", "un"]
)
def test_with_a_memory_the_limit_does_not_depend_on_who_comes(steps, wanted):
    mean, deviation, _ = limit(True, 3000, probabilities=LINEAR, local_steps=steps)
    assert mean == pytest.approx(wanted, abs=1e-4)
    assert deviation < 1e-4
    share = shrunk(steps)
    assert mean == pytest.approx(share @ TARGETS / share.sum(), abs=1e-4)


def test_worker_rates_do_not_matter_to_the_scale_of_one_step():
    table = asynchronous.waves(asynchronous.arrivals(N, N, 1, seed=0))
    source = asynchronous.join(federation(1, N, np.ones((N, 1, 1)), TARGETS[:, None]), table)
    for rate in (0.01, 0.1):
        algorithm = recipes.afa(LOSS, rate, 0.5, table)
        state, _ = jax.jit(algorithm.step)(algorithm.init(KEY, jnp.zeros(1)), source.draw(KEY, 0))
        # Gradient descent with eta: half of the way to the mean of all targets.
        np.testing.assert_allclose(state.server.params, 2.25, rtol=1e-5)


def test_an_adversary_names_who_comes():
    """Two halves of the clients come in turns."""
    named = np.where(np.arange(400)[:, None] % 2, np.arange(5), np.arange(5, 10))[:, ::-1]
    table = asynchronous.arrivals(N, 5, 400, adversary=named, delay=2, local_steps=(1, 3), seed=0)
    np.testing.assert_array_equal(table.clients.reshape(400, 5), np.sort(named, axis=1))
    drawn = asynchronous.arrivals(N, 5, 400, delay=2, local_steps=(1, 3), seed=0)
    # Everything else is drawn as without one.
    np.testing.assert_array_equal(table.versions, drawn.versions)
    assert (drawn.clients != table.clients).any()
    with pytest.raises(ValueError, match="adversary must name distinct clients in each step"):
        asynchronous.arrivals(3, 2, 1, adversary=np.array([[1, 1]]), seed=0)
    for wrong in (np.array([[0, 3]]), np.array([[0, 1], [0, 1]])):
        with pytest.raises(ValueError, match="adversary must"):
            asynchronous.arrivals(3, 2, 1, adversary=wrong, seed=0)
    with pytest.raises(ValueError, match="probabilities must be None"):
        asynchronous.arrivals(
            3, 2, 1, adversary=np.array([[0, 1]]), probabilities=np.ones(3), seed=0
        )
