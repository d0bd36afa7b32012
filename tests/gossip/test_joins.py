"""Gossip of what has a join: after as many mixings as the graph is wide, everyone holds that of all."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec
from quadratic_rounds import CLIENTS, SOURCE
from tasks import assert_trees_equal

import dflax as dx
from dflax import gossip, topology
from dflax.decentralized import adapt_then_combine
from dflax.decentralized.framework.protocol import Client
from dflax.gossip import Mixing, Stamped

KEY = jax.random.key(0)
N = 16
RNG = np.random.default_rng(0)
NUMBERS = {
    "greatest": RNG.integers(-1000, 1000, (N, 3)).astype(np.int32),
    "least": RNG.standard_normal((N, 2)).astype(np.float32),
    "union": {"bits": (1 << np.arange(N)).astype(np.uint32), "masks": np.eye(N, dtype=bool)},
}
OF_ALL = {
    "greatest": NUMBERS["greatest"].max(0),
    "least": NUMBERS["least"].min(0),
    "union": {"bits": np.uint32(2**N - 1), "masks": np.ones(N, bool)},
}


def rounds(mixer, held, count, actives=None):
    """What everyone holds after so many mixings, one after another."""
    apply = jax.jit(mixer.apply)
    state = mixer.init(held)
    for index in range(count):
        active = None if actives is None else jnp.asarray(actives[index])
        held, state, metrics = apply(held, state, Mixing(KEY, jnp.int32(index), active))
    return held, metrics


@pytest.mark.parametrize("name", NUMBERS)
def test_after_as_many_mixings_as_the_ring_is_wide_everyone_holds_the_join_of_all(name):
    mixer = gossip.by_rule(topology.ring(N), gossip.join(getattr(gossip, name)))
    almost, _ = rounds(mixer, NUMBERS[name], N // 2 - 1)
    held, metrics = rounds(mixer, NUMBERS[name], N // 2)
    everyone = jax.tree.map(lambda leaf: np.broadcast_to(leaf, (N, *leaf.shape)), OF_ALL[name])
    assert_trees_equal(held, everyone)
    assert any(
        np.any(np.asarray(a) != b)
        for a, b in zip(jax.tree.leaves(almost), jax.tree.leaves(everyone), strict=True)
    )
    assert [leaf.dtype for leaf in jax.tree.leaves(held)] == [
        leaf.dtype for leaf in jax.tree.leaves(NUMBERS[name])
    ]
    assert metrics == {"models_sent": 2 * N}


def test_many_mixings_in_one_round_and_on_eight_devices():
    mixer = gossip.repeat(gossip.by_rule(topology.torus(4, 4), gossip.join(gossip.union)), steps=4)
    mesh = dx.client_mesh()
    with jax.set_mesh(mesh):
        spec = NamedSharding(mesh, PartitionSpec("clients"))
        held, _ = rounds(mixer, jax.device_put(NUMBERS["union"], spec), 1)
    assert np.all(held["masks"])
    np.testing.assert_array_equal(held["bits"], np.full(N, 2**N - 1))


def test_who_is_absent_tells_nothing_and_hears_nothing():
    mixer = gossip.by_rule(topology.ring(N), gossip.join(gossip.greatest))
    active = np.ones(N, bool)
    active[[3, 9]] = False
    held, _ = rounds(mixer, NUMBERS["greatest"], N, [active] * N)
    expected = NUMBERS["greatest"].copy()
    for side in (np.arange(4, 9), np.r_[10:16, 0:3]):
        expected[side] = NUMBERS["greatest"][side].max(0)
    np.testing.assert_array_equal(held, expected)


def test_the_newest_version_of_each_of_several_values_wins():
    """Every client writes one register at a time of its own; everyone ends with all last writes."""
    registers = 4
    stamp = RNG.permutation(N * registers).reshape(N, registers).astype(np.int32)
    value = {
        "x": RNG.standard_normal((N, registers, 2)).astype(np.float32),
        "dead": RNG.random((N, registers)) < 0.5,
    }
    mixer = gossip.by_rule(topology.exponential(N), gossip.join(gossip.newest))
    held, _ = rounds(mixer, Stamped(stamp, value), 4)
    last = stamp.argmax(0)
    own = np.arange(registers)
    np.testing.assert_array_equal(held.stamp, np.broadcast_to(stamp.max(0), stamp.shape))
    for name in value:
        expected = np.broadcast_to(value[name][last, own], value[name].shape)
        np.testing.assert_array_equal(held.value[name], expected)


def test_in_an_algorithm_clocks_spread_through_losses():
    """Everyone counts its own rounds in a vector clock; with every message lost, nobody learns."""

    def work(assignment, client, data, index):
        own = jnp.arange(CLIENTS) == assignment.client
        return client._replace(memory=client.memory + own.astype(jnp.int32)), {}

    def start(key, models):
        return jnp.zeros((CLIENTS, CLIENTS), jnp.int32)

    def hear(before, after, heard, index):
        return Client(after.params, heard)

    @functools.cache
    def clocks(loss):
        algorithm = adapt_then_combine(
            work,
            gossip.by_rule(topology.complete(CLIENTS), gossip.join(gossip.greatest)),
            start=start,
            message=lambda before, after, index: after.memory,
            hear=hear,
            channel=None if loss is None else dx.channel.lossy(loss),
        )
        state = algorithm.init(KEY, jnp.zeros(3))
        run = jax.jit(lambda state: dx.rollout(algorithm, state, SOURCE, KEY, 6))
        return np.asarray(run(state)[0].clients.memory)

    drawn = jax.vmap(SOURCE.draw, in_axes=(None, 0))(KEY, jnp.arange(6))
    counts = np.bincount(np.asarray(drawn.cohort).ravel(), minlength=CLIENTS)
    for loss in (None, 0.5):
        found = clocks(loss)
        np.testing.assert_array_equal(np.diag(found), counts)
        assert np.all(found <= counts)
        assert np.any(found - np.diag(np.diag(found)) > 0)
    np.testing.assert_array_equal(clocks(1.0), np.diag(counts))


def test_refusals():
    with pytest.raises(TypeError, match="merge must"):
        gossip.join(3)
    with pytest.raises(TypeError, match="merge must"):
        gossip.join(lambda one: one)
    mixer = gossip.by_rule(topology.ring(N), gossip.join(lambda one, other: one.astype(float)))
    held = jnp.zeros(N, jnp.int32)
    with pytest.raises(TypeError, match=r"what merge.one, other. returns must have the dtype"):
        mixer.apply(held, mixer.init(held), Mixing(KEY, 0))
    with pytest.raises(TypeError, match="one must be"):
        gossip.newest(jnp.ones(3), jnp.ones(3))
    with pytest.raises(TypeError, match="models must hold real numbers"):
        gossip.ring(N).init(held)
