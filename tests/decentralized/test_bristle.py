"""The method: mixing by trust, training, and what is copied back."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from tasks import assert_trees_close

import dflax as dx
from dflax import gossip, topology
from dflax.data import Dataset
from dflax.gossip import Mixing

KEY = jax.random.key(0)
N, H, C = 8, 6, 4
GENERATOR = np.random.default_rng(0)
CENTRES = 2 * GENERATOR.standard_normal((C, H))
LABELS = np.tile(np.arange(C), 60)
INPUTS = CENTRES[LABELS] + GENERATOR.standard_normal((len(LABELS), H))
DATA = Dataset(jnp.asarray(INPUTS, jnp.float32), jnp.asarray(LABELS, jnp.int32), classes=C)
GRAPH = topology.circulant(N, (1, 2))
START = {"kernel": 0.1 * jnp.asarray(GENERATOR.standard_normal((H, C)), jnp.float32)}


def head(params, inputs):
    return inputs @ params["kernel"]


LOSS = dx.losses.classification(head)


def setting(each):
    owned = [np.arange(i, i + each) % C for i in range(N)]
    rows = [np.flatnonzero(np.isin(LABELS, classes)) for classes in owned]
    train = dx.data.from_indices([own[i::N][:8] for i, own in enumerate(rows)])
    tests = gossip.class_tests(DATA, dx.data.from_indices([own[-20:] for own in rows]))
    source = dx.Federation(DATA, train, local_steps=2, batch_size=4)
    return source, tests


@functools.partial(jax.jit, static_argnames=("steps", "latency"))
def run(source, tests, rate=0.3, steps=3, latency=0):
    method = dx.decentralized.bristle(
        LOSS, optax.adam(rate), GRAPH, head, tests, latency=latency, draw=gossip.at_random(4)
    )
    state = method.init(KEY, START)
    return dx.rollout(method, state, source, KEY, steps)


@pytest.mark.slow
def test_who_owns_all_classes_trains_as_in_gossip_averaging():
    """Then nothing but the rule is new: the round is that of D-PSGD, mixing first."""
    source, tests = setting(C)
    state, metrics = run(source, tests)
    mixer = gossip.by_rule(GRAPH, gossip.bristle(head, tests, draw=gossip.at_random(4)))
    plain = dx.decentralized.dpsgd(
        LOSS, optax.adam(0.3), mixer, order=dx.decentralized.Order.COMBINE_THEN_ADAPT
    )
    roll = jax.jit(lambda state, source: dx.rollout(plain, state, source, KEY, 3))
    expected, known = roll(plain.init(KEY, START), source)
    assert_trees_close(state.clients.params, expected.clients.params, rtol=1e-5, atol=1e-6)
    assert_trees_close(state.clients.memory.optimizer, expected.clients.memory, atol=1e-5)
    assert_trees_close(metrics, known, rtol=1e-5)
    assert metrics["models_sent"][0] == 4 * N


def test_training_leaves_foreign_columns_as_they_were_mixed():
    source, tests = setting(2)
    before, _ = run(source, tests)
    mixer = gossip.by_rule(GRAPH, gossip.bristle(head, tests, draw=gossip.at_random(4)))
    drawn = source.draw(KEY, 3)
    heard, _, _ = jax.jit(mixer.apply)(
        before.clients.params, mixer.init(before.clients.params), Mixing(drawn.key, jnp.int32(3))
    )
    after, _ = run(source, tests, steps=4)
    foreign = ~np.asarray(tests.familiar)[:, None]
    new, old = np.asarray(after.clients.params["kernel"]), np.asarray(heard["kernel"])
    moved = np.abs(new - old)
    assert np.max(np.where(foreign, moved, 0)) < 1e-6
    assert np.min(np.where(foreign, np.inf, moved).max(1)) > 1e-3
    # They are those of the others, whose classes they are.
    assert np.abs(np.where(foreign, old, 0)).max() > 0.1


def test_foreign_classes_are_learned_from_others():
    source, tests = setting(3)
    state, _ = run(source, tests, steps=12)
    accuracy = jax.vmap(dx.evaluation.on(LOSS, DATA))(state.clients.params)["accuracy"]
    assert accuracy.min() > 0.9
    alone = dx.decentralized.dfedavg(LOSS, optax.adam(0.3), gossip.identity(N))
    roll = jax.jit(lambda state, source: dx.rollout(alone, state, source, KEY, 12))
    state, _ = roll(alone.init(KEY, START), source)
    alone = jax.vmap(dx.evaluation.on(LOSS, DATA))(state.clients.params)["accuracy"]
    assert alone.mean() < 0.78


@pytest.mark.slow
def test_on_eight_devices_and_late():
    source, tests = setting(2)
    expected, metrics = run(source, tests, latency=2)
    with jax.set_mesh(dx.client_mesh()):
        found, _ = run(source, tests, latency=2)
    assert_trees_close(found.clients.params, expected.clients.params, rtol=1e-4, atol=1e-5)
    # Nothing has arrived in the first two rounds: every peer has trained alone, from a centred model.
    np.testing.assert_array_equal(metrics["models_sent"], [0, 0, 4 * N])


@pytest.mark.slow
def test_rates_are_swept():
    source, tests = setting(2)
    rates = jnp.array([0.1, 0.3])
    swept, _ = jax.vmap(lambda rate: run(source, tests, rate))(rates)
    alone, _ = run(source, tests)
    np.testing.assert_allclose(
        swept.clients.params["kernel"][1], alone.clients.params["kernel"], atol=1e-4
    )


def test_refusals():
    _, tests = setting(2)
    make = functools.partial(dx.decentralized.bristle, LOSS, optax.sgd(0.1))
    with pytest.raises(ValueError, match="tests must have a leading axis of length 5"):
        make(topology.ring(5), head, tests)
    with pytest.raises(TypeError, match="optimizer must be"):
        dx.decentralized.bristle(LOSS, 3, GRAPH, head, tests)
    with pytest.raises(ValueError, match="scale must be"):
        make(GRAPH, head, tests, scale=0.0)
    method = make(GRAPH, head, tests)
    with pytest.raises(ValueError, match="no bias"):
        method.init(KEY, {**START, "bias": jnp.zeros(C)})
