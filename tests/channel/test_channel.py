import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dflax import channel
from dflax.channel import Channel, Sending

KEY = jax.random.key(0)
SENDING = Sending(KEY)
MESSAGES = {"a": jnp.arange(12.0).reshape(4, 3), "b": jnp.ones((4,))}
WEIGHTS = jnp.array([1.0, 2.0, 0.0, 3.0])


def test_a_perfect_channel_changes_nothing():
    messages, weights, state, metrics = channel.perfect().apply(MESSAGES, WEIGHTS, (), SENDING)
    assert messages is MESSAGES
    assert weights is WEIGHTS
    assert (state, metrics) == ((), {})


def test_gaussian_noise_has_its_deviation_and_can_be_swept():
    zeros = jnp.zeros((50, 400))
    noisy, *_ = channel.gaussian_noise(0.3).apply(zeros, jnp.ones(50), (), SENDING)
    assert abs(float(noisy.std()) - 0.3) < 0.01
    assert abs(float(noisy.mean())) < 0.01

    def spread(deviation):
        return channel.gaussian_noise(deviation).apply(zeros, jnp.ones(50), (), SENDING)[0].std()

    np.testing.assert_allclose(
        jax.vmap(spread)(jnp.array([0.0, 0.3, 0.6])), [0, 0.3, 0.6], atol=0.01
    )


def test_leaves_get_noise_of_their_own():
    same = {"a": jnp.zeros((2, 5)), "b": jnp.zeros((2, 5))}
    noisy, *_ = channel.gaussian_noise(1.0).apply(same, jnp.ones(2), (), SENDING)
    assert np.abs(np.asarray(noisy["a"] - noisy["b"])).min() > 1e-4


def test_a_lossy_channel_loses_reports_at_its_rate_and_counts_them():
    weights = jnp.concatenate([jnp.ones(4000), jnp.zeros(1000)])
    _, arrived, _, metrics = channel.lossy(0.25).apply(jnp.ones((5000, 1)), weights, (), SENDING)
    lost = int((np.asarray(weights) > 0).sum() - (np.asarray(arrived) > 0).sum())
    assert metrics["messages_lost"] == lost
    assert abs(lost / 4000 - 0.25) < 0.03


def test_messages_that_are_not_finite_are_dropped_and_counted():
    messages = {"a": jnp.ones((5, 2)).at[1, 0].set(jnp.nan), "b": jnp.ones(5).at[3].set(jnp.inf)}
    weights = jnp.array([1.0, 1.0, 1.0, 1.0, 0.0])
    out, arrived, _, metrics = channel.finite_only().apply(messages, weights, (), SENDING)
    np.testing.assert_array_equal(arrived, [1, 0, 1, 0, 0])
    assert metrics["messages_dropped"] == 2
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(out))
    np.testing.assert_array_equal(out["a"][0], 1.0)


def test_channels_compose_in_order_and_keep_their_own_memory():
    def counting(factor):
        def apply(messages, weights, state, sending):
            return jax.tree.map(lambda m: m * factor + 1, messages), weights, state + 1, {}

        return Channel(lambda message: jnp.int32(0), apply)

    both = channel.chain(counting(2.0), counting(10.0))
    state = both.init(jnp.zeros(3))
    stacked = jax.tree.map(lambda s: jnp.broadcast_to(s, (4,)), state)
    out, _, after, _ = both.apply(MESSAGES, WEIGHTS, stacked, SENDING)
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
    ("make", "name"), [(channel.gaussian_noise, "deviation"), (channel.lossy, "probability")]
)
def test_one_number_serves_all_messages(make, name):
    with pytest.raises(ValueError, match=f"{name} must be a single real number"):
        make(np.array([0.1, 0.2]))


def flip():
    """The sender turns the sign of its message, and counts how often it did."""

    def apply(messages, weights, state, sending):
        flipped = jnp.sum(weights > 0).astype(jnp.float32)
        return jax.tree.map(jnp.negative, messages), weights, state + 1, {"flipped": flipped}

    return Channel(lambda message: jnp.int32(0), apply)


@pytest.mark.parametrize("clients", [3, [3, 9], np.arange(10) == 3, jnp.array([3])])
def test_only_some_clients_go_through_a_channel_and_its_metrics_are_theirs(clients):
    liar = channel.only(flip(), clients)
    sending = Sending(KEY, 0, jnp.array([5, 3, 0, 8]))

    @jax.jit
    def send(messages, weights, state):
        return liar.apply(messages, weights, state, sending)

    out, weights, state, metrics = send(MESSAGES, WEIGHTS, jnp.zeros(4, jnp.int32))
    sign = np.array([1.0, -1.0, 1.0, 1.0])
    np.testing.assert_array_equal(out["a"], MESSAGES["a"] * sign[:, None])
    np.testing.assert_array_equal(out["b"], MESSAGES["b"] * sign)
    np.testing.assert_array_equal(weights, WEIGHTS)
    np.testing.assert_array_equal(state, [0, 1, 0, 0])
    assert metrics["flipped"] == 1
    silent = send(MESSAGES, WEIGHTS.at[1].set(0.0), jnp.zeros(4, jnp.int32))
    assert silent[3]["flipped"] == 0


def test_who_goes_through_may_be_swept_and_may_lose_its_message():
    def lost(clients):
        lossy = channel.only(channel.lossy(1.0), clients)
        sent = lossy.apply(MESSAGES, WEIGHTS, (), Sending(KEY, 0, jnp.arange(4)))
        return sent[1], sent[3]["messages_lost"]

    weights, counts = jax.jit(jax.vmap(lost))(jnp.array([[0, 1], [2, 3], [7, 8]]))
    np.testing.assert_array_equal(weights, [[0, 0, 0, 3], [1, 2, 0, 0], [1, 2, 0, 3]])
    np.testing.assert_array_equal(counts, [2, 1, 0])


def test_metrics_of_one_name_are_refused_in_a_chain_unless_they_are_renamed():
    twice = channel.lossy(1.0), channel.lossy(0.0)
    with pytest.raises(
        ValueError, match=r"'messages_lost' from both channels\[0\] and channels\[1\]"
    ):
        channel.chain(*twice).apply(MESSAGES, WEIGHTS, ((), ()), SENDING)
    radio = channel.chain(twice[0], channel.named(twice[1], "radio"))
    *_, metrics = radio.apply(MESSAGES, WEIGHTS, ((), ()), SENDING)
    assert metrics == {"messages_lost": 3.0, "radio_messages_lost": 0.0}


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: channel.only(3, 0), "channel must be of type Channel"),
        (lambda: channel.only(flip(), -1), "clients must be finite numbers in"),
        (lambda: channel.only(flip(), 0.5), "clients must be integers"),
        (lambda: channel.only(flip(), [[0]]), "clients must be one axis of at least"),
        (lambda: channel.named(3, "a"), "channel must be of type Channel"),
        (lambda: channel.named(flip(), 3), "name must be"),
        (
            lambda: channel.only(flip(), 0).apply(MESSAGES, WEIGHTS, jnp.zeros(4), SENDING),
            "sending.senders must be the clients' numbers",
        ),
    ],
)
def test_bad_arguments_of_compositions_are_refused(call, message):
    with pytest.raises((TypeError, ValueError), match=message):
        call()
