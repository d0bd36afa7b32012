"""Sybils spread over a graph."""

import numpy as np
import pytest

from dflax import topology
from dflax.attacks import with_sybils

HONEST = 20


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
