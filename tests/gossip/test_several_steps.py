"""Repeated and Chebyshev-accelerated gossip."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dflax import gossip, topology
from dflax.gossip import Mixing

KEY = jax.random.key(0)
MODELS = jnp.asarray(np.random.default_rng(0).standard_normal((20, 5)), jnp.float32)


def mix(mixer, models=MODELS, index=0, active=None):
    return jax.jit(mixer.apply)(models, mixer.init(models), Mixing(KEY, jnp.int32(index), active))


@pytest.mark.parametrize("steps", [1, 2, 5])
def test_repeated_gossip_is_a_power_and_contracts(steps):
    matrix = topology.metropolis(topology.ring(20))
    mixed, _, metrics = mix(gossip.ring(20, steps=steps))
    power = np.linalg.matrix_power(matrix.dense(), steps)
    np.testing.assert_allclose(mixed, power @ np.asarray(MODELS, np.float64), atol=1e-6)
    assert metrics["models_sent"] == 40 * steps
    spread = np.linalg.norm(MODELS - MODELS.mean(0))
    bound = topology.second_eigenvalue(matrix) ** steps * spread
    assert np.linalg.norm(mixed - MODELS.mean(0)) <= bound * (1 + 1e-5)


def test_a_schedule_advances_with_every_gossip_step():
    mixer = gossip.one_peer_exponential(16, steps=4)
    for index in (0, 3):
        mixed, _, metrics = mix(mixer, MODELS[:16], index)
        np.testing.assert_allclose(mixed, jnp.tile(MODELS[:16].mean(0), (16, 1)), atol=1e-6)
        assert metrics["models_sent"] == 64
    half = gossip.one_peer_exponential(16, steps=2)
    first, _, _ = mix(half, MODELS[:16], 0)
    second, _, _ = mix(half, first, 1)
    np.testing.assert_allclose(second, jnp.tile(MODELS[:16].mean(0), (16, 1)), atol=1e-6)


def test_random_graphs_differ_between_gossip_steps():
    sums = jnp.eye(10)
    once, _, _ = mix(gossip.random_matching(10), sums)
    twice, _, _ = mix(gossip.random_matching(10, steps=2), sums)
    assert (twice > 0).sum() > (once > 0).sum()


@pytest.mark.parametrize("steps", [1, 2, 3, 8])
@pytest.mark.parametrize(
    "graph", [topology.ring(20), topology.geometric(20, 0.45, seed=0)], ids=lambda g: g.name
)
def test_chebyshev_is_the_polynomial_of_the_matrix(graph, steps):
    matrix = topology.metropolis(graph)
    bound = topology.second_eigenvalue(matrix)
    values, vectors = np.linalg.eigh(matrix.dense())
    polynomial = np.polynomial.Chebyshev.basis(steps)
    expected = vectors * (polynomial(values / bound) / polynomial(1 / bound)) @ vectors.T
    mixed, _, metrics = mix(gossip.chebyshev(graph, steps))
    np.testing.assert_allclose(mixed, expected @ np.asarray(MODELS, np.float64), atol=3e-6)
    np.testing.assert_allclose(mixed.mean(0), MODELS.mean(0), atol=1e-6)
    assert metrics["models_sent"] == len(graph.senders) * steps
    c = (1 - np.sqrt(1 - bound**2)) / bound
    contraction = 2 * c**steps / (1 + c ** (2 * steps))
    assert contraction <= bound**steps + 1e-12
    spread = np.linalg.norm(MODELS - MODELS.mean(0))
    assert np.linalg.norm(mixed - MODELS.mean(0)) <= contraction * spread * (1 + 1e-5) + 1e-5


def test_chebyshev_at_full_mixing_and_from_a_mixer():
    mixed, _, _ = mix(gossip.chebyshev(topology.complete(20), 3))
    np.testing.assert_allclose(mixed, jnp.tile(MODELS.mean(0), (20, 1)), atol=1e-6)
    bound = topology.second_eigenvalue(topology.metropolis(topology.ring(20)))
    by_mixer, _, _ = mix(gossip.chebyshev(gossip.ring(20), 4, second_eigenvalue=bound))
    by_graph, _, _ = mix(gossip.chebyshev(topology.ring(20), 4))
    np.testing.assert_allclose(by_mixer, by_graph, atol=1e-6)


def test_chebyshev_with_absent_clients_keeps_the_mean_and_their_models():
    active = jnp.arange(20) % 5 != 0
    mixed, _, _ = mix(gossip.chebyshev(topology.ring(20), 30), active=active)
    np.testing.assert_array_equal(mixed[~active], MODELS[~active])
    np.testing.assert_allclose(mixed.mean(0), MODELS.mean(0), atol=1e-5)
    assert jnp.linalg.norm(mixed) <= jnp.linalg.norm(MODELS)


def test_chebyshev_sweeps_its_eigenvalue():
    def spread(bound):
        mixer = gossip.chebyshev(gossip.ring(20), 6, second_eigenvalue=bound)
        mixed, _, _ = mixer.apply(MODELS, mixer.init(MODELS), Mixing(KEY, 0))
        return jnp.std(mixed, axis=0).max()

    zero, right = jax.vmap(spread)(jnp.array([0.0, 0.967371]))
    assert right < zero


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: gossip.ring(4, steps=0), ValueError, "steps must be"),
        (lambda: gossip.repeat(gossip.ring(4), 1.5), TypeError, "steps must be"),
        (lambda: gossip.chebyshev(topology.ring(4), 0), ValueError, "steps must be"),
        (lambda: gossip.chebyshev(gossip.ring(4), 2), TypeError, "second_eigenvalue must be"),
        (lambda: gossip.chebyshev(topology.exponential(8), 2), ValueError, "symmetric"),
        (
            lambda: gossip.chebyshev(topology.ring(4), 2, second_eigenvalue=1.0),
            ValueError,
            "second_eigenvalue must be",
        ),
        (lambda: gossip.chebyshev(np.eye(3), 2), ValueError, "disconnected"),
        (
            lambda: gossip.chebyshev(topology.ring(4), 2, second_eigenvalue=jnp.zeros(0)),
            ValueError,
            "second_eigenvalue must be a single real number",
        ),
        (
            lambda: gossip.chebyshev(topology.ring(4), 2, second_eigenvalue=0.5j),
            TypeError,
            "second_eigenvalue must be a real number",
        ),
        (
            lambda: gossip.chebyshev(topology.ring(4), 2, second_eigenvalue=True),
            TypeError,
            "second_eigenvalue must be a real number",
        ),
        (
            lambda: gossip.chebyshev(np.kron(np.eye(2), np.full((2, 2), 0.5)), 2),
            ValueError,
            "second_eigenvalue must be .* connect it",
        ),
        (lambda: gossip.repeat(3, 1), TypeError, "mixer must be a Mixer, got int"),
    ],
)
def test_bad_arguments_are_refused(make, error, message):
    with pytest.raises(error, match=message):
        make()
