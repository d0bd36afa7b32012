import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn
from tasks import assert_trees_close, half_square, quadratics

import dflax as dx
from dflax import decentralized, evaluation, matching, topology

KEY = jax.random.key(0)
N = 4
DATA = dx.data.digits()
PARTITION = dx.data.iid(np.asarray(DATA.labels), N, seed=0)
MODEL = dx.models.MLP((32, 32), classes=10)
INPUTS = DATA.train.fetch(jnp.arange(2)).inputs
LOSS = dx.losses.classification(MODEL.apply)
SYMMETRIES = matching.symmetries(MODEL, MODEL.init(KEY, INPUTS)["params"], INPUTS)
MOMENTUM = optax.sgd(0.05, momentum=0.9)
ACTIVATIONS = matching.by_activations(MODEL, SYMMETRIES)
WEIGHTS = matching.by_weights(SYMMETRIES)


def federation(steps, clients=N, **options):
    partition = PARTITION if clients == N else dx.data.iid(np.asarray(DATA.labels), clients, seed=0)
    return dx.Federation(DATA, partition, batch_size=32, local_steps=steps, **options)


def fresh(key):
    return MODEL.init(key, DATA.example)["params"]


@functools.cache
def pretrained():
    alone = decentralized.dimat(LOSS, MOMENTUM, np.eye(N), None)
    state = alone.init(KEY, fresh)
    return jax.jit(alone.step)(state, federation(300).draw(KEY, 0))[0].clients.params


def started(algorithm, models):
    state = algorithm.init(KEY, jax.tree.map(lambda leaf: leaf[0], models))
    return state._replace(clients=state.clients._replace(params=models))


@pytest.mark.slow
def test_the_first_merge_of_networks_trained_apart_beats_plain_averaging_by_far():
    measure = jax.jit(evaluation.client_models(evaluation.on(LOSS, DATA.test)))
    models, accuracy = pretrained(), {}
    mean = jax.tree.map(lambda leaf: leaf.mean(0), models)
    for name, way in (("plain", None), ("activations", ACTIVATIONS), ("weights", WEIGHTS)):
        algorithm = decentralized.dimat(LOSS, MOMENTUM, topology.complete(N), way)
        mixer = decentralized.dimat_mixer(topology.complete(N), way)
        state = started(algorithm, models)
        round = federation(10).draw(KEY, 1)
        merged = jax.jit(functools.partial(decentralized.mixed, mixer))(state, round)
        held = state._replace(clients=state.clients._replace(params=merged))
        accuracy[name] = float(measure(held)["accuracy"])
        moved = np.abs(merged["Dense_0"]["kernel"].mean(0) - mean["Dense_0"]["kernel"]).max()
        # Plain averaging keeps the mean of the models, aligned averaging does not.
        assert moved < 1e-5 if way is None else moved > 0.01
        if name == "activations":
            after, metrics = jax.jit(algorithm.step)(state, round)
            assert measure(after)["accuracy"] > 0.85
            # A round is its merge, and then what those without neighbours do.
            alone = decentralized.dimat(LOSS, MOMENTUM, np.eye(N), None)
            trained, _ = jax.jit(alone.step)(started(alone, merged), round)
            assert_trees_close(after.clients.params, trained.clients.params, rtol=1e-4, atol=1e-5)
            assert 0.2 < metrics["similarity"] < 1.0
            assert metrics["fixed_units"] < 0.5
            assert metrics["models_sent"] == N * (N - 1)
    assert accuracy["activations"] > accuracy["plain"] + 0.15
    assert accuracy["weights"] > accuracy["plain"] + 0.15


@pytest.mark.some(1)
@pytest.mark.parametrize("way", [None, ACTIVATIONS])
def test_without_edges_it_is_local_training_with_a_fresh_optimizer(way):
    algorithm = decentralized.dimat(LOSS, MOMENTUM, np.eye(N), way)
    alone = decentralized.dfedavg(LOSS, MOMENTUM, dx.gossip.identity(N))
    run = jax.jit(functools.partial(dx.rollout, algorithm, rounds=2))
    state, _ = run(algorithm.init(KEY, fresh), federation(3), KEY)
    run = jax.jit(functools.partial(dx.rollout, alone, rounds=2))
    expected, _ = run(alone.init(KEY, fresh), federation(3), KEY)
    assert_trees_close(state.clients.params, expected.clients.params, rtol=1e-5, atol=1e-6)


@pytest.mark.slow
def test_eight_devices_and_a_sweep_over_rates_give_the_same():
    source = federation(1, clients=8)
    model = dx.models.MLP((8,), classes=10)
    loss = dx.losses.classification(model.apply)

    def start(key):
        return model.init(key, INPUTS)["params"]

    way = matching.by_activations(
        model, matching.symmetries(model, jax.eval_shape(start, KEY), INPUTS)
    )

    def end(rate):
        algorithm = decentralized.dimat(loss, optax.sgd(rate), topology.ring(8), way)
        return dx.rollout(algorithm, algorithm.init(KEY, start), source, KEY, 1)[0].clients.params

    swept = jax.jit(jax.vmap(end))(jnp.asarray([0.05, 0.1]))
    algorithm = decentralized.dimat(loss, optax.sgd(0.1), topology.ring(8), way)
    state = algorithm.init(KEY, start)
    dealt, _ = dx.run(algorithm, state, source, rounds=1, key=KEY, mesh=dx.client_mesh())
    assert_trees_close(
        jax.tree.map(lambda leaf: leaf[1], swept), dealt.clients.params, rtol=1e-3, atol=1e-4
    )


class Normed(nn.Module):
    """A hidden layer with batch normalisation."""

    @nn.compact
    def __call__(self, x, train: bool = False):
        x = nn.Dense(12)(x.reshape(x.shape[0], -1))
        return nn.Dense(10)(nn.relu(nn.BatchNorm(use_running_average=not train)(x)))


@pytest.mark.slow
def test_batch_normalisation_travels_through_merges():
    module = Normed()
    loss = dx.losses.classification(module)
    variables = module.init(KEY, INPUTS)
    found = matching.symmetries(module, variables, INPUTS)
    optimizer = dx.models.with_statistics(optax.sgd(0.1))
    way = matching.by_activations(module, found)
    algorithm = decentralized.dimat(loss, optimizer, topology.ring(N), way, model=module)
    state = algorithm.init(KEY, lambda key: module.init(key, INPUTS))
    state, metrics = jax.jit(algorithm.step)(state, federation(2).draw(KEY, 0))
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(state.clients.params))
    assert metrics["similarity"] > 0.1
    refused = (way, "average of running statistics"), (None, "model must be given")
    for matching_way, message in refused:
        bare = decentralized.dimat(loss, optimizer, topology.ring(N), matching_way)
        with pytest.raises(ValueError, match=message):
            bare.init(KEY, variables)


def test_gradient_push_reaches_the_mean_where_plain_averaging_over_the_graph_does_not():
    """A directed graph that is not regular: i -> i + 1, and 0 -> 2."""
    task, edges = quadratics(clients=5), [(0, 1), (1, 2), (2, 3), (3, 4), (4, 0), (0, 2)]
    graph = topology.from_edges(5, np.array(edges), directed=True)

    def end(algorithm, rounds=600):
        run = jax.jit(functools.partial(dx.rollout, algorithm, rounds=rounds))
        return run(algorithm.init(KEY, jnp.ones(3)), task.federation(), KEY)[0].clients.params

    rates = lambda t: optax.sgd(2.0 / (20.0 + t))  # noqa: E731
    pushed = end(decentralized.sgp(half_square, rates, graph))
    center = task.centers.mean(0)
    np.testing.assert_allclose(pushed.mean(0), center, atol=0.02)
    rows = functools.partial(topology.uniform, row_stochastic=True)
    plain = dx.gossip.mixer(graph, weights=rows)
    averaged = end(decentralized.dpsgd(half_square, rates, plain))
    assert np.abs(averaged.mean(0) - center).max() > 0.1


def test_consensus_sgd_is_one_step_against_the_mean_of_the_neighbours():
    task = quadratics(clients=5)
    algorithm = decentralized.dpsgd(half_square, optax.sgd(0.2), dx.gossip.ring(5))
    state = algorithm.init(KEY, lambda key: jax.random.normal(key, (3,)))
    x = np.asarray(state.clients.params, np.float64)
    after, _ = jax.jit(algorithm.step)(state, task.federation().draw(KEY, 0))
    expected = topology.metropolis(topology.ring(5)).dense() @ x - 0.2 * (x - task.centers)
    np.testing.assert_allclose(after.clients.params, expected, rtol=1e-5, atol=1e-6)


def test_two_hubs_have_the_published_weights():
    matrix = topology.max_degree(topology.complete_bipartite(3, 2)).dense()
    a = 0.25
    expected = np.diag([0.5, 0.5, 0.5, 0.25, 0.25])
    expected[:3, 3:] = expected[3:, :3] = a
    np.testing.assert_allclose(matrix, expected)
    np.testing.assert_allclose(matrix.sum(0), 1)
    np.testing.assert_allclose(matrix.sum(1), 1)
    for nodes in (4, 7, 20):
        matrix = topology.max_degree(topology.complete_bipartite(nodes - 2, 2)).dense()
        a = 1 / (nodes - 1)
        np.testing.assert_allclose(np.diag(matrix)[:-2], 1 - 2 * a)
        np.testing.assert_allclose(np.diag(matrix)[-2:], 1 - (nodes - 2) * a)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: decentralized.dimat(LOSS, 3, np.eye(N), None), "optimizer must be"),
        (lambda: decentralized.dimat(LOSS, MOMENTUM, np.eye(N), 3), "matching must be"),
        (lambda: decentralized.dimat(LOSS, MOMENTUM, 3, None), "topology must be"),
        (lambda: decentralized.dimat(LOSS, MOMENTUM, np.ones((2, 2)), WEIGHTS), "sum to 1"),
        (
            lambda: decentralized.dimat(LOSS, MOMENTUM, np.eye(N), WEIGHTS, model=3),
            "model must be",
        ),
        (lambda: decentralized.mixed(3, None, None), "mixer must be a Mixer"),
        (lambda: topology.complete_bipartite(0, 2), "first must be"),
        (lambda: decentralized.sgp(half_square, MOMENTUM, topology.ring(3), gossip_steps=0), "st"),
    ],
)
def test_bad_arguments_are_refused(make, message):
    with pytest.raises((ValueError, TypeError), match=message):
        make()
