import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn
from tasks import assert_trees_close, half_square, quadratics, regression, softmax_loss

import dflax as dx
from dflax import evaluation, topology
from dflax.decentralized import merge, single_merging
from dflax.gossip import Mixing

KEY = jax.random.key(0)
TASK = quadratics(clients=6)
START = jnp.ones(3)
SGD = optax.sgd(0.1)
THREE_PAIRS = topology.from_edges(6, np.array([[0, 1], [2, 3], [4, 5]]), disconnected=True)


def rollout(algorithm, federation, rounds, start=START):
    run = jax.jit(functools.partial(dx.rollout, algorithm, rounds=rounds))
    return run(algorithm.init(KEY, start), federation, KEY)


@pytest.mark.some(1)
@pytest.mark.parametrize("r", [0.0, 0.4, 5.0])
def test_on_quadratics_merging_equals_averaging_in_every_round(r):
    """With mixing that keeps the mean: mean <- (1-h)^K mean + (1 - (1-h)^K) mean of c."""
    algorithm = single_merging(half_square, SGD, 6, r, symmetric=True)
    state, _ = rollout(algorithm, TASK.federation(4), 7)
    shrink = 0.9 ** (4 * 7)
    center = TASK.centers.mean(0)
    np.testing.assert_allclose(merge(state), center + shrink * (1 - center), rtol=1e-4, atol=1e-5)
    server, _ = rollout(dx.server.fedavg(half_square, SGD), TASK.federation(4), 7)
    np.testing.assert_allclose(merge(state), server.server.params, rtol=1e-4, atol=1e-5)


def test_two_nodes_by_hand():
    """Centers 0 and 2, h = 0.1, K = 1 from 0: the means are 0.1, 0.19, 0.271."""
    data = dx.data.Dataset(jnp.array([[0.0], [2.0]]), jnp.zeros(2, jnp.int32))
    owned = dx.data.from_indices([np.array([0]), np.array([1])])
    source = dx.Federation(data, owned, batch_size=1, local_steps=1)
    algorithm = single_merging(half_square, SGD, 2, 0.5, symmetric=True)
    for rounds, mean in ((1, 0.1), (2, 0.19), (3, 0.271)):
        state, _ = rollout(algorithm, source, rounds, jnp.zeros(1))
        np.testing.assert_allclose(merge(state), [mean], rtol=1e-6)
    # One exact round more changes nothing of the merged model.
    whole = dx.gossip.complete(2)
    mixed = whole.apply(state.clients.params, whole.init(state.clients.params), Mixing(KEY, 0))[0]
    np.testing.assert_allclose(merge(mixed), merge(state), rtol=1e-6)


@pytest.mark.parametrize("r", [0.2, 0.7])
def test_two_opposite_values_keep_2_1_minus_r_of_their_squares(r):
    mixer = dx.gossip.random_neighbours(2, r)
    values = jnp.array([[1.0], [-1.0]])

    def squares(key):
        return jnp.square(mixer.apply(values, mixer.init(values), Mixing(key, 0))[0]).sum()

    found = jax.jit(jax.vmap(squares))(jax.random.split(KEY, 20_000))
    np.testing.assert_allclose(found.mean(), 2 * (1 - r), atol=4 * float(found.std()) / 141)


def test_without_communication_clients_end_at_their_own_optima():
    state, metrics = rollout(single_merging(half_square, SGD, 6, 0.0), TASK.federation(4), 40)
    np.testing.assert_allclose(state.clients.params, TASK.centers, rtol=1e-4, atol=1e-4)
    np.testing.assert_array_equal(metrics["models_sent"], 0.0)


def test_hearing_everyone_is_averaging_and_a_switch_merges_in_the_last_round():
    everyone = single_merging(half_square, SGD, 6, 5.0)
    state, _ = rollout(everyone, TASK.federation(2), 3)
    np.testing.assert_allclose(state.clients.params, np.tile(merge(state), (6, 1)), rtol=1e-5)
    late = single_merging(half_square, SGD, 6, topology.intensity.switched(0.3, 5.0, 8, 1.0))
    state, metrics = rollout(late, TASK.federation(2), 8)
    np.testing.assert_allclose(state.clients.params, np.tile(merge(state), (6, 1)), rtol=1e-5)
    assert (np.asarray(metrics["models_sent"])[:-1] <= 6).all()
    assert metrics["models_sent"][-1] == 30
    early, _ = rollout(late, TASK.federation(2), 7)
    assert np.ptp(np.asarray(early.clients.params), axis=0).max() > 0.1


@pytest.mark.parametrize("symmetric", [False, True])
def test_a_client_hears_r_others_on_average(symmetric):
    algorithm = single_merging(half_square, SGD, 6, 0.2, symmetric=symmetric)
    _, metrics = rollout(algorithm, TASK.federation(), 2000)
    # 2000 rounds of 1.2 models on average; a pairing sends them two at a time.
    np.testing.assert_allclose(np.mean(metrics["models_sent"]), 6 * 0.2, rtol=0.08)


def test_a_base_graph_restricts_who_is_heard():
    """On a ring without own steps the middle of three neighbours is all that reaches a client."""
    algorithm = single_merging(half_square, optax.sgd(0.0), 6, 2.0, base=topology.ring(6))
    start = jax.vmap(lambda i: jnp.full(3, i))(jnp.arange(6.0))
    state = algorithm.init(KEY, START)
    state = state._replace(clients=state.clients._replace(params=start))
    state, _ = jax.jit(algorithm.step)(state, TASK.federation().draw(KEY, 0))
    expected = (np.roll(start, 1, 0) + start + np.roll(start, -1, 0)) / 3
    np.testing.assert_allclose(state.clients.params, expected, rtol=1e-5)


def test_a_disconnected_base_passes_when_asked_for():
    algorithm = single_merging(
        half_square, optax.sgd(0.0), 6, 5.0, base=THREE_PAIRS, disconnected=True
    )
    start = jax.vmap(lambda i: jnp.full(3, i))(jnp.arange(6.0))
    state = algorithm.init(KEY, START)
    state = state._replace(clients=state.clients._replace(params=start))
    state, _ = jax.jit(algorithm.step)(state, TASK.federation().draw(KEY, 0))
    means = jnp.repeat(start.reshape(3, 2, 3).mean(1), 2, axis=0)
    np.testing.assert_allclose(state.clients.params, means, rtol=1e-5)


@pytest.mark.slow
def test_the_merged_model_of_any_round_is_measured_without_feeding_it_back():
    task = regression()
    federation = dx.Federation(task.data, task.partition, batch_size=8, local_steps=5)
    algorithm = single_merging(softmax_loss, optax.sgd(0.3), 8, 0.2)
    measured = evaluation.together(
        evaluation.client_models(evaluation.on(softmax_loss, task.data)),
        evaluation.mean_model(evaluation.on(softmax_loss, task.data)),
    )
    options = {"rounds": 12, "key": KEY}
    state, history = dx.run(
        algorithm, algorithm.init(KEY, task.params), federation, evaluate=measured, **options
    )
    plain, _ = dx.run(algorithm, algorithm.init(KEY, task.params), federation, **options)
    assert_trees_close(state, plain, rtol=1e-6, atol=1e-7)
    merged = softmax_loss(merge(state), task.data.fetch(jnp.arange(240)), None)[1]
    np.testing.assert_allclose(
        history.evaluations["mean_model_accuracy"][-1], merged["accuracy"], atol=1e-6
    )
    assert merged["accuracy"] > 0.85
    assert merged["accuracy"] > history.evaluations["accuracy"][-1]


@pytest.mark.slow
def test_eight_devices_and_a_sweep_over_r_give_the_same():
    task = regression()
    federation = dx.Federation(task.data, task.partition, batch_size=8, local_steps=2)

    def end(r):
        algorithm = single_merging(softmax_loss, optax.sgd(0.3), 8, r)
        state = algorithm.init(KEY, task.params)
        return dx.rollout(algorithm, state, federation, KEY, 3)[0].clients.params

    swept = jax.jit(jax.vmap(end))(jnp.asarray([0.2, 1.0]))
    algorithm = single_merging(softmax_loss, optax.sgd(0.3), 8, lambda t: jnp.float32(1.0))
    start = algorithm.init(KEY, task.params)
    dealt, _ = dx.run(algorithm, start, federation, rounds=3, key=KEY, mesh=dx.client_mesh())
    assert_trees_close(
        jax.tree.map(lambda leaf: leaf[1], swept), dealt.clients.params, rtol=1e-4, atol=1e-5
    )


class Normed(nn.Module):
    """A hidden layer with batch normalisation."""

    @nn.compact
    def __call__(self, x, train: bool = False):
        x = nn.BatchNorm(use_running_average=not train)(nn.Dense(4)(x))
        return nn.Dense(3)(nn.relu(x))


@pytest.mark.slow
def test_statistics_are_estimated_afresh_for_the_merged_model():
    task, module = regression(), Normed()
    models = jax.vmap(lambda key: module.init(key, task.data.example))(jax.random.split(KEY, 5))
    merged = merge(models, model=module, data=task.data, batches=1, batch_size=240)
    weights = jax.tree.map(lambda leaf: leaf.mean(0), models["params"])
    assert_trees_close(merged["params"], weights, rtol=1e-5, atol=1e-6)
    hidden = task.data.inputs @ weights["Dense_0"]["kernel"] + weights["Dense_0"]["bias"]
    found = merged["batch_stats"]["BatchNorm_0"]
    np.testing.assert_allclose(found["mean"], hidden.mean(0), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(found["var"], hidden.var(0), rtol=1e-4, atol=1e-5)

    def spread(variables):
        return {"var": variables["batch_stats"]["BatchNorm_0"]["var"]}

    measure = evaluation.recalibrated(spread, module, task.data, batches=1, batch_size=240)
    plain = jax.tree.map(lambda leaf: leaf.mean(0), models)
    np.testing.assert_allclose(jax.jit(measure)(plain)["var"], hidden.var(0), rtol=1e-4)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: single_merging(half_square, SGD, 1), "clients must be an integer >= 2"),
        (lambda: single_merging(half_square, SGD, 6, 5.5), "r must be .* can hear n - 1"),
        (
            lambda: single_merging(half_square, SGD, 6, base=topology.ring(6), symmetric=True),
            "base must be None with symmetric",
        ),
        (lambda: single_merging(half_square, SGD, 6, symmetric=1), "symmetric must be True"),
        (
            lambda: single_merging(half_square, SGD, 6, base=THREE_PAIRS),
            "base must be connected, got 3 components.*disconnected=True",
        ),
        (
            lambda: merge({"params": jnp.ones((2, 3)), "batch_stats": jnp.ones((2, 3))}),
            "model and data must be given",
        ),
        (
            lambda: merge({"params": jnp.ones((2, 3))}, model=Normed(), data=regression().data),
            "variables must be a dict",
        ),
        (lambda: evaluation.recalibrated(3, Normed(), None), "measure must be a function"),
        (lambda: evaluation.recalibrated(abs, None, None), "model must be a module"),
    ],
)
def test_bad_arguments_are_refused(make, message):
    with pytest.raises((ValueError, TypeError), match=message):
        make()
