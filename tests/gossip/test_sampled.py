import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tasks import assert_trees_close

from dflax import gossip, topology
from dflax.gossip import Mixing

KEY = jax.random.key(0)
NODES = 6
RING = topology.metropolis(topology.ring(NODES)).dense()


def models():
    generator = np.random.default_rng(0)
    return {
        "a": jnp.asarray(generator.normal(size=(NODES, 20, 30)), jnp.float32),
        "b": jnp.asarray(generator.normal(size=(NODES, 7)), jnp.float32),
    }


def flat(tree):
    leaves = [np.asarray(leaf, np.float64).reshape(NODES, -1) for leaf in jax.tree.leaves(tree)]
    return np.concatenate(leaves, 1)


def apply(mixer, stacked, key=KEY, active=None):
    return jax.jit(mixer.apply)(stacked, mixer.init(stacked), Mixing(key, 0, active))


def sent_entries(mixer):
    """Which entries each client sent, read from a mixing in which client j holds 2^j everywhere."""
    marks = jax.tree.map(
        lambda leaf: jnp.broadcast_to(
            2.0 ** jnp.arange(NODES).reshape(-1, *([1] * (leaf.ndim - 1))), leaf.shape
        ),
        models(),
    )
    mixed = flat(apply(mixer, marks)[0])
    found = np.zeros(mixed.shape, bool)
    for i in range(NODES):
        left, right = (i - 1) % NODES, (i + 1) % NODES
        for a, b in np.ndindex(2, 2):
            value = 2.0**i + RING[i, left] * a * (2.0**left - 2.0**i)
            value += RING[i, right] * b * (2.0**right - 2.0**i)
            here = np.isclose(mixed[i], value, rtol=1e-6)
            found[left, here] |= bool(a)
            found[right, here] |= bool(b)
    return found


@pytest.mark.parametrize("share", [0.25, 0.7])
def test_only_sampled_entries_of_a_sender_are_averaged(share):
    mixer = gossip.sampled(gossip.ring(NODES), share)
    sent = sent_entries(mixer)
    np.testing.assert_allclose(sent.mean(), share, atol=0.03)
    assert np.abs(np.corrcoef(sent)[~np.eye(NODES, dtype=bool)]).max() < 0.2
    w = flat(models())
    expected = w + RING @ (sent * w) - (RING @ sent) * w
    mixed, _, metrics = apply(mixer, models())
    np.testing.assert_allclose(flat(mixed), expected, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(metrics["models_sent"], 2 * NODES * share, rtol=1e-6)
    again, _, _ = apply(mixer, models(), jax.random.key(1))
    assert np.abs(flat(again) - flat(mixed)).max() > 0.1


def test_every_client_sends_one_part_of_the_partition():
    sent = sent_entries(gossip.partitioned(gossip.ring(NODES), 3))
    np.testing.assert_allclose(sent.mean(1), 1 / 3, atol=0.1)
    # Two clients send the same part or nothing in common.
    for first, second in np.ndindex(NODES, NODES):
        common = (sent[first] & sent[second]).sum()
        assert common in (0, sent[first].sum())


def test_everything_is_the_mixer_itself():
    expected, _, _ = apply(gossip.ring(NODES), models())
    for mixer in (
        gossip.sampled(gossip.ring(NODES), 1.0),
        gossip.partitioned(gossip.ring(NODES), 1),
    ):
        mixed, _, _ = apply(mixer, models())
        assert_trees_close(mixed, expected, rtol=1e-5, atol=1e-5)


def test_agreement_is_kept_and_the_absent_keep_their_models():
    same = jax.tree.map(lambda leaf: jnp.repeat(leaf[:1], NODES, 0), models())
    mixed, _, _ = apply(gossip.sampled(gossip.ring(NODES), 0.5), same)
    assert_trees_close(mixed, same, rtol=1e-6, atol=1e-6)
    active = jnp.asarray([1.0, 1, 0, 1, 1, 1])
    mixed, _, _ = apply(gossip.sampled(gossip.ring(NODES), 0.5), models(), active=active)
    np.testing.assert_array_equal(mixed["a"][2], models()["a"][2])


def test_bad_arguments_are_refused():
    with pytest.raises(ValueError, match="share must be a finite number in"):
        gossip.sampled(gossip.ring(NODES), 0.0)
    with pytest.raises(ValueError, match="parts must be an integer >= 1"):
        gossip.partitioned(gossip.ring(NODES), 0)
    with pytest.raises(TypeError, match="mixer must be a Mixer"):
        gossip.sampled(3, 0.5)
