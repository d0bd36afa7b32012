"""Mixers for the parts of a model, mixing in some rounds, and weights for every leaf."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from quadratic_rounds import CLIENTS, LOSS, SOURCE, START
from tasks import assert_trees_close, assert_trees_equal

import dflax as dx
from dflax import aggregation, gossip, topology
from dflax.aggregation import Combining, Weighted
from dflax.gossip import Mixing

KEY = jax.random.key(0)
N = 8
RNG = np.random.default_rng(0)
ACTIVE = np.arange(N) % 3 != 1


def models(dtype=np.float32):
    return {
        "body": {
            "kernel": RNG.standard_normal((N, 3, 2)).astype(dtype),
            "bias": RNG.standard_normal((N, 2)).astype(dtype),
        },
        "head": RNG.standard_normal((N, 2)).astype(dtype),
    }


def first(path):
    return path.split("/")[0]


def once(mixer, tree, index=0, active=None):
    def mix(tree, index, active):
        return mixer.apply(tree, mixer.init(tree), Mixing(KEY, index, active))

    return jax.jit(mix)(tree, jnp.int32(index), active)


def test_each_part_is_mixed_by_its_own_mixer():
    tree = models()
    mixer = gossip.by_part({"head": gossip.identity(N), "body": gossip.ring(N)}, first)
    mixed, state, metrics = once(mixer, tree, active=jnp.asarray(ACTIVE))
    body, _, known = once(gossip.ring(N), tree["body"], active=jnp.asarray(ACTIVE))
    assert_trees_equal(mixed["head"], tree["head"])
    assert_trees_close(mixed["body"], body, rtol=1e-6)
    assert state.keys() == {"body", "head"}
    # The body is eight of ten numbers.
    np.testing.assert_allclose(metrics["models_sent"], 0.8 * known["models_sent"], rtol=1e-6)
    assert metrics["body_models_sent"] == metrics["models_sent"]
    assert metrics["head_models_sent"] == 0


def test_parts_with_states_and_metrics_of_their_own_in_an_algorithm():
    """The head by push-sum in every second round, the body by a robust rule, both measured by name."""
    ring = topology.ring(CLIENTS)
    median = gossip.by_rule(ring, gossip.aggregating(aggregation.trimmed_mean(1)))
    mixer = gossip.by_part(
        {"body": median, "head": gossip.every(gossip.push_sum(ring), 2)},
        lambda path: "head" if "head" in path else "body",
    )
    start = {
        "body": jnp.asarray(START[:2], jnp.float32),
        "head": jnp.asarray(START[2:], jnp.float32),
    }

    def loss(params, batch, key):
        return LOSS(jnp.concatenate([params["body"], params["head"]]), batch, key)

    algorithm = dx.decentralized.dfedavg(loss, optax.sgd(0.1), mixer)
    state = algorithm.init(KEY, start)
    _, metrics = jax.jit(lambda state: dx.rollout(algorithm, state, SOURCE, KEY, 4))(state)
    assert {"body_trimmed", "body_models_sent", "head_models_sent", "models_sent"} <= metrics.keys()
    np.testing.assert_array_equal(np.asarray(metrics["head_models_sent"])[1::2], 0)
    total = metrics["body_models_sent"] + metrics["head_models_sent"]
    np.testing.assert_allclose(metrics["models_sent"], total, rtol=1e-6)


def test_what_is_known_of_all_parts_is_known():
    ring, star = gossip.ring(N), gossip.star(N)
    both = gossip.by_part({"a": ring, "b": star}, first)
    assert both.known.symmetric
    assert both.known.doubly_stochastic
    assert both.known.linear is False
    assert gossip.by_part({"a": ring}, first).known.linear
    moved = gossip.by_rule(topology.ring(N), gossip.aggregating(aggregation.median()))
    assert gossip.by_part({"a": ring, "b": moved}, first).known.doubly_stochastic is False


def test_every_fifth_round():
    tree = models()
    mixer = gossip.every(gossip.alternate([gossip.ring(N), gossip.identity(N)]), 5)
    ring, _, _ = once(gossip.ring(N), tree)
    for index in range(11):
        mixed, _, metrics = once(mixer, tree, index)
        # The mixer inside counts its own rounds: of 0, 5, 10 the first and the last.
        if index in (0, 10):
            assert_trees_close(mixed, ring, rtol=1e-6)
        else:
            assert_trees_equal(mixed, tree)
        assert (metrics["models_sent"] > 0) == (index in (0, 10))


@pytest.mark.parametrize(
    ("make", "kind", "message"),
    [
        (lambda: gossip.by_part(gossip.ring(N), first), TypeError, "mixers must be"),
        (lambda: gossip.by_part({}, first), ValueError, "mixers must hold at least one"),
        (lambda: gossip.by_part({"a": 3}, first), TypeError, "mixers\\['a'\\] must be a Mixer"),
        (
            lambda: gossip.by_part({"a": gossip.ring(4), "b": gossip.ring(5)}, first),
            ValueError,
            "mixers must be of one number of clients",
        ),
        (lambda: gossip.by_part({"a": gossip.ring(N)}, "a"), TypeError, "of must be"),
        (
            lambda: gossip.by_part({"body": gossip.ring(N)}, first).init(models()),
            ValueError,
            "of must return the name of one of mixers.*'head' for 'head'",
        ),
        (lambda: gossip.every(gossip.ring(N), 0), ValueError, "rounds must be"),
        (lambda: gossip.every(3, 2), TypeError, "mixer must be"),
        (lambda: gossip.weighted_by_leaf(3), TypeError, "mixer must be"),
        (
            lambda: gossip.weighted_by_leaf(gossip.ring(N)).init(models()),
            TypeError,
            "models must be",
        ),
        (
            lambda: aggregation.weighted_by_leaf().init(Weighted(models(), {"body": 1.0})),
            ValueError,
            "message.weights must be a tree prefix",
        ),
        (
            lambda: aggregation.weighted_by_leaf().init(Weighted(models(), jnp.ones(N, bool))),
            TypeError,
            "message.weights must hold real numbers",
        ),
    ],
)
def test_refusals(make, kind, message):
    with pytest.raises(kind, match=message):
        make()


def experts():
    """Values and weights: an expert of whole leaves, rows of a leaf, and entries of one."""
    value = {
        "router": RNG.standard_normal((N, 4)),
        "experts": {"w": RNG.standard_normal((N, 3, 4, 2)), "b": RNG.standard_normal((N, 3, 2))},
        "masked": RNG.standard_normal((N, 5)),
    }
    rows = RNG.random((N, 3)) * (RNG.random((N, 3)) < 0.5)
    rows[:, 2] = 0
    weights = {
        "router": RNG.random(N),
        "experts": rows,
        "masked": (RNG.random((N, 5)) < 0.4).astype(float),
    }
    # What does not count may be anything.
    value["experts"]["w"][rows == 0] = np.nan
    value["masked"][weights["masked"] == 0] = np.inf
    return value, weights


def expanded(weights, value):
    """Each leaf's own weights, in its shape."""
    every = {
        "router": weights["router"][:, None],
        "experts": {"w": weights["experts"][..., None, None], "b": weights["experts"][..., None]},
        "masked": weights["masked"],
    }
    return jax.tree.map(lambda a, x: np.broadcast_to(a, x.shape), every, value)


def test_a_mean_of_those_who_have_something_to_say():
    with jax.enable_x64(True):
        value, weights = experts()
        share = RNG.random(N)
        share[5] = 0
        aggregator = aggregation.weighted_by_leaf()
        found, _, metrics = jax.jit(
            lambda m, w: aggregator.apply(m, w, aggregator.init(Weighted({}, {})), Combining(KEY))
        )(Weighted(value, weights), share)

        def exact(a, x):
            a = a * share.reshape(-1, *(1,) * (x.ndim - 1))
            total = a.sum(0)
            sums = (a * np.where(a > 0, x, 0)).sum(0)
            return np.divide(sums, total, out=np.zeros_like(total), where=total > 0)

        every = expanded(weights, value)
        assert_trees_close(found.value, jax.tree.map(exact, every, value), rtol=1e-12)
        totals = jax.tree.map(lambda a: np.tensordot(share, a, 1) / share.sum(), weights)
        assert_trees_close(found.weights, totals, rtol=1e-12)
    assert metrics == {}
    np.testing.assert_array_equal(found.value["experts"]["w"][2], 0)


def test_with_equal_weights_it_is_the_mean_and_with_nobody_it_is_0():
    tree = models()
    aggregator = aggregation.weighted_by_leaf()
    for share in (RNG.random(N).astype(np.float32), np.zeros(N, np.float32)):
        found, _, _ = aggregator.apply(Weighted(tree, jnp.full(N, 0.3)), share, (), Combining(KEY))
        expected, _, _ = aggregation.mean().apply(tree, share, (), Combining(KEY))
        assert_trees_close(found.value, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("everyone", [True, False])
def test_gossip_of_those_who_have_something_to_say(everyone):
    active = np.ones(N, bool) if everyone else ACTIVE
    graph = topology.star(N)
    with jax.enable_x64(True):
        value, weights = experts()
        mixer = gossip.weighted_by_leaf(gossip.mixer(graph))
        mask = None if everyone else jnp.asarray(active)
        found, _, metrics = once(mixer, Weighted(value, weights), active=mask)
        matrix = topology.metropolis(graph).dense() * np.outer(active, active)
        np.fill_diagonal(matrix, 0)
        np.fill_diagonal(matrix, 1 - matrix.sum(1))

        def exact(a, x):
            total = np.tensordot(matrix, a, 1)
            sums = np.tensordot(matrix, a * np.where(a > 0, x, 0), 1)
            mixed = np.where(total > 0, sums / np.where(total > 0, total, 1), x)
            return np.where(active.reshape(-1, *(1,) * (x.ndim - 1)), mixed, x)

        expected = jax.tree.map(exact, expanded(weights, value), value)
        assert_trees_close(found.value, expected, rtol=1e-11)
        assert_trees_equal(found.weights, weights)
    edges = active[graph.senders] & active[graph.receivers]
    assert metrics["models_sent"] == edges.sum()


def test_with_equal_weights_gossip_is_the_mixer_itself():
    tree = models()
    mixed, _, _ = once(gossip.weighted_by_leaf(gossip.ring(N)), Weighted(tree, jnp.full(N, 0.3)))
    expected, _, _ = once(gossip.ring(N), tree)
    assert_trees_close(mixed.value, expected, rtol=1e-5, atol=1e-6)
