"""Costs of calls against tables by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dflax import p2p


def test_a_call_takes_the_way_the_size_and_the_overhead():
    calls = p2p.rpc(overhead=0.001, server_rate=900.0)
    np.testing.assert_allclose(calls.time(0.1, 1e6, 1e7), 0.1 + 0.1 + 0.001, rtol=1e-6)
    # Bound by the round trip, by the link, by the server.
    np.testing.assert_allclose(calls.rate(2, 0.1, 1e6, 1e9), 2 / 0.102, rtol=1e-5)
    np.testing.assert_allclose(calls.rate(100, 0.1, 1e6, 1e7), 10.0, rtol=1e-6)
    np.testing.assert_allclose(calls.rate(1e6, 0.1, 128, 1e9), 900.0)
    swept = jax.vmap(lambda cost: p2p.rpc(overhead=cost).time(0.1, 0.0, 1.0))(jnp.array([0.0, 0.5]))
    np.testing.assert_allclose(swept, [0.1, 0.6])


@pytest.mark.parametrize(
    ("codec", "least"), [("lz4", 256), ("zstd", 512), ("gzip", 512), ("brotli", 1024)]
)
def test_small_messages_are_not_compressed(codec, least):
    packed = p2p.rpc(codec=codec, ratio=0.5)
    sizes = jnp.array([least - 1, least])
    np.testing.assert_allclose(packed.time(0.0, sizes, 1.0), [least - 1, least / 2])
    np.testing.assert_allclose(p2p.rpc(ratio=0.5).time(0.0, sizes, 1.0), sizes)


@pytest.mark.slow
def test_circuits_share_their_relay():
    symmetric = np.array([0, 4, 4, 4])
    apart = np.full((4, 4), 0.1) * ~np.eye(4, dtype=bool)
    network = p2p.connected(jax.random.key(0), symmetric, apart, np.full((4, 1), 0.01))
    up, down = np.array([1e6, 2e6, 3e6, 4e6]), np.array([5e6, 1e6, 3e6, 3e6])
    found = np.asarray(p2p.link_bandwidth(network, up, down, np.array([1.5e6])))
    # Three circuits over one relay; peer 0 is public, and dialled.
    expected = np.minimum(up[:, None], down)
    expected[1:, 1:] = np.minimum(expected[1:, 1:], 0.5e6)
    np.testing.assert_allclose(found, expected * ~np.eye(4, dtype=bool))
    free = np.asarray(p2p.link_bandwidth(network, up, down))
    np.testing.assert_allclose(free, np.minimum(up[:, None], down) * ~np.eye(4, dtype=bool))


def test_wrong_costs_are_refused():
    with pytest.raises(ValueError, match="codec must be"):
        p2p.rpc(codec="zip")
    with pytest.raises(ValueError, match="ratio must be"):
        p2p.rpc(ratio=0.0)
    with pytest.raises(TypeError, match="network must be"):
        p2p.link_bandwidth(3, np.ones(2), np.ones(2))


def test_the_published_rates_are_within_the_model():
    """10,000 calls of 128 B in a machine, 1,200 over a wide area, 110 of 256 KiB between continents."""
    calls = p2p.rpc(overhead=50e-6)
    np.testing.assert_allclose(calls.rate(1, 50e-6, 128, 1e9), 1e4, rtol=0.01)
    # 50 ms and 60 calls under way; 150 ms, a link of 230 Mbit/s that is full with 18 of them.
    np.testing.assert_allclose(calls.rate(60, 0.05, 128, 1e7), 1200, rtol=0.01)
    np.testing.assert_allclose(calls.rate(18, 0.15, 262_144, 28.9e6), 110, rtol=0.03)
