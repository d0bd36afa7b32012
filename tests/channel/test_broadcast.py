import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dflax import channel
from dflax.channel.broadcast import without_memory

KEY = jax.random.key(0)


def to(receivers):
    return channel.Sending(KEY, 0, jnp.arange(receivers))


def test_every_receiver_hears_noise_of_its_own():
    message = {"a": jnp.arange(400.0), "b": jnp.float32(2.0)}
    copies, arrived, _ = channel.broadcast(channel.gaussian_noise(0.5), message, to(50))
    assert copies["a"].shape == (50, 400)
    noise = np.asarray(copies["a"] - message["a"])
    assert abs(noise.std() - 0.5) < 0.02
    assert np.abs(np.corrcoef(noise) - np.eye(50)).max() < 0.3
    assert arrived.all()


def test_copies_are_lost_one_by_one():
    _, arrived, metrics = channel.broadcast(channel.lossy(0.25), jnp.zeros(1), to(4000))
    assert abs(float(arrived.mean()) - 0.75) < 0.03
    assert metrics["messages_lost"] == 4000 - arrived.sum()


def test_who_does_not_listen_is_sent_nothing():
    listening = jnp.array([1.0, 0.0, 2.0])
    _, arrived, metrics = channel.broadcast(
        channel.uncompressed(), jnp.zeros(5), to(3), listening=listening
    )
    np.testing.assert_array_equal(arrived, [True, False, True])
    assert metrics["bytes_sent"] == 2 * 5 * 4


def test_links_are_perfect_unless_given_and_must_not_remember():
    message = jnp.ones((3, 2))
    perfect = without_memory("uplink", None)
    assert perfect.apply(message, jnp.ones(3), (), to(3))[0] is message
    remembering = channel.Channel(lambda one: one, lambda *given: given)
    with pytest.raises(ValueError, match="downlink must be a channel without memory"):
        without_memory("downlink", remembering)
    with pytest.raises(TypeError, match="uplink must be of type Channel, not int"):
        without_memory("uplink", 1)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ((3, jnp.zeros(1), to(2)), "channel must be of type Channel, not int"),
        (
            (channel.perfect(), jnp.zeros(1), to(0)),
            "sending.senders must have a leading axis of at least 1, got 0",
        ),
        ((channel.perfect(), jnp.zeros(1), KEY), "sending must be of type Sending"),
        (
            (channel.perfect(), jnp.zeros(1), to(2)._replace(key=0)),
            "sending.key must be one typed JAX key",
        ),
        (
            (channel.error_feedback(channel.sign()), jnp.zeros(1), to(2)),
            "channel must be a channel without memory",
        ),
    ],
)
def test_bad_arguments_are_refused(given, message):
    with pytest.raises((TypeError, ValueError), match=message):
        channel.broadcast(*given)
    with pytest.raises(ValueError, match="listening must have a leading axis of length 2, got 3"):
        channel.broadcast(channel.perfect(), jnp.zeros(1), to(2), listening=jnp.ones(3))
