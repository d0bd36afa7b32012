"""Sybils spread over a graph, and the one adversary behind them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tasks import assert_trees_close, assert_trees_equal

import dflax as dx
from dflax import aggregation, gossip, topology
from dflax.attacks import one_adversary, with_sybils
from dflax.gossip import Mixing

HONEST, KEY = 20, jax.random.key(0)


@pytest.mark.parametrize("density", [0.25, 1.0, 2.5])
@pytest.mark.parametrize("degree", [3, 7])
@pytest.mark.parametrize("make", ["ring", "random"])
def test_every_honest_node_has_its_attack_edges_and_the_rest_stays(density, degree, make):
    honest = topology.ring(HONEST) if make == "ring" else topology.erdos_renyi(HONEST, 0.3, seed=1)
    graph = with_sybils(honest, density, degree=degree, seed=3)
    links = graph.links
    old = links[(links < HONEST).all(1)]
    np.testing.assert_array_equal(np.sort(old, 1), np.sort(honest.links, 1))
    attack = links[(links >= HONEST).any(1)]
    # No edge between Sybils.
    assert (attack.min(1) < HONEST).all()
    per_honest = np.bincount(attack.min(1), minlength=HONEST)
    assert len(attack) == round(HONEST * density)
    assert set(per_honest) <= {int(density), int(density) + 1}
    per_sybil = np.bincount(attack.max(1), minlength=graph.nodes)[HONEST:]
    assert per_sybil.min() >= 1
    assert per_sybil.max() <= degree
    assert graph.connected


def test_the_first_sybils_victims_are_a_node_and_those_nearest_to_it():
    graph = with_sybils(topology.ring(HONEST), 1.0, degree=5, seed=0)
    victims = graph.senders[graph.receivers == HONEST]
    apart = np.abs(victims[:, None] - victims)
    apart = np.minimum(apart, HONEST - apart)
    # A run of five on the ring.
    assert np.sort(apart.max(1)).tolist() == [2, 3, 3, 4, 4]


PATH = topology.from_edges(9, np.array([[i, i + 1] for i in range(8)]))
PAIRS = topology.from_edges(4, np.array([[0, 1], [2, 3]]), disconnected=True)


@pytest.mark.parametrize(
    ("graph", "density", "medoids"),
    [
        (PATH, 1 / 3, [1, 4, 7]),
        (PATH, 1 / 9, [4]),
        (topology.star(7), 1 / 7, [0]),
        (PAIRS, 0.5, [0, 2]),
    ],
)
def test_edges_of_a_fraction_go_to_those_from_which_the_others_are_nearest(graph, density, medoids):
    made = with_sybils(graph, density, degree=2)
    attack = made.links[(made.links >= graph.nodes).any(1)]
    np.testing.assert_array_equal(np.sort(attack.min(1)), medoids)


GRAPH = with_sybils(topology.ring(6), 1.0, degree=3, seed=1)
ROWS = np.random.default_rng(0).standard_normal((8, 3)).astype(np.float32)


def mixed(active=None):
    """One mixing by the median: six honest ones, two Sybils with three victims each."""
    mixer = one_adversary(gossip.by_rule(GRAPH, gossip.aggregating(aggregation.median())), 6)

    def once(rows, active):
        return mixer.apply(rows, mixer.init(rows), Mixing(KEY, jnp.int32(0), active))

    found, _, metrics = jax.jit(once)(jnp.asarray(ROWS), active)
    return np.asarray(found), metrics


def test_sybils_send_one_model_and_take_the_mean_of_all_that_they_receive():
    found, metrics = mixed()
    sent = np.concatenate([ROWS[:7], ROWS[6:7]])
    for i in range(6):
        there = [i, *GRAPH.senders[GRAPH.receivers == i]]
        np.testing.assert_allclose(found[i], np.median(sent[there], 0), atol=1e-6)
    np.testing.assert_allclose(found[6:], np.tile(ROWS[:7].mean(0), (2, 1)), atol=1e-6)
    assert metrics["models_sent"] == len(GRAPH.senders)
    with jax.set_mesh(dx.client_mesh()):
        assert_trees_close(mixed()[0], found, atol=1e-6)


def test_absent_sybils_and_absent_victims():
    active = np.ones(8, bool)
    active[[0, 6]] = False
    found, _ = mixed(jnp.asarray(active))
    assert_trees_equal(found[[0, 6]], ROWS[[0, 6]])
    victims = GRAPH.senders[GRAPH.receivers == 7]
    received = [j for j in victims if active[j]]
    np.testing.assert_allclose(found[7], ROWS[[7, *received]].mean(0), atol=1e-6)


def test_one_adversary_refuses():
    with pytest.raises(ValueError, match="mixer must mix along one known graph"):
        one_adversary(gossip.random_matching(4), 2)
    with pytest.raises(ValueError, match=r"honest must be an integer in \[1, 3\]"):
        one_adversary(gossip.ring(4), 4)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"attack_edges": 0.0}, "attack_edges must be a finite number"),
        ({"attack_edges": 0.01}, "attack_edges must make one edge at least"),
        ({"attack_edges": 1.0, "degree": 21}, r"degree must be an integer in \[1, 20\]"),
    ],
)
def test_refusals(given, message):
    with pytest.raises(ValueError, match=message):
        with_sybils(topology.ring(HONEST), **given)
