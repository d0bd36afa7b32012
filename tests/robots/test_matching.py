"""Maximum matching of general graphs: as large as networkx's, and covering the first set of vertices."""

import functools

import jax
import jax.numpy as jnp
import networkx
import numpy as np
import pytest

from dflax.robots import maximum_matching
from dflax.robots.blocklists import NEVER, matchings

V, PRIME = 16, 2147483629
SEARCH = jax.jit(jax.vmap(maximum_matching))
NOBODY = np.full((200, V), -1, np.int32)


def symmetric(above):
    above = np.triu(above, 1)
    return above | np.swapaxes(above, -1, -2)


@functools.cache
def graphs():
    """Two hundred graphs from hardly any edges to nearly all."""
    rng = np.random.default_rng(0)
    density = rng.choice([0.03, 0.07, 0.1, 0.15, 0.2, 0.3, 0.6, 0.9], (200, 1, 1))
    return symmetric(rng.random((200, V, V)) < density)


def size(adjacency):
    graph = networkx.from_numpy_array(adjacency)
    return len(networkx.max_weight_matching(graph, maxcardinality=True))


def first_covered(adjacency):
    """The first set that a maximum matching covers: the pivots of a Tutte matrix of random entries.

    Sets that matchings cover are sets of independent columns, for nearly all entries modulo a prime.
    """
    rng = np.random.default_rng(1)
    entries = np.triu(rng.integers(1, PRIME, adjacency.shape) * adjacency, 1)
    matrix = (entries - entries.T) % PRIME
    pivots = []
    for column in range(len(matrix)):
        row = len(pivots)
        below = row + np.flatnonzero(matrix[row:, column])
        if not len(below):
            continue
        matrix[[row, below[0]]] = matrix[[below[0], row]]
        inverse = pow(int(matrix[row, column]), -1, PRIME)
        factors = matrix[row + 1 :, column] * inverse % PRIME
        matrix[row + 1 :] = (matrix[row + 1 :] - factors[:, None] * matrix[row] % PRIME) % PRIME
        pivots.append(column)
    return pivots


def covered(mate):
    return np.flatnonzero(np.asarray(mate) >= 0).tolist()


def test_a_matching_is_maximum_and_covers_the_first_set():
    found = np.asarray(SEARCH(graphs(), NOBODY))
    everyone = np.arange(V)
    for adjacency, mate in zip(graphs(), found, strict=True):
        pairs = everyone[mate >= 0]
        np.testing.assert_array_equal(mate[mate[pairs]], pairs)
        assert np.all(adjacency[pairs, mate[pairs]])
        assert len(pairs) == 2 * size(adjacency)
        assert pairs.tolist() == first_covered(adjacency)


def test_what_is_covered_does_not_depend_on_the_start():
    rng = np.random.default_rng(2)
    expected = np.asarray(SEARCH(graphs(), NOBODY)) >= 0
    fewer = graphs() & symmetric(rng.random((200, V, V)) < 0.5)
    nonsense = rng.integers(-1, V, (200, V)).astype(np.int32)
    for start in (np.asarray(SEARCH(fewer, NOBODY)), nonsense):
        np.testing.assert_array_equal(np.asarray(SEARCH(graphs(), start)) >= 0, expected)


# c1, c2, c3 are 0, 1, 2 and b1, b2, b3 are 3, 4, 5.
SMALL = {
    "c1 and c2 accuse b1, c1 also b2: no greedy choice": ([(0, 3), (0, 4), (1, 3)], [0, 1, 3, 4]),
    "one accuser of two is matched with the first": ([(0, 3), (0, 4)], [0, 3]),
    "an edge in the middle is left": ([(0, 3), (3, 4), (1, 4)], [0, 1, 3, 4]),
    "an odd cycle": ([(3, 4), (4, 5), (3, 5), (0, 3)], [0, 3, 4, 5]),
    "nothing": ([], []),
}


def test_small_graphs():
    given = np.zeros((200, V, V), bool)
    for place, (edges, _) in enumerate(SMALL.values()):
        for i, j in edges:
            given[place, i, j] = given[place, j, i] = True
    found = SEARCH(given, NOBODY)
    for mate, (edges, expected) in zip(found, SMALL.values(), strict=False):
        assert covered(mate) == expected, edges


def test_sound_graphs_block_no_more_cooperative_than_byzantine_and_all_under_halls_condition():
    """Every edge has a Byzantine end; edges between Byzantine robots are among them."""
    rng = np.random.default_rng(3)
    lying = np.arange(V) >= V - rng.integers(1, 8, (200, 1))
    ends = lying[:, :, None] | lying[:, None, :]
    given = symmetric((rng.random((200, V, V)) < rng.uniform(0.05, 0.6, (200, 1, 1))) & ends)
    found = np.asarray(SEARCH(given, NOBODY)) >= 0
    halls = 0
    for adjacency, blocked, liar in zip(given, found, lying, strict=True):
        cooperative, byzantine = (blocked & ~liar).sum(), (blocked & liar).sum()
        assert cooperative <= byzantine <= liar.sum()
        between = adjacency & (liar[:, None] != liar)
        if size(between) == liar.sum():
            halls += 1
            assert cooperative == byzantine == liar.sum()
    assert 40 < halls < 160


def accusations(rng, count):
    """Places of so many random accusations in their accusers' lists, in the order of a permutation."""
    pairs = rng.permutation([(i, j) for i in range(V) for j in range(V) if i != j])[:count]
    places = np.full((V, V), NEVER, np.int16)
    for accuser, accused in pairs:
        places[accuser, accused] = (places[accuser] != NEVER).sum()
    return places


@pytest.mark.parametrize("devices", [pytest.param(1, marks=pytest.mark.slow), 8])
def test_the_order_in_which_accusations_come_does_not_matter(devices):
    """Each robot hears of the same accusations in an order of its own, some robots in the same one."""
    import dflax as dx

    rng = np.random.default_rng(4)
    places = accusations(rng, 24)
    made = (places != NEVER).sum(1)
    order = [rng.permutation(np.repeat(np.arange(V), made)) for _ in range(V)]
    order[3] = order[7]
    known = np.zeros((V, V), np.int16)
    mate = np.full((V, V), -1, np.int32)
    with jax.set_mesh(dx.client_mesh(jax.devices()[:devices])):
        update = jax.jit(matchings)
        for heard in range(len(order[0])):
            before = known.copy()
            for robot in range(V):
                known[robot, order[robot][heard]] += robot != 5 or heard % 2 == 0
            mate = update(mate, known, places, jnp.asarray((known != before).any(1)))
            if heard in (7, 15):
                for robot in (3, 5, 9):
                    edges = places < known[robot][:, None]
                    assert covered(mate[robot]) == first_covered(edges | edges.T)
    whole = places != NEVER
    expected = first_covered(whole | whole.T)
    assert all(covered(row) == expected for place, row in enumerate(mate) if place != 5)
    assert covered(mate[5]) != expected


def test_refusals():
    with pytest.raises(ValueError, match="adjacency must be square"):
        maximum_matching(np.zeros((2, 3), bool))
    with pytest.raises(TypeError, match="adjacency must be booleans"):
        maximum_matching(np.zeros((2, 2)))
    with pytest.raises(ValueError, match="start must be"):
        maximum_matching(np.zeros((2, 2), bool), np.array([2, 0]))
