import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dflax import gossip, topology
from dflax.gossip import Mixing

KEY = jax.random.key(0)
EDGES = np.array([[0, 1], [1, 2], [2, 3], [3, 4], [4, 0], [0, 3], [2, 0], [1, 4], [1, 0]])
GRAPH = topology.from_edges(5, EDGES, directed=True)
ONE_WAY = topology.from_edges(
    3, np.array([[0, 1], [1, 2]]), directed=True, disconnected=True, name="one way"
)
MODELS = jnp.asarray(np.random.default_rng(0).standard_normal((5, 3)), jnp.float32)
HUB = topology.from_edges(
    40,
    np.array([[i, 0] for i in range(1, 40)] + [[i, (i + 1) % 40] for i in range(40)]),
    directed=True,
)


def run(mixer, models, rounds, change=lambda z, t: z, active=None):
    state = mixer.init(models)
    apply = jax.jit(mixer.apply)
    for t in range(rounds):
        models, state, metrics = apply(change(models, t), state, Mixing(KEY, jnp.int32(t), active))
    return models, state, metrics


def reference(matrix, models, rounds, active=None):
    matrix = matrix.copy()
    if active is not None:
        pairs = np.outer(active, active) * matrix
        np.fill_diagonal(pairs, 0)
        matrix = pairs + np.diag(1 - pairs.sum(0))
    x, w = np.asarray(models, np.float64), np.ones(len(models))
    for _ in range(rounds):
        x, w = matrix @ x, matrix @ w
    return x / w[:, None], w


CIRCULANT = topology.circulant(7, (1, 3), directed=True)


@pytest.mark.some(2)
@pytest.mark.parametrize(
    "graph",
    [GRAPH, HUB, CIRCULANT, topology.torus(4, 3), topology.complete(50)],
    ids=["slots", "edges", "rolls", "torus", "complete"],
)
def test_follows_its_recursion(graph):
    models = jnp.asarray(np.random.default_rng(1).standard_normal((graph.nodes, 2)), jnp.float32)
    matrix = topology.column_stochastic(graph).dense()
    mixed, state, metrics = run(gossip.push_sum(graph), models, 4)
    expected, weights = reference(matrix, models, 4)
    np.testing.assert_allclose(mixed, expected, atol=2e-6)
    np.testing.assert_allclose(state.weights, weights, rtol=1e-5)
    # A weight travels with every model of two numbers.
    assert metrics["models_sent"] == 1.5 * len(graph.senders)
    active = np.arange(graph.nodes) % 3 != 1
    mixed, state, metrics = run(gossip.push_sum(graph), models, 4, active=jnp.asarray(active))
    expected, weights = reference(matrix, models, 4, active)
    np.testing.assert_allclose(mixed, expected, atol=2e-6)
    np.testing.assert_array_equal(mixed[~active], models[~active])
    assert metrics["models_sent"] == 1.5 * sum(
        active[i] and active[j] for i, j in zip(graph.senders, graph.receivers, strict=True)
    )


def test_averages_exactly_where_plain_mixing_does_not():
    mean = np.broadcast_to(MODELS.mean(0), MODELS.shape)
    mixed, state, _ = run(gossip.push_sum(GRAPH, steps=5), MODELS, 20)
    np.testing.assert_allclose(mixed, mean, atol=2e-6)
    assert float(state.weights.sum()) == pytest.approx(5, rel=1e-5)
    assert np.abs(state.weights - 1).max() > 0.1
    rows = topology.uniform(GRAPH, row_stochastic=True)
    plain, _, _ = run(gossip.mixer(rows, steps=5), MODELS, 20)
    assert np.abs(plain - mean).max() > 0.02


def test_local_changes_count_the_same_for_every_client():
    targets = jnp.asarray(np.random.default_rng(2).standard_normal((5, 3)), jnp.float32)

    def descend(models, t):
        return models - 0.5 / (1 + t) * (models - targets)

    mixed, state, _ = run(gossip.push_sum(GRAPH), MODELS, 800, descend)
    optimum = np.broadcast_to(targets.mean(0), MODELS.shape)
    np.testing.assert_allclose(mixed, optimum, atol=0.02)
    weighted = np.asarray(state.weights) @ np.asarray(targets) / 5
    assert np.abs(weighted - targets.mean(0)).max() > 0.1


def test_narrow_models_lose_nothing_of_the_sum():
    models = MODELS.astype(jnp.bfloat16)
    mixed, state, _ = run(gossip.push_sum(GRAPH), models, 30)
    assert mixed.dtype == jnp.bfloat16
    total = (mixed.astype(jnp.float32) + state.excess.rows).sum(0)
    np.testing.assert_allclose(total, models.astype(jnp.float32).sum(0), atol=1e-5)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: gossip.push_sum(topology.uniform(GRAPH, row_stochastic=True)),
            "columns that sum to 1",
        ),
        (lambda: gossip.push_sum(topology.from_dense(np.eye(3)[[1, 2, 0]])), "diagonal"),
        (lambda: gossip.push_sum(GRAPH, steps=0), "steps must be"),
        (
            lambda: gossip.push_sum(ONE_WAY),
            "topology must be strongly connected, got 3 components.*disconnected=True",
        ),
    ],
)
def test_bad_arguments_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_disconnected_graphs_pass_when_asked_for():
    mixed, _, _ = run(gossip.push_sum(ONE_WAY, disconnected=True), MODELS[:3], 1)
    expected, _ = reference(topology.column_stochastic(ONE_WAY).dense(), MODELS[:3], 1)
    np.testing.assert_allclose(mixed, expected, atol=2e-6)


def test_integer_models_are_refused():
    with pytest.raises(TypeError, match="real numbers"):
        gossip.push_sum(GRAPH).init(jnp.zeros(5, int))


@pytest.mark.parametrize("given", [3, np.eye(3)])
def test_anything_but_a_graph_or_a_matrix_is_refused(given):
    with pytest.raises(TypeError, match="topology must be of type Graph or MixingMatrix"):
        gossip.push_sum(given)
