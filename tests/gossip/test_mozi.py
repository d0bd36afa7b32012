"""MOZI against NumPy, client by client."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from tasks import assert_trees_close, half_square, quadratics

import dflax as dx
from dflax import gossip, topology
from dflax.gossip import Mixing

KEY = jax.random.key(0)
CLIENTS, TASK = 10, quadratics(10)
LOSS, SOURCE = half_square, TASK.federation()
GRAPH = topology.complete(CLIENTS)


def by_squares(params, batch, key):
    """(1/2) |x - c|^2, mean over the examples that count."""
    mask = jnp.ones(len(batch.labels)) if batch.mask is None else batch.mask
    squares = 0.5 * jnp.sum(jnp.square(params - batch.inputs), -1)
    return jnp.sum(mask * squares) / jnp.sum(mask), {}


def test_the_near_half_that_does_no_worse():
    generator = np.random.default_rng(7)
    centres = TASK.centers.astype(np.float64)
    width = centres.shape[-1]
    models = generator.standard_normal((CLIENTS, width))
    models[1] = np.nan
    tests = gossip.ClassTests(
        jnp.asarray(centres[:, None], jnp.float32),
        jnp.zeros((CLIENTS, 1), jnp.int32),
        jnp.ones((CLIENTS, 1)),
        jnp.ones((CLIENTS, 1), bool),
        jnp.ones((CLIENTS, CLIENTS), jnp.int32),
    )
    rule = gossip.mozi(by_squares, share=0.5, own_weight=0.25, tests=tests)
    mixer = gossip.by_rule(GRAPH, rule)
    held = jnp.asarray(models, jnp.float32)
    found, _, metrics = jax.jit(mixer.apply)(held, mixer.init(held), Mixing(KEY, jnp.int32(0)))
    counts = []
    for i in np.delete(np.arange(CLIENTS), 1):
        others = [j for j in range(CLIENTS) if j not in (i, 1)]
        near = sorted(others, key=lambda j: np.linalg.norm(models[j] - models[i]))
        near = near[: -(-len(others) // 2)]

        def value(model, centre=centres[i]):
            return 0.5 * np.square(model - centre).sum()

        kept = [j for j in near if value(models[j]) <= value(models[i])]
        expected = models[i]
        if kept:
            expected = 0.25 * models[i] + 0.75 * models[kept].mean(0)
        counts.append(len(kept))
        np.testing.assert_allclose(found[i], expected, atol=1e-5)
    assert 0 in counts or 1 in counts
    assert max(counts) > 0
    assert 0 < metrics["kept"] < 1


def test_examples_of_the_own_training_data_serve_as_well():
    mixer = gossip.by_rule(topology.ring(CLIENTS), gossip.mozi(LOSS, batch_size=2))
    method = dx.decentralized.dpsgd(LOSS, optax.sgd(0.1), mixer)
    width = SOURCE.data.inputs.shape[-1]
    state = method.init(KEY, lambda key: jax.random.normal(key, (width,)))
    run = jax.jit(functools.partial(dx.rollout, method, rounds=3))
    expected, metrics = run(state, SOURCE, KEY)
    assert np.all((metrics["kept"] >= 0) & (metrics["kept"] <= 1))
    with jax.set_mesh(dx.client_mesh()):
        found, _ = run(state, SOURCE, KEY)
    assert_trees_close(found.clients.params, expected.clients.params, rtol=1e-5, atol=1e-6)


def test_refusals():
    with pytest.raises(ValueError, match="share must be"):
        gossip.mozi(LOSS, share=1.5)
    with pytest.raises(TypeError, match="tests must be of type ClassTests"):
        gossip.mozi(LOSS, tests=3)
    mixer = gossip.by_rule(GRAPH, gossip.mozi(LOSS))
    with pytest.raises(ValueError, match="round must be given"):
        mixer.apply(jnp.zeros((CLIENTS, 3)), mixer.init(jnp.zeros((CLIENTS, 3))), Mixing(KEY, 0))
