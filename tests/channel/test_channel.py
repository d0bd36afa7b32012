import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dflax import channel
from dflax.channel import Channel

KEY = jax.random.key(0)
MESSAGES = {"a": jnp.arange(12.0).reshape(4, 3), "b": jnp.ones((4,))}
WEIGHTS = jnp.array([1.0, 2.0, 0.0, 3.0])


def test_a_perfect_channel_changes_nothing():
    messages, weights, state, metrics = channel.perfect().apply(MESSAGES, WEIGHTS, (), KEY)
    assert messages is MESSAGES
    assert weights is WEIGHTS
    assert (state, metrics) == ((), {})


def test_gaussian_noise_has_its_deviation_and_can_be_swept():
    zeros = jnp.zeros((50, 400))
    noisy, *_ = channel.gaussian_noise(0.3).apply(zeros, jnp.ones(50), (), KEY)
    assert abs(float(noisy.std()) - 0.3) < 0.01
    assert abs(float(noisy.mean())) < 0.01

    def spread(deviation):
        return channel.gaussian_noise(deviation).apply(zeros, jnp.ones(50), (), KEY)[0].std()

    np.testing.assert_allclose(
        jax.vmap(spread)(jnp.array([0.0, 0.3, 0.6])), [0, 0.3, 0.6], atol=0.01
    )


def test_leaves_get_noise_of_their_own():
    same = {"a": jnp.zeros((2, 5)), "b": jnp.zeros((2, 5))}
    noisy, *_ = channel.gaussian_noise(1.0).apply(same, jnp.ones(2), (), KEY)
    assert np.abs(np.asarray(noisy["a"] - noisy["b"])).min() > 1e-4


def test_a_lossy_channel_loses_reports_at_its_rate_and_counts_them():
    weights = jnp.concatenate([jnp.ones(4000), jnp.zeros(1000)])
    _, arrived, _, metrics = channel.lossy(0.25).apply(jnp.ones((5000, 1)), weights, (), KEY)
    lost = int((np.asarray(weights) > 0).sum() - (np.asarray(arrived) > 0).sum())
    assert metrics["messages_lost"] == lost
    assert abs(lost / 4000 - 0.25) < 0.03


def test_messages_that_are_not_finite_are_dropped_and_counted():
    messages = {"a": jnp.ones((5, 2)).at[1, 0].set(jnp.nan), "b": jnp.ones(5).at[3].set(jnp.inf)}
    weights = jnp.array([1.0, 1.0, 1.0, 1.0, 0.0])
    out, arrived, _, metrics = channel.finite_only().apply(messages, weights, (), KEY)
    np.testing.assert_array_equal(arrived, [1, 0, 1, 0, 0])
    assert metrics["messages_dropped"] == 2
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(out))
    np.testing.assert_array_equal(out["a"][0], 1.0)


def test_channels_compose_in_order_and_keep_their_own_memory():
    def counting(factor):
        def apply(messages, weights, state, key):
            return jax.tree.map(lambda m: m * factor + 1, messages), weights, state + 1, {}

        return Channel(lambda message: jnp.int32(0), apply)

    both = channel.chain(counting(2.0), counting(10.0))
    state = both.init(jnp.zeros(3))
    stacked = jax.tree.map(lambda s: jnp.broadcast_to(s, (4,)), state)
    out, _, after, _ = both.apply(MESSAGES, WEIGHTS, stacked, KEY)
    np.testing.assert_array_equal(out["b"], (1 * 2 + 1) * 10 + 1)
    assert [leaf.tolist() for leaf in after] == [[1] * 4, [1] * 4]


def test_bad_arguments_are_refused():
    with pytest.raises(ValueError, match="deviation must be a finite number"):
        channel.gaussian_noise(-1.0)
    with pytest.raises(
        ValueError, match=r"probability must be a finite number in \[0, 1\], got 1.1"
    ):
        channel.lossy(1.1)
    with pytest.raises(TypeError, match=r"channels\[1\] must be of type Channel"):
        channel.chain(channel.perfect(), 3)


@pytest.mark.parametrize(
    ("make", "name"), [(channel.gaussian_noise, "deviation"), (channel.lossy, "rate")]
)
def test_one_number_serves_all_messages(make, name):
    with pytest.raises(ValueError, match=f"{name} must be a single real number"):
        make(np.array([0.1, 0.2]))
