import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.linalg import expm

import dflax as dx
from dflax.decentralized.accelerated.flow import generator, momenta, propagator
from dflax.events.law import Law
from dflax.gossip import independent_groups, poisson_stream
from dflax.topology import given_rates, switching, uniform_rates

STAR = uniform_rates(dx.topology.star(6))


@pytest.mark.parametrize(("mu", "smooth"), [(1.0, 1.0), (1.17, 2.9), (1e-3, 5.0), (1e-6, 1.0)])
def test_the_closed_form_is_the_matrix_exponential(mu, smooth):
    with jax.enable_x64(True):
        constants = momenta(mu, smooth)
        matrix, flow = np.asarray(generator(constants)), propagator(constants)
        for h in (0.0, 1e-3, 0.1, 1.0, 10.0, 300.0):
            exact, ours = expm(matrix * h), np.asarray(flow(jnp.float64(h)))
            np.testing.assert_allclose(ours, exact, atol=1e-12 * np.abs(exact).max())
            # x and x~ mix doubly stochastically; (c, c, -nu c - w, -nu c - w, w, w) never moves.
            np.testing.assert_allclose(ours[:2, :2].sum(0), 1.0)
            c, w, nu = 0.7, -1.3, mu / 2
            fixed = np.array([c, c, -nu * c - w, -nu * c - w, w, w])
            np.testing.assert_allclose(ours @ fixed, fixed, atol=1e-9 * np.abs(exact).max())


def test_counts_and_places_follow_the_rates():
    stream = poisson_stream(STAR, 40_000, seed=0)
    gradient, nodes = np.asarray(stream.gradient), np.asarray(stream.nodes)
    end = float(stream.time[-1])
    # Both kinds are Poisson: within five standard deviations of their means.
    for count, mean in ((gradient.sum(), 6 * end), ((~gradient).sum(), STAR.total * end)):
        assert abs(count - mean) < 5 * np.sqrt(mean)
    at_nodes = np.bincount(nodes[gradient, 0], minlength=6)
    assert np.abs(at_nodes - gradient.sum() / 6).max() < 5 * np.sqrt(gradient.sum() / 6)
    assert (nodes[gradient, 0] == nodes[gradient, 1]).all()
    links = nodes[~gradient]
    assert (links[:, 0] == 0).all()
    leaves = np.bincount(links[:, 1], minlength=6)[1:]
    assert np.abs(leaves - leaves.mean()).max() < 5 * np.sqrt(leaves.mean())


def test_gaps_are_times_since_a_nodes_last_event():
    stream = jax.tree.map(np.asarray, poisson_stream(STAR, 500, seed=1))
    last = np.zeros(6)
    for time, gradient, nodes, gaps in zip(*stream[1:5], strict=True):
        for place in range(1 if gradient else 2):
            assert gaps[place] == pytest.approx(time - last[nodes[place]], abs=2e-5)
        last[nodes] = time


def test_switching_graphs_use_the_links_of_their_phase():
    star, ring = uniform_rates(dx.topology.star(6)), uniform_rates(dx.topology.ring(6))
    rates = switching([star, ring], dwell=0.5)
    stream = jax.tree.map(np.asarray, poisson_stream(rates, 4000, seed=2))
    phase = np.floor(stream.time / 0.5).astype(int) % 2
    inside = np.abs(stream.time / 0.5 - np.round(stream.time / 0.5)) > 1e-3
    for number, graph in enumerate((dx.topology.star(6), dx.topology.ring(6))):
        chosen = stream.nodes[(phase == number) & ~stream.gradient & inside]
        assert len(chosen) > 500
        assert {tuple(pair) for pair in chosen} <= {tuple(pair) for pair in graph.links}


def test_groups_hold_every_event_once_without_conflicts_and_in_order():
    stream = poisson_stream(STAR, 300, seed=3)
    groups = jax.tree.map(np.asarray, independent_groups(stream, 6, gradients=2, links=1))
    history = [[] for _ in range(6)]
    for row in range(len(groups.time)):
        taking = [groups.gradient_nodes[row], groups.links[row].reshape(-1)]
        taking = np.concatenate(taking)
        taking = taking[taking < 6]
        assert len(set(taking)) == len(taking)
        for node, time in zip(groups.gradient_nodes[row], groups.gradient_times[row], strict=True):
            if node < 6:
                history[node].append(time)
        for pair, time in zip(groups.links[row], groups.link_times[row], strict=True):
            for node in pair[pair < 6]:
                history[node].append(time)
    expected = [[] for _ in range(6)]
    for time, nodes in zip(np.asarray(stream.time), np.asarray(stream.nodes), strict=True):
        for node in set(nodes.tolist()):
            expected[node].append(time)
    assert history == expected
    assert groups.gradients.sum() + groups.communications.sum() == 300


def test_a_law_is_known_by_its_graphs_rates_and_gradients():
    ring = dx.topology.ring(6)
    laws = [
        Law(STAR, 1.0),
        Law(STAR, 0.0),
        Law(uniform_rates(ring), 1.0),
        Law(given_rates(ring, 1.0), 1.0),
        Law(uniform_rates(dx.topology.star(7)), 1.0),
        Law(switching([STAR, uniform_rates(ring)], dwell=0.5), 1.0),
        Law(switching([STAR, uniform_rates(ring)], dwell=0.6), 1.0),
    ]
    assert len(set(laws)) == len({repr(law) for law in laws}) == len(laws)
    again = Law(uniform_rates(dx.topology.star(6)), 1.0)
    assert again == laws[0]
    assert repr(again) == repr(laws[0])


def test_tables_of_several_seeds_stack_and_keep_their_law():
    streams = [poisson_stream(STAR, 20, seed=seed) for seed in (0, 1)]
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *streams)
    assert stacked.time.shape == (2, 20)
    assert stacked.law == streams[0].law == independent_groups(streams[0], 6).law


def test_bad_arguments_are_refused():
    with pytest.raises(TypeError, match="rates must be of type GossipRates"):
        poisson_stream(dx.topology.ring(4), 10, seed=0)
    with pytest.raises(ValueError, match="events must be an integer"):
        poisson_stream(STAR, 0, seed=0)
    alone = dx.topology.switching_graphs
    with pytest.raises(ValueError, match="at least one graph"):
        alone([], dwell=1.0)
    with pytest.raises(TypeError, match="stream must be of type Stream"):
        independent_groups(None, 4)
    with pytest.raises(ValueError, match=r"nodes must be 6.*got 5: it was drawn on star of 6"):
        independent_groups(poisson_stream(STAR, 50, seed=0), 5)
    data = dx.data.Dataset(jnp.zeros((4, 1)), jnp.zeros(4, jnp.int32))
    partition = dx.data.from_indices([np.array([i]) for i in range(4)])
    with pytest.raises(
        ValueError, match=r"partition must have 6 clients.*got 4 and events of star of 6"
    ):
        dx.gossip.NodeEvents(data, partition, poisson_stream(STAR, 50, seed=0))
    small = poisson_stream(uniform_rates(dx.topology.ring(3)), 50, seed=0)
    for events in (small, independent_groups(small, 3)):
        with pytest.raises(ValueError, match=r"partition must have 3 clients.*got 4 and events of"):
            dx.gossip.NodeEvents(data, partition, events)
    with pytest.raises(ValueError, match="batch_size must be"):
        dx.gossip.NodeEvents(data, partition, poisson_stream(STAR, 50, seed=0), batch_size=0)
