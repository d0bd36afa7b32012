"""What mixers tell about their matrices."""

import numpy as np
import pytest

from dflax import gossip, topology
from dflax.gossip.mixer import require_mean_kept

N = 8
DIRECTED = topology.from_edges(
    3, np.array([[0, 1], [1, 2], [2, 0], [0, 2]]), directed=True, name="three"
)

# For each mixer: symmetric, doubly stochastic.
KNOWN = {
    "ring": (lambda: gossip.ring(N), True, True),
    "several steps": (lambda: gossip.ring(N, steps=3), True, True),
    "chebyshev": (lambda: gossip.chebyshev(topology.ring(N), 3), True, True),
    "complete": (lambda: gossip.complete(N), True, True),
    "identity": (lambda: gossip.identity(N), True, True),
    "exponential": (lambda: gossip.exponential(N), False, True),
    "one peer": (lambda: gossip.one_peer_exponential(N), False, True),
    "slots": (lambda: gossip.slots(topology.metropolis(topology.ring(N))), True, True),
    "rows alone": (
        lambda: gossip.mixer(topology.uniform(DIRECTED, row_stochastic=True)),
        False,
        False,
    ),
    "random neighbours": (lambda: gossip.random_neighbours(N, 2), False, False),
    "matching": (lambda: gossip.random_matching(N), True, True),
    "regular each round": (lambda: gossip.random_regular_each_round(N, 3), True, True),
    "periodic": (
        lambda: gossip.mixer([topology.star(N), topology.uniform(topology.exponential(N))]),
        False,
        True,
    ),
    "alternate": (
        lambda: gossip.alternate([gossip.ring(N), gossip.random_neighbours(N, 2)]),
        False,
        False,
    ),
    "push-sum": (lambda: gossip.push_sum(topology.ring(N)), False, False),
}


@pytest.mark.parametrize("name", KNOWN)
def test_what_a_mixer_tells(name):
    make, symmetric, doubly_stochastic = KNOWN[name]
    mixer = make()
    assert (mixer.known.symmetric, mixer.known.doubly_stochastic) == (symmetric, doubly_stochastic)
    if doubly_stochastic:
        require_mean_kept(mixer, "a test")
    else:
        with pytest.raises(ValueError, match="mixer must keep the mean of what a test mixes"):
            require_mean_kept(mixer, "a test")


def test_where_nothing_is_known_nothing_is_refused():
    mixer = gossip.Mixer(N, lambda models: (), lambda *a: a)
    assert mixer.known.symmetric is None
    require_mean_kept(mixer, "a test")
    both = gossip.alternate([mixer, gossip.ring(N)])
    assert both.known.symmetric is None
    assert both.known.doubly_stochastic is None
    with pytest.raises(TypeError, match="mixer must be a Mixer"):
        require_mean_kept(np.eye(N), "a test")
