"""W-MSR as a neighbour rule: by hand, against NumPy, and as plain averaging."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dflax import gossip, topology
from dflax.gossip import Mixing

KEY = jax.random.key(0)
N = 16


def mixed(topology, f, tree, active=None):
    def once(f, tree, active):
        mixer = gossip.by_rule(topology, gossip.w_msr(f), weights=None)
        return mixer.apply(tree, mixer.init(tree), Mixing(KEY, jnp.int32(0), active))

    after, _, metrics = jax.jit(once, static_argnums=0 if isinstance(f, int) else ())(
        f, tree, active
    )
    return after, metrics


def test_the_example_by_hand():
    star = topology.uniform(topology.complete(5))
    after, metrics = mixed(star, 1, jnp.array([1.0, 0.0, 1.0, 2.0, 50.0]))
    # The two clients of value 1 leave 0 and 50 out of what they hear; 50 itself leaves out the 0 alone.
    np.testing.assert_allclose(after[:3], [4 / 3, (0 + 1 + 1 + 2) / 4, 4 / 3], rtol=1e-6)
    np.testing.assert_allclose(after[4], (50 + 1 + 1 + 2) / 4, rtol=1e-6)
    np.testing.assert_allclose(metrics["left_out"], (2 + 1 + 2 + 2 + 1) / 20, rtol=1e-6)


def test_without_anyone_left_out_it_averages_at_once_on_the_complete_graph():
    values = np.random.default_rng(0).standard_normal((N, 3)).astype(np.float32)
    after, metrics = mixed(topology.uniform(topology.complete(N)), 0, values)
    np.testing.assert_allclose(after, np.tile(values.mean(0), (N, 1)), atol=1e-6)
    assert metrics["left_out"] == 0


@pytest.mark.parametrize("f", [1, 2])
def test_against_numpy_with_absent_neighbours_ties_and_what_is_no_number(f):
    rng = np.random.default_rng(f)
    matrix = topology.metropolis(topology.erdos_renyi(N, 0.5, seed=1))
    active = np.arange(N) % 5 != 2
    with jax.enable_x64(True):
        values = rng.integers(-3, 4, (N, 4)).astype(float)
        values[4, 0], values[5, 1], values[6, 2] = np.nan, np.inf, -np.inf
        after, _ = mixed(matrix, jnp.int32(f), values, jnp.asarray(active))
    weights = np.asarray(matrix.dense())
    for i in np.flatnonzero(active):
        heard = [j for j in range(N) if weights[i, j] > 0 and active[j] and j != i]
        whole = 1 - weights[i, heard].sum()
        for c in range(4):
            own = values[i, c]
            if not np.isfinite(own):
                continue
            above = sorted(
                (j for j in heard if not values[j, c] <= own),
                key=lambda j: (-np.nan_to_num(values[j, c], nan=np.inf, posinf=np.inf), -j),
            )
            below = sorted(
                (j for j in heard if values[j, c] < own), key=lambda j: (values[j, c], j)
            )
            kept = [j for j in heard if j not in above[:f] + below[:f]]
            total = whole + weights[i, kept].sum()
            expected = (whole * own + weights[i, kept] @ values[kept, c]) / total
            np.testing.assert_allclose(after[i, c], expected, rtol=1e-12)
    np.testing.assert_array_equal(np.asarray(after)[~active], values[~active])


def test_refusals():
    with pytest.raises(ValueError, match="f must be an integer >= 0"):
        gossip.w_msr(-1)
    with pytest.raises(TypeError, match="f must be an integer"):
        gossip.w_msr(1.0)
