import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dflax import gossip, topology
from dflax.gossip import Mixing

KEY = jax.random.key(0)
BLOCKS = np.kron(np.eye(2), np.full((2, 2), 0.5))
PAIRS = topology.from_edges(4, np.array([[0, 1], [2, 3]]), disconnected=True)


def text(mixer):
    models = jnp.zeros((mixer.clients, 2))
    return (
        jax.jit(mixer.apply).lower(models, mixer.init(models), Mixing(KEY, jnp.int32(0))).as_text()
    )


@pytest.mark.parametrize(
    ("given", "has", "lacks"),
    [
        (topology.ring(40), "concatenate", "gather"),
        (topology.torus(5, 8), "concatenate", "gather"),
        (topology.exponential(40), "concatenate", "dot_general"),
        (topology.complete(40), "dot_general", "concatenate"),
        (topology.erdos_renyi(40, 0.3), "dot_general", "gather"),
        (topology.random_regular(200, 3), "gather", "dot_general"),
        (topology.star(5000), "scatter", "dot_general"),
    ],
    ids=lambda g: getattr(g, "name", ""),
)
def test_structure_decides_the_product(given, has, lacks):
    program = text(gossip.mixer(given))
    assert has in program
    assert lacks not in program


def test_complete_tables_are_not_n_by_n():
    models = jnp.zeros((40, 2))
    assert jax.tree.leaves(gossip.mixer(topology.complete(40)).init(models)) == []


@pytest.mark.parametrize("own", [0.0, 0.05, 0.4])
def test_everyone_with_one_weight_is_one_product(own):
    matrix = topology.uniform(topology.complete(8), self_weight=own)
    mixer = gossip.mixer(matrix)
    assert "concatenate" not in text(mixer)
    np.testing.assert_allclose(mixed(mixer), matrix.dense(), atol=1e-6)
    active = jnp.arange(8) % 3 > 0
    eye = jnp.eye(8)
    for kind in ("complete", "dense"):
        made = gossip.mixer(matrix, kind=kind)
        masked, _, metrics = made.apply(eye, made.init(eye), Mixing(KEY, 0, active))
        if kind == "complete":
            first = masked
        assert metrics["models_sent"] == 5 * 4
    np.testing.assert_allclose(first, masked, atol=1e-6)


def mixed(mixer, index=0):
    eye = jnp.eye(mixer.clients)
    return jax.jit(mixer.apply)(eye, mixer.init(eye), Mixing(KEY, jnp.int32(index)))[0]


def test_arrays_matrices_and_graphs_mean_the_same():
    graph = topology.erdos_renyi(9, 0.5, seed=1)
    matrix = topology.max_degree(graph)
    by_graph = gossip.mixer(graph, weights=topology.max_degree)
    for mixer in (by_graph, gossip.mixer(matrix), gossip.mixer(matrix.dense())):
        np.testing.assert_allclose(mixed(mixer), matrix.dense(), atol=1e-6)


@pytest.mark.parametrize(
    "graphs",
    [
        [topology.star(8), topology.geometric(8, 0.7, seed=0), topology.ring(8)],
        [topology.ring(8), topology.complete(8), topology.exponential(8)],
    ],
    ids=["tables", "structured"],
)
def test_a_sequence_takes_turns(graphs):
    mixer = gossip.mixer(graphs)
    for t in range(4):
        graph = graphs[t % 3]
        matrix = topology.uniform(graph) if graph.directed else topology.metropolis(graph)
        np.testing.assert_allclose(mixed(mixer, t), matrix.dense(), atol=1e-6)


def test_named_mixers_are_their_graphs():
    pairs = [
        (gossip.ring(6), topology.ring(6)),
        (gossip.torus(2, 3), topology.torus(2, 3)),
        (gossip.hypercube(8), topology.hypercube(8)),
        (gossip.star(5), topology.star(5)),
        (gossip.erdos_renyi(8, 0.5, seed=2), topology.erdos_renyi(8, 0.5, seed=2)),
        (gossip.random_regular(8, 3, seed=2), topology.random_regular(8, 3, seed=2)),
        (gossip.geometric(8, 0.6, seed=2), topology.geometric(8, 0.6, seed=2)),
    ]
    for mixer, graph in pairs:
        np.testing.assert_allclose(mixed(mixer), topology.metropolis(graph).dense(), atol=1e-6)
    expected = topology.uniform(topology.exponential(6)).dense()
    np.testing.assert_allclose(mixed(gossip.exponential(6)), expected, atol=1e-6)


DIRECTED = topology.from_edges(3, np.array([[0, 1], [1, 2], [2, 0], [0, 2]]), directed=True)


def test_row_stochastic_weights_can_be_asked_for():
    weights = functools.partial(topology.uniform, row_stochastic=True)
    np.testing.assert_allclose(
        mixed(gossip.mixer(DIRECTED, weights=weights)), weights(DIRECTED).dense(), atol=1e-6
    )


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: gossip.mixer(DIRECTED), ValueError, "push_sum"),
        (lambda: gossip.mixer(topology.ring(4), kind="magic"), ValueError, "'slots'.*'magic'"),
        (lambda: gossip.mixer(topology.star(4), kind="shifts"), ValueError, "kind='slots'"),
        (lambda: gossip.mixer(topology.star(4), kind=[]), ValueError, "kind must be one of"),
        (lambda: gossip.mixer(topology.star(4), steps=0), ValueError, "steps must be an integer"),
        (lambda: gossip.alternate(gossip.ring(4)), TypeError, "mixers must be a list or tuple"),
        (lambda: gossip.mixer(topology.ring(4), kind="complete"), ValueError, "complete"),
        (lambda: gossip.mixer("ring"), TypeError, "topology must be a Graph"),
        (lambda: gossip.mixer(gossip.ring(4)), TypeError, "Mixer"),
        (lambda: gossip.mixer(np.eye(3), weights=topology.metropolis), TypeError, "weights must"),
        (
            lambda: gossip.mixer(topology.random_matching(4), kind="slots"),
            TypeError,
            "beside a Schedule",
        ),
        (lambda: gossip.mixer(np.eye(3) * 0.5), ValueError, "rows that sum to 1"),
        (lambda: gossip.mixer(np.eye(3)), ValueError, "topology must be connected, got 3"),
        (lambda: gossip.mixer(BLOCKS), ValueError, "2 components.*disconnected=True"),
        (
            lambda: gossip.mixer([BLOCKS, np.eye(4)]),
            ValueError,
            "topology must be connected, got 2",
        ),
        (lambda: gossip.mixer(BLOCKS, disconnected="yes"), TypeError, "disconnected must be True"),
        (
            lambda: gossip.mixer(topology.ring(4), weights="metropolis"),
            TypeError,
            "weights must be a function.*topology.metropolis",
        ),
        (
            lambda: gossip.mixer(topology.ring(4), weights=lambda graph: 3),
            TypeError,
            r"weights\(graph\) must be of type MixingMatrix, not int",
        ),
        (lambda: gossip.alternate([3]), TypeError, r"mixers\[0\] must be a Mixer, got int"),
        (
            lambda: gossip.scheduled(topology.ring(4)),
            TypeError,
            "schedule must be of type Schedule",
        ),
        (lambda: gossip.dense(topology.ring(4)), TypeError, "matrix must be.*metropolis"),
        (lambda: gossip.slots(topology.ring(4)), TypeError, "matrix must be.*metropolis"),
        (lambda: gossip.shifts(topology.ring(4)), TypeError, "matrix must be.*metropolis"),
        (lambda: gossip.edges(topology.ring(4)), TypeError, "matrix must be.*metropolis"),
        (
            lambda: gossip.mixer(topology.column_stochastic(DIRECTED)),
            ValueError,
            "gossip.push_sum",
        ),
        (lambda: gossip.alternate([]), ValueError, "at least one"),
        (
            lambda: gossip.alternate([gossip.mixer(BLOCKS, disconnected=True)] * 2),
            ValueError,
            "mixers over a whole period must be connected, got 2 components.*disconnected=True",
        ),
        (
            lambda: gossip.alternate(
                [gossip.mixer(BLOCKS, disconnected=True, steps=2), gossip.identity(4)]
            ),
            ValueError,
            "mixers over a whole period must be connected, got 2 components",
        ),
        (lambda: gossip.alternate([gossip.ring(3)], disconnected=1), TypeError, "disconnected"),
        (
            lambda: gossip.random_neighbours(4, 1.0, base=PAIRS),
            ValueError,
            "base must be connected, got 2",
        ),
        (lambda: gossip.alternate([gossip.ring(3), gossip.ring(4)]), ValueError, "one number"),
        (lambda: gossip.complete(0), ValueError, "clients must be"),
        (lambda: gossip.complete(4, 0.5), ValueError, "weight must be a finite number"),
        (lambda: gossip.complete(4, 0.0), ValueError, "weight must be a finite number"),
        (lambda: gossip.identity(0), ValueError, "clients must be"),
        (lambda: gossip.hypercube(12), ValueError, "power of two"),
        (lambda: gossip.one_peer_exponential(1), ValueError, "nodes must be"),
    ],
)
def test_bad_arguments_are_refused(make, error, message):
    with pytest.raises(error, match=message):
        make()


def test_disconnected_graphs_pass_when_asked_for():
    np.testing.assert_allclose(mixed(gossip.mixer(BLOCKS, disconnected=True)), BLOCKS, atol=1e-6)
    one = gossip.mixer(BLOCKS, disconnected=True)
    np.testing.assert_allclose(mixed(gossip.alternate([one], disconnected=True)), BLOCKS, atol=1e-6)
    base = gossip.random_neighbours(4, 3.0, base=PAIRS, disconnected=True)
    np.testing.assert_allclose(mixed(base), BLOCKS, atol=1e-6)


def test_rounds_that_are_connected_only_together_pass():
    across = topology.from_edges(4, np.array([[1, 2], [3, 0]]), disconnected=True)
    assert gossip.mixer([PAIRS, across]).clients == 4
    turns = [gossip.mixer(graph, disconnected=True) for graph in (PAIRS, across)]
    assert gossip.alternate(turns).clients == 4
    assert gossip.alternate([turns[0], gossip.random_matching(4)]).clients == 4
    assert gossip.one_peer_exponential(6).clients == 6
