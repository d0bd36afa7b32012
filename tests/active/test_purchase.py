"""KAFAL's purchase on trained models, against the sheet's equations in float64 NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import dflax as dx
from dflax import active

CLIENTS, BUDGET = 5, 6


def perceptron(params, inputs):
    """Class scores in float64."""
    first, second = (params[f"Dense_{i}"] for i in (0, 1))
    hidden = np.maximum(inputs @ first["kernel"] + first["bias"], 0)
    return hidden @ second["kernel"] + second["bias"]


def law(scores, counts):
    """softmax(s + log n) over the classes that the client has labels of; exactly 0 for the others."""
    known = counts > 0
    moved = scores[:, known] + np.log(counts[known])
    exponents = np.exp(moved - moved.max(1, keepdims=True))
    laws = np.zeros(scores.shape)
    laws[:, known] = exponents / exponents.sum(1, keepdims=True)
    return laws


def divergence(one, other):
    """KL(one || other), 0 log 0 = 0."""
    there = one > 0
    terms = np.zeros(one.shape)
    terms[there] = one[there] * (np.log(one[there]) - np.log(other[there]))
    return terms.sum(1)


@pytest.fixture(scope="module")
def bought():
    """An active round of KCFU and KSAS on digits of few classes a client."""
    data = dx.data.digits(seed=0)
    partition = dx.data.dirichlet(np.asarray(data.labels), CLIENTS, 0.1, seed=0, min_size=20)
    pools = dx.data.pools(partition, 15, seed=0)
    federation = dx.Federation(data, pools, local_steps=20, batch_size=8, replacement=True)
    model = dx.models.MLP((16,), classes=10)
    loop = active.active_learning(
        dx.server.kcfu(model, optax.sgd(0.1, momentum=0.9), CLIENTS),
        active.ksas(model),
        BUDGET,
        lambda key: model.init(key, data.example)["params"],
        rounds=2,
    )
    key = jax.random.key(0)
    source = active.ActiveRounds(federation)
    state = loop.init(key, model.init(key, data.example)["params"], pools)
    after, _ = jax.jit(lambda state, source: loop.step(state, source.draw(key, jnp.int32(0))))(
        state, source
    )
    wide = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), (after.server, after.clients))
    # As models see them: pixels in [0, 1].
    inputs = data.train.fetch(jnp.arange(len(data.train))).inputs
    return np.asarray(inputs, np.float64), np.asarray(data.labels), pools, wide


@pytest.mark.slow
def test_the_server_is_the_mean_of_the_local_models_by_numbers_of_labels(bought):
    """So the local models are those of the last round, before it was averaged."""
    _, _, pools, (server, clients) = bought
    shares = np.asarray(pools.labelled).sum(1)
    shares = shares / shares.sum()
    jax.tree.map(
        lambda mean, own: np.testing.assert_allclose(
            np.tensordot(shares, own, 1), mean, atol=2e-6, rtol=1e-5
        ),
        server.params,
        clients.params,
    )
    apart = jax.tree.map(lambda mean, own: np.abs(own - mean).max(), server.params, clients.params)
    assert min(jax.tree.leaves(apart)) > 0.01


def test_the_most_disputed_examples_are_bought(bought):
    inputs, labels, pools, (server, clients) = bought
    flat = inputs.reshape(len(inputs), -1)
    for client in range(CLIENTS):
        owned, had = np.asarray(pools.owned[client]), np.asarray(pools.labelled[client])
        able = np.asarray(pools.unlabelled[client])
        counts = np.bincount(labels[owned[had]], minlength=10)
        local = jax.tree.map(lambda leaf, i=client: leaf[i], clients.params)
        p, q = (law(perceptron(one, flat[owned]), counts) for one in (local, server.params))
        disputed = 0.5 * (divergence(p, q) + divergence(q, p))
        worth = np.where(able, disputed, -np.inf)
        best = np.sort(np.argsort(-worth)[: min(BUDGET, able.sum())])
        new = np.flatnonzero((clients.labelled[client] > 0) & ~had)
        # Equal but for rounding at the edge.
        edge = worth[best].min()
        assert len(new) == len(best)
        np.testing.assert_array_less(edge * (1 - 1e-4), worth[new] + 1e-9)
        assert len(np.intersect1d(new, best)) >= len(best) - 1
        assert worth[new].mean() > 2 * disputed[able].mean()
