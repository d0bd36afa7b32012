import itertools

import jax
import jax.numpy as jnp
import networkx
import numpy as np
import pytest

import dflax as dx
from dflax import topology
from dflax.gossip import Mixing
from dflax.topology.matcha import Matcha

KEY = jax.random.key(0)
GRAPHS = {
    "ring": topology.ring(9),
    "torus": topology.torus(4, 4),
    "star": topology.star(6),
    "random": topology.erdos_renyi(12, 0.4, 1),
    "complete": topology.complete(8),
}
# Two cliques of four held together by one edge, which no budget should cut.
BARBELL = topology.from_adjacency(networkx.to_numpy_array(networkx.barbell_graph(4, 0)))


def laplacians(plan: Matcha):
    nodes = len(plan.partners)
    return np.stack([np.eye(nodes) - np.eye(nodes)[own] for own in plan.partners.T])


@pytest.mark.parametrize("name", GRAPHS)
def test_matchings_are_all_edges_once_and_meet_each_node_once(name):
    graph = GRAPHS[name]
    found = topology.matchings(graph)
    for edges in found:
        assert len(np.unique(edges)) == edges.size
    together = sorted(map(tuple, np.concatenate(found).tolist()))
    ahead = graph.senders < graph.receivers
    expected = zip(graph.senders[ahead].tolist(), graph.receivers[ahead].tolist(), strict=True)
    assert together == sorted(expected)
    assert graph.in_degrees.max() <= len(found) <= graph.in_degrees.max() + 1


@pytest.mark.parametrize("budget", [0.3, 0.7])
@pytest.mark.parametrize("name", ["random", "star", "torus"])
def test_no_other_probabilities_connect_better(name, budget):
    plan = topology.matcha_plan(GRAPHS[name], budget)
    parts, count = laplacians(plan), len(plan.probabilities)
    assert plan.probabilities.min() >= 0
    assert plan.probabilities.max() <= 1
    assert plan.probabilities.sum() <= budget * count * (1 + 1e-6)

    def connectivity(p):
        return np.linalg.eigvalsh(np.tensordot(p, parts, 1))[1]

    assert plan.connectivity == pytest.approx(connectivity(plan.probabilities), abs=1e-9)
    generator = np.random.default_rng(0)
    others = [np.full(count, budget)]
    for _ in range(300):
        near = plan.probabilities + generator.normal(scale=0.1, size=count)
        other = np.clip(near, 0, 1)
        others.append(other * min(1.0, budget * count / other.sum()))
    assert max(map(connectivity, others)) <= plan.connectivity * (1 + 2e-6)


def test_a_bridge_is_active_more_often_than_the_cliques_it_joins():
    plan = topology.matcha_plan(BARBELL, 0.5)
    bridge = int(np.flatnonzero(plan.partners[3] == 4)[0])
    assert plan.probabilities[bridge] == plan.probabilities.max()
    assert plan.probabilities[bridge] > 0.85
    flat = np.linalg.eigvalsh(
        np.tensordot(np.full(len(plan.probabilities), 0.5), laplacians(plan), 1)
    )
    assert plan.connectivity > 1.15 * flat[1]


@pytest.mark.parametrize("name", ["star", "random"])
def test_the_contraction_is_that_of_all_outcomes_and_no_other_step_is_better(name):
    plan = topology.matcha_plan(GRAPHS[name], 0.6)
    parts, nodes = laplacians(plan), len(plan.partners)

    def expected(step):
        total = np.zeros((nodes, nodes))
        for active in itertools.product([0, 1], repeat=len(parts)):
            chance = np.prod(np.where(active, plan.probabilities, 1 - plan.probabilities))
            if chance > 0:
                w = np.eye(nodes) - step * np.tensordot(np.array(active), parts, 1)
                total += chance * w.T @ w
        return np.linalg.norm(total - np.ones((nodes, nodes)) / nodes, 2)

    assert plan.contraction == pytest.approx(expected(plan.step), abs=1e-8)
    assert plan.contraction < min(1, expected(0.97 * plan.step), expected(1.03 * plan.step))


def test_the_whole_budget_is_the_best_constant_weight():
    plan = topology.matcha_plan(GRAPHS["torus"], 1.0)
    np.testing.assert_allclose(plan.probabilities, 1.0, atol=1e-6)
    values = np.linalg.eigvalsh(laplacians(plan).sum(0))
    assert plan.step == pytest.approx(2 / (values[1] + values[-1]), rel=1e-5)
    ratio = (values[-1] - values[1]) / (values[-1] + values[1])
    assert plan.contraction == pytest.approx(ratio**2, rel=1e-5)


def test_mixing_follows_the_law_of_the_plan():
    graph, budget = GRAPHS["random"], 0.5
    plan, mixer = topology.matcha_plan(graph, budget), dx.gossip.matcha(graph, budget)
    assert mixer.known.symmetric
    identity = jnp.eye(graph.nodes)
    state = mixer.init(identity)
    keys = jax.random.split(KEY, 4000)
    apply = jax.vmap(lambda key: mixer.apply(identity, state, Mixing(key, jnp.int32(0))))
    drawn, _, metrics = jax.jit(apply)(keys)
    drawn = np.asarray(drawn, np.float64)
    np.testing.assert_allclose(drawn, drawn.transpose(0, 2, 1), atol=1e-6)
    np.testing.assert_allclose(drawn.sum(2), 1.0, atol=1e-6)
    mean = np.eye(graph.nodes) - plan.step * np.tensordot(plan.probabilities, laplacians(plan), 1)
    np.testing.assert_allclose(drawn.mean(0), mean, atol=0.02)
    sizes = (plan.partners != np.arange(graph.nodes)[:, None]).sum(0)
    np.testing.assert_allclose(metrics["models_sent"].mean(), plan.probabilities @ sizes, rtol=0.03)
    square = np.einsum("sij,sik->jk", drawn, drawn) / len(drawn)
    spread = np.linalg.norm(square - 1 / graph.nodes, 2)
    assert spread == pytest.approx(plan.contraction, abs=0.05)


@pytest.mark.parametrize("nodes", [4, 16])
def test_a_period_of_one_peer_exponential_averages_exactly(nodes):
    mixer = dx.gossip.one_peer_exponential(nodes)
    models = jnp.eye(nodes)
    state = mixer.init(models)
    for t in range(nodes.bit_length() - 1):
        models, state, _ = mixer.apply(models, state, Mixing(KEY, jnp.int32(t)))
    np.testing.assert_allclose(models, 1 / nodes, atol=1e-7)


def test_bad_arguments_are_refused():
    with pytest.raises(ValueError, match=r"budget must be .* in \(0, 1\], got 0"):
        topology.matcha(GRAPHS["ring"], 0.0)
    with pytest.raises(ValueError, match="undirected"):
        topology.matchings(topology.exponential(8))
    apart = topology.from_edges(4, np.array([[0, 1], [2, 3]]), disconnected=True)
    with pytest.raises(ValueError, match=r"^graph must be connected.*each component alone\.$"):
        topology.matcha(apart, 0.5)
