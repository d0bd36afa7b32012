"""What every method with a server owes its user: absent clients, meshes, and learning."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from tasks import assert_trees_close, regression, softmax_loss

import dflax as dx
from dflax import evaluation, participation, server

KEY = jax.random.key(0)
TASK = regression()
N = 8
RULE = participation.dropout(participation.uniform(3), 0.3)
SOURCE = dx.Federation(TASK.data, TASK.partition, batch_size=8, local_steps=3, participation=RULE)
# One for each path through the building blocks.
PATHS = {
    "scaffold_m_vr": lambda rate: server.scaffold_m_vr(softmax_loss, optax.sgd(rate), N),
    "fedspeed": lambda rate: server.fedspeed(softmax_loss, optax.sgd(rate), N, relaxed=0.1),
    "fedsmoo": lambda rate: server.fedsmoo(softmax_loss, optax.sgd(rate), N),
    "fedadmm": lambda rate: server.fedadmm(softmax_loss, optax.sgd(rate), N),
}


@functools.cache
def gradients():
    return dx.local.client_gradients(softmax_loss, SOURCE, TASK.params)


def begin(name, algorithm):
    given = (gradients(),) if name.endswith("vr") else ()
    return algorithm.init(KEY, TASK.params, *given)


@functools.cache
def stepwise(name, rounds=4):
    """The states of a run, from the one `init` made, and who reported in each round."""
    algorithm = PATHS[name](jnp.float32(0.1))
    step = jax.jit(lambda state, source, t: algorithm.step(state, source.draw(KEY, t))[0])
    states = [begin(name, algorithm)]
    for t in range(rounds):
        states.append(step(states[-1], SOURCE, jnp.int32(t)))
    return states


@pytest.mark.some(2)
@pytest.mark.parametrize("name", PATHS)
def test_who_does_not_report_keeps_its_state_bit_for_bit(name):
    states = stepwise(name)
    absences = 0
    for t, (before, after) in enumerate(itertools.pairwise(states)):
        drawn = SOURCE.draw(KEY, t)
        reported = np.asarray(drawn.cohort)[np.asarray(drawn.weights) > 0]
        others = np.setdiff1d(np.arange(N), reported)
        absences += 3 - len(reported)

        def same(old, new, rows=others):
            np.testing.assert_array_equal(np.asarray(old)[rows], np.asarray(new)[rows])

        jax.tree.map(same, before.clients, after.clients)
        moved = jax.tree.leaves(
            jax.tree.map(
                lambda old, new: np.abs(np.asarray(new - old)[reported]).max(initial=0.0),  # noqa: B023
                before.clients,
                after.clients,
            )
        )
        assert not len(reported) or max(moved) > 0
    assert absences > 0


@pytest.mark.slow
@pytest.mark.some(1)
@pytest.mark.parametrize("name", PATHS)
def test_a_mesh_gives_what_a_single_device_gives(name):
    algorithm = PATHS[name](0.1)
    dealt, _ = dx.run(
        algorithm, begin(name, algorithm), SOURCE, rounds=4, key=KEY, mesh=dx.client_mesh()
    )
    assert_trees_close(dealt, stepwise(name)[-1], rtol=1e-4, atol=1e-5)


@functools.cache
def digits():
    data = dx.data.digits()
    partition = dx.data.dirichlet(np.asarray(data.labels), 20, 0.1, seed=0)
    source = dx.Federation(
        data,
        partition,
        batch_size=16,
        local_steps=10,
        participation=participation.uniform(5),
        weights=jnp.ones(20),
    )
    model = dx.models.Linear(classes=10)
    return data, source, model, dx.losses.classification(model.apply)


BAR = 0.8
LEARNERS = {
    "fedprox": lambda loss, sgd: server.fedprox(loss, sgd, pull=0.01),
    "fedsam": lambda loss, sgd: server.fedsam(loss, sgd, radius=0.1),
    "scaffold": lambda loss, sgd: server.scaffold(loss, sgd, 20),
    "fedgamma": lambda loss, sgd: server.fedgamma(loss, sgd, 20, radius=0.1),
    "fedcm": lambda loss, sgd: server.fedcm(loss, sgd, beta=0.3),
    "mofedsam": lambda loss, sgd: server.mofedsam(loss, sgd, beta=0.3),
    "scaffold_m": lambda loss, sgd: server.scaffold_m(loss, sgd, 20, beta=0.3),
    "fedavg_m_vr": lambda loss, sgd: server.fedavg_m_vr(loss, sgd, beta=0.3, server_rate=0.5),
    "scaffold_m_vr": lambda loss, sgd: server.scaffold_m_vr(
        loss, sgd, 20, beta=0.3, server_rate=0.5
    ),
    "feddyn": lambda loss, sgd: server.feddyn(loss, sgd, 20),
    "fedspeed": lambda loss, sgd: server.fedspeed(loss, sgd, 20),
    "fedsmoo": lambda loss, sgd: server.fedsmoo(loss, sgd, 20),
    "fedadmm": lambda loss, sgd: server.fedadmm(loss, sgd, 20, pull=0.1),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", LEARNERS)
def test_it_learns_digits_from_clients_with_few_labels(name):
    data, source, model, loss = digits()
    params = model.init(KEY, data.example)["params"]
    algorithm = LEARNERS[name](loss, optax.sgd(0.1))
    given = ()
    if name.endswith("vr"):
        given = (dx.local.client_gradients(loss, source, params),)
    state = algorithm.init(KEY, params, *given)
    state, _ = jax.jit(functools.partial(dx.rollout, algorithm, rounds=60))(state, source, KEY)
    measured = evaluation.on(loss, data.test)(state.server.params)
    assert measured["accuracy"] > BAR, float(measured["accuracy"])
