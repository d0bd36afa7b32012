import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dflax import channel
from dflax.channel.broadcast import both_ways

KEY = jax.random.key(0)


def test_every_receiver_hears_noise_of_its_own():
    message = {"a": jnp.arange(400.0), "b": jnp.float32(2.0)}
    copies, arrived = channel.broadcast(channel.gaussian_noise(0.5), message, 50, KEY)
    assert copies["a"].shape == (50, 400)
    noise = np.asarray(copies["a"] - message["a"])
    assert abs(noise.std() - 0.5) < 0.02
    assert np.abs(np.corrcoef(noise) - np.eye(50)).max() < 0.3
    assert arrived.all()


def test_copies_are_lost_one_by_one():
    _, arrived = channel.broadcast(channel.lossy(0.25), jnp.zeros(1), 4000, KEY)
    assert abs(float(arrived.mean()) - 0.75) < 0.03


def test_links_are_perfect_unless_given_and_must_not_remember():
    message = jnp.ones((3, 2))
    for link in both_ways(None, None):
        assert link.apply(message, jnp.ones(3), (), KEY)[0] is message
    remembering = channel.Channel(lambda one: one, lambda *given: given)
    with pytest.raises(ValueError, match="downlink must be a channel without memory"):
        both_ways(None, remembering)
    with pytest.raises(TypeError, match="uplink must be of type Channel, not int"):
        both_ways(1, None)
