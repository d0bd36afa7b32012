"""Noise that cancels in sums: its covariance against the matrices, and DP-FTRL."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from tasks import assert_trees_close, half_square, quadratics

import dflax as dx

KEY = jax.random.key(0)
PREFIX = np.tril(np.ones((16, 16)))


def rows(noise, steps, numbers=3000):
    """`[T, numbers]` rows of `C^-1 Z`, one column an independent experiment."""
    like = jnp.zeros(numbers)

    def body(state, t):
        row, state = noise.step(state, KEY, t, like)
        return state, row

    return np.asarray(jax.jit(lambda: jax.lax.scan(body, noise.init(like), jnp.arange(steps)))()[1])


def covariance(found):
    return found @ found.T / found.shape[1]


@pytest.mark.parametrize("steps", [16, 8, 5])
def test_the_tree_is_a_tree(steps):
    """Prefix sums are sums over nodes: of common nodes the covariance is the number."""
    sums = PREFIX @ rows(dx.privacy.tree_noise(steps), 16)

    def nodes(count):
        tree, left = divmod(count, steps)
        made = set()
        for ended in range(tree):
            made |= {(ended, *node) for node in one(steps)}
        return made | {(tree, *node) for node in one(left)}

    def one(count):
        return {(bit, count >> bit) for bit in range(6) if count >> bit & 1}

    wanted = [[len(nodes(s + 1) & nodes(t + 1)) for t in range(16)] for s in range(16)]
    error = np.abs(covariance(sums) - np.array(wanted))
    assert error.max() < 5 * np.max(wanted) * np.sqrt(2 / 3000)


@pytest.mark.slow
def test_a_banded_matrix_is_its_inverse_and_sensitivity():
    pytest.importorskip("jax_privacy")
    noise = dx.privacy.banded_noise(16, 4, separation=4)
    found = rows(noise, 16)
    # The first column of C^-1, from the covariance's first row; C is banded and Toeplitz.
    inverse = np.linalg.cholesky(covariance(found) + 1e-9 * np.eye(16))
    strategy = np.linalg.inv(inverse)
    assert np.abs(np.tril(strategy, -4)).max() < 0.15
    np.testing.assert_allclose(np.linalg.norm(strategy[:, 4]), 1.0, atol=0.1)
    # Four participations whose columns do not meet.
    np.testing.assert_allclose(noise.sensitivity, 2.0, rtol=1e-5)
    once = dx.privacy.banded_noise(16, 4)
    np.testing.assert_allclose(once.sensitivity, 1.0, rtol=1e-5)
    # Less noise in the sums than white noise of the same privacy.
    white = 2.0 * np.sqrt(np.arange(1, 17).mean())
    sums = PREFIX @ found * noise.sensitivity
    assert np.sqrt(np.mean(sums**2)) < 0.85 * np.sqrt(16) * np.sqrt(8.5)
    assert np.sqrt(np.mean(sums**2)) < 0.9 * white
    assert dx.privacy.banded_noise(16, 1, separation=4).sensitivity == pytest.approx(2.0)


@pytest.mark.slow
def test_buffers_are_cheaper_than_bands_and_as_good():
    pytest.importorskip("jax_privacy")
    noise = dx.privacy.buffered_noise(16, separation=4, buffers=2)
    sums = PREFIX @ rows(noise, 16) * noise.sensitivity
    banded = dx.privacy.banded_noise(16, 4, separation=4)
    assert np.mean(sums[-1] ** 2) < 1.2 * np.mean(
        (PREFIX @ rows(banded, 16) * banded.sensitivity)[-1] ** 2
    )
    assert len(jax.tree.leaves(noise.init(jnp.zeros(3)))[0]) <= 2


def of_ftrl():
    task = quadratics(clients=8)
    table = dx.participation.from_table(np.arange(8).reshape(4, 2))
    source = task.federation(1, participation=table)
    noise = dx.privacy.tree_noise(4)
    method = dx.recipes.dp_ftrl(half_square, optax.sgd(0.5), noise, 0.7, 0.6, 2.0)
    return task, source, noise, method, method.init(KEY, jnp.zeros(3))


def test_dp_ftrl_is_the_noisy_sum_of_its_changes(tmp_path):
    """With a tree, the model is the start, the clipped changes, and the nodes' noise; resumed."""
    task, source, noise, method, start = of_ftrl()
    dx.run(method, start, source, rounds=4, key=KEY, checkpoint=tmp_path / "run")
    state, _ = dx.run(method, start, source, rounds=8, key=KEY, checkpoint=tmp_path / "run")
    held = jax.random.wrap_key_data(state.server.aggregator[1])
    step = jax.jit(lambda t: noise.step((), held, t, jnp.zeros(3))[0])
    added = [step(t) for t in range(8)]
    x = np.zeros(3)
    for t in range(8):
        change = 0.5 * (task.centers[2 * t % 8 : 2 * t % 8 + 2] - x)
        cut = np.minimum(1, 0.7 / np.linalg.norm(change, axis=1)) @ change
        x = x + (cut + 0.6 * 0.7 * np.asarray(added[t])) / 2
    np.testing.assert_allclose(state.server.params, x, atol=1e-4)


@pytest.mark.slow
def test_dp_ftrl_interrupted_and_on_devices_is_the_same(tmp_path):
    _, source, _, method, start = of_ftrl()
    state, _ = dx.run(method, start, source, rounds=8, key=KEY)
    dx.run(method, start, source, rounds=3, key=KEY, checkpoint=tmp_path / "run")
    again, _ = dx.run(method, start, source, rounds=8, key=KEY, checkpoint=tmp_path / "run")
    assert_trees_close(again.server, state.server, rtol=0, atol=0)
    dealt, _ = dx.run(method, start, source, rounds=8, key=KEY, mesh=dx.client_mesh())
    assert_trees_close(dealt.server, state.server, rtol=1e-4, atol=1e-5)


def test_clients_that_come_back_too_early_are_refused():
    task = quadratics(clients=8)
    table = dx.participation.from_table(np.arange(8).reshape(4, 2))
    source = task.federation(1, participation=table)
    plan = dx.privacy.correlated_plan(source, dx.privacy.tree_noise(4), 2.0, 8)
    assert plan.sampling == "tree"
    with pytest.raises(ValueError, match="at most once in every 8 rounds"):
        dx.privacy.correlated_plan(source, dx.privacy.tree_noise(8), 2.0, 8)
    uniform = task.federation(1, participation=dx.participation.uniform(2))
    with pytest.raises(ValueError, match="cohorts that are known beforehand"):
        dx.privacy.correlated_plan(uniform, dx.privacy.tree_noise(4), 2.0, 8)
    matrix = dx.privacy.CorrelatedNoise(lambda m: (), lambda *a: a, 1.0, 8, "matrix", 5, 2)
    with pytest.raises(ValueError, match="every 5 rounds at most"):
        dx.privacy.correlated_plan(source, matrix, 2.0, 8)
    with pytest.raises(ValueError, match="rounds must be at most 8"):
        dx.privacy.correlated_plan(source, matrix._replace(separation=4), 2.0, 9)
    kept = dx.privacy.correlated_plan(source, matrix._replace(separation=4), 2.0, 8)
    assert kept.event().noise_multiplier == 2.0
