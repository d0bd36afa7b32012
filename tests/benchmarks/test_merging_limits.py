import jax
import jax.numpy as jnp
import numpy as np

import dflax as dx
from benchmarks import merging_limits


def mixed(mixer, models):
    mixing = dx.gossip.Mixing(jax.random.key(0), jnp.int32(0))
    return mixer.apply(models, mixer.init(models), mixing)[0]


def test_everybody_takes_the_mean_with_one_other():
    models = {"w": jnp.arange(12.0).reshape(3, 2, 2)}
    after = mixed(merging_limits.one_heard(3), models)
    before = np.asarray(models["w"])
    np.testing.assert_allclose(after["w"], (before + np.roll(before, 1, 0)) / 2)


def test_the_nearest_are_so_many_and_weigh_the_same():
    models = {"w": jnp.eye(5), "b": jnp.arange(5.0)[:, None]}
    after = mixed(merging_limits.nearest(5, 2), models)
    expected = 0.5 * (np.eye(5) + np.roll(np.eye(5), 1, 1))
    np.testing.assert_allclose(after["w"], expected, atol=1e-6)
    np.testing.assert_allclose(after["b"], expected @ np.arange(5.0)[:, None], atol=1e-6)


def test_what_takes_an_assignments_place_is_a_permutation():
    profit = jnp.asarray([[[0.0, 3.0, 1.0], [0.5, 0.2, 0.1], [0.0, 0.0, 2.0]]])
    assert merging_limits.looked_at(profit).tolist() == [[1, 2, 0]]
