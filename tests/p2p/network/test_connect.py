"""Connections against the closed form, hand tables and the two extremes of NATs."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dflax import p2p, topology

KEY = jax.random.key(3)
MIX = np.array([0.10, 0.25, 0.15, 0.35, 0.15])
N = 60
RNG = np.random.default_rng(0)
AWAY = RNG.uniform(0.01, 0.2, (N, 3)).astype(np.float32)
ABOVE = np.triu(RNG.uniform(0.01, 0.2, (N, N)), 1).astype(np.float32)
RTT = ABOVE + ABOVE.T
CONNECT = jax.jit(p2p.connected, static_argnames=("attempts", "reversal"))


def kinds(kind):
    return np.full(N, kind, np.int32)


def test_the_matrix_of_nats_is_the_textbook_one():
    possible = p2p.textbook_nats()
    np.testing.assert_array_equal(possible, possible.T)
    np.testing.assert_allclose(MIX @ possible @ MIX, 0.8725)


def test_public_peers_are_direct_and_symmetric_ones_relayed():
    others = ~np.eye(N, dtype=bool)
    opened = CONNECT(KEY, kinds(p2p.Nat.PUBLIC), RTT, AWAY, success=0.0)
    np.testing.assert_array_equal(opened.state, 2 * others)
    np.testing.assert_allclose(opened.delay, RTT)
    assert not opened.attempts.any()
    closed = CONNECT(KEY, kinds(p2p.Nat.SYMMETRIC), RTT, AWAY)
    np.testing.assert_array_equal(closed.state, 1 * others)
    np.testing.assert_array_equal(closed.attempts, 3 * others)
    # The circuit of whichever of the two has the nearer relay, seen from the pair.
    near = AWAY.argmin(1)
    over = AWAY[:, near] + AWAY.min(1)
    np.testing.assert_allclose(
        closed.delay, np.where(others, np.minimum(over, over.T), 0), rtol=1e-6
    )
    i, j = np.nonzero(others)
    relay = np.asarray(closed.relay)
    np.testing.assert_allclose(
        AWAY[i, relay[i, j]] + AWAY[j, relay[i, j]], np.asarray(closed.delay)[i, j], rtol=1e-6
    )
    alone = CONNECT(KEY, kinds(p2p.Nat.SYMMETRIC), RTT, None)
    assert not alone.link.any()
    assert np.isinf(alone.delay[0, 1])
    assert (np.asarray(alone.relay) == -1).all()


@pytest.mark.parametrize("reversal", [False, True])
def test_the_direct_share_is_that_of_the_drawn_types(reversal):
    nat = np.asarray(p2p.drawn_nats(KEY, N, MIX))
    tries = jax.vmap(
        lambda key, p: p2p.connected(key, nat, RTT, AWAY, success=p, reversal=reversal)
    )
    networks = jax.jit(tries)(jax.random.split(KEY, 40), jnp.linspace(0.1, 0.976, 40))
    p = np.linspace(0.1, 0.976, 40)[:, None, None]
    chance = p2p.textbook_nats()[nat[:, None], nat] * (1 - (1 - p) ** 3)
    if reversal:
        chance = np.where((nat[:, None] == 0) | (nat == 0), 1.0, chance)
    pairs = np.triu_indices(N, 1)
    found = np.asarray(networks.direct)
    np.testing.assert_array_equal(found, found.transpose(0, 2, 1))
    difference = (found - chance)[:, pairs[0], pairs[1]].sum()
    deviation = np.sqrt((chance * (1 - chance))[:, pairs[0], pairs[1]].sum())
    assert abs(difference) < 4 * deviation
    # With relays everybody reaches everybody.
    assert np.asarray(networks.link)[:, pairs[0], pairs[1]].all()
    # Of those that were punched at all, p (of 1 - (1 - p)^3) at the first try.
    punched = found & (np.asarray(networks.attempts) > 0)
    first = (punched & (np.asarray(networks.attempts) == 1))[-1].sum() / punched[-1].sum()
    assert abs(first - 0.976) < 0.02


def test_one_more_attempt_keeps_every_connection():
    nat = p2p.drawn_nats(KEY, N, MIX)
    few = CONNECT(KEY, nat, RTT, AWAY, success=0.3, attempts=1, reversal=False)
    more = CONNECT(KEY, nat, RTT, AWAY, success=0.3, attempts=2, reversal=False)
    none = CONNECT(KEY, nat, RTT, AWAY, attempts=0, reversal=False)
    assert np.all(more.direct | ~few.direct)
    assert more.direct.sum() > few.direct.sum()
    assert not none.direct.any()
    assert not none.attempts.any()


def test_links_are_the_graph_and_the_weights_of_a_method():
    network = CONNECT(KEY, p2p.drawn_nats(KEY, N, MIX), RTT, None, success=0.05)
    graph = p2p.topology_of(network.link)
    np.testing.assert_allclose(
        jax.jit(p2p.metropolis_of)(network.link), topology.metropolis(graph).dense(), atol=1e-6
    )
    with pytest.raises(ValueError, match="link must be connected"):
        p2p.topology_of(np.zeros((3, 3), bool), disconnected=False)


def test_stun_tells_public_cone_and_symmetric():
    local = np.array([[10, 4001]] * 3)
    mapped = np.array([[[10, 4001]] * 2, [[77, 9]] * 2, [[77, 9], [77, 10]]])
    found = p2p.nat_by_stun(local, mapped)
    assert found.tolist() == [p2p.Nat.PUBLIC, p2p.Nat.PORT_RESTRICTED, p2p.Nat.SYMMETRIC]
    with pytest.raises(ValueError, match="mapped must be"):
        p2p.nat_by_stun(local, mapped[:, 0])
    with pytest.raises(ValueError, match="local must be"):
        p2p.nat_by_stun(local[:, :1], mapped)


def test_wrong_networks_are_refused():
    nat = kinds(0)
    with pytest.raises(ValueError, match="rtt must be symmetric"):
        p2p.connected(KEY, nat, ABOVE)
    with pytest.raises(ValueError, match="possible must be symmetric"):
        p2p.connected(KEY, nat, RTT, possible=np.triu(np.ones((5, 5)), 1))
    with pytest.raises(ValueError, match="nat must be"):
        p2p.connected(KEY, nat + 5, RTT)
    with pytest.raises(ValueError, match="to_relay must be"):
        p2p.connected(KEY, nat, RTT, AWAY[:5])
    with pytest.raises(ValueError, match="mix must have the sum 1"):
        p2p.drawn_nats(KEY, 3, np.full(5, 0.1))
    with pytest.raises(ValueError, match="link must be symmetric"):
        p2p.metropolis_of(np.triu(np.ones((3, 3), bool)))
