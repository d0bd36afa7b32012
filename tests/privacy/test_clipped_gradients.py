"""Clipped gradients against a float64 reference, against jax-privacy, and in runs."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from tasks import assert_trees_close, regression, softmax_loss

import dflax as dx
from dflax.data.dataset import Batch
from dflax.privacy.clipped_gradients import _ghosts
from dflax.privacy.products import squares

KEY = jax.random.key(0)
MASK = np.array([1.0, 0.0, 1.0, 1.0, 1.0, 0.0, 1.0])
CNN = dx.models.CNN(10, channels=(4, 8), hidden=16)
TOKENS = dx.models.TransformerClassifier(classes=3, vocabulary=50, width=64, depth=1, heads=2)


def of_images(dtype=jnp.float64):
    inputs = jax.random.normal(jax.random.key(1), (7, 8, 8, 1), dtype)
    params = jax.tree.map(lambda x: x.astype(dtype), CNN.init(jax.random.key(2), inputs[:1]))
    return dx.losses.classification(CNN), params, Batch(inputs, jnp.arange(7), jnp.asarray(MASK))


def reference(loss, params, batch, norm, expected, groups):
    """The formula, of gradients one by one, in float64 NumPy."""
    gradients, _ = jax.jit(dx.local.per_example(loss).evaluate)(params, batch, KEY)
    named = jax.tree_util.tree_leaves_with_path(gradients)
    names = [groups(jax.tree_util.keystr(path)) if groups else "" for path, _ in named]
    rows = [np.asarray(leaf, np.float64).reshape(7, -1) for _, leaf in named]
    out = []
    for own in range(len(rows)):
        inside = [r for r, name in zip(rows, names, strict=True) if name == names[own]]
        length = np.sqrt(sum((r**2).sum(1) for r in inside))
        bound = norm / np.sqrt(len(set(names)))
        factor = np.minimum(1, bound / np.maximum(length, 1e-300)) * (MASK > 0)
        out.append(factor @ rows[own] / expected)
    return out


@pytest.mark.parametrize("groups", [None, dx.privacy.layer])
@pytest.mark.parametrize("at_once", [None, 3])
def test_it_is_its_formula_in_float64(groups, at_once):
    with jax.enable_x64(True):
        loss, params, batch = of_images()
        oracle = dx.privacy.clipped_per_example(
            loss, 0.9, expected=4.5, groups=groups, at_once=at_once
        )
        seen, metrics = jax.jit(oracle.evaluate)(params, batch, KEY)
        wanted = reference(loss, params, batch, 0.9, 4.5, groups)
        _, measured = jax.jit(dx.local.gradient(loss).evaluate)(params, batch, KEY)
    for found, right in zip(jax.tree.leaves(seen), wanted, strict=True):
        np.testing.assert_allclose(found.reshape(-1), right, rtol=0, atol=1e-14)
    assert 0 < metrics["clipped"] <= 1
    np.testing.assert_allclose(metrics["loss"], measured["loss"], rtol=1e-12)
    np.testing.assert_allclose(metrics["accuracy"], measured["accuracy"], rtol=1e-12)


def test_no_clip_is_the_gradient_and_the_dense_layers_make_no_gradients():
    with jax.enable_x64(True):
        loss, params, batch = of_images()
        one = jax.tree.map(lambda leaf: leaf[:1], batch._replace(mask=None))
        ghosts = _ghosts(dx.local.gradient(loss), params, one, KEY)
        oracle = dx.privacy.clipped_per_example(loss, 1e9, expected=5.0)
        seen, metrics = jax.jit(oracle.evaluate)(params, batch, KEY)
        whole, _ = jax.jit(dx.local.gradient(loss).evaluate)(params, batch, KEY)
    paths = [jax.tree_util.keystr(p) for p, _ in jax.tree_util.tree_leaves_with_path(params)]
    assert {paths[leaf] for leaf in ghosts} == {
        "['params']['Dense_0']['kernel']",
        "['params']['Dense_1']['kernel']",
    }
    assert_trees_close(seen, whole, rtol=0, atol=1e-14)
    assert metrics["clipped"] == 0


def test_rows_of_a_sequence_share_a_weight():
    """A transformer: products over tokens, gathers, tied and stacked weights, its own keys."""
    with jax.enable_x64(True):
        tokens = jax.random.randint(jax.random.key(3), (7, 4), 0, 50)
        params = jax.tree.map(lambda x: x.astype(float), TOKENS.init(jax.random.key(2), tokens[:1]))
        loss = dx.losses.classification(TOKENS)
        batch = Batch(tokens, jnp.arange(7) % 3, jnp.asarray(MASK))
        one = jax.tree.map(lambda leaf: leaf[:1], batch._replace(mask=None))
        assert any(
            p.shape[-2] > 1 for p in _ghosts(dx.local.gradient(loss), params, one, KEY).values()
        )
        seen, _ = jax.jit(dx.privacy.clipped_per_example(loss, 0.5, expected=5.0).evaluate)(
            params, batch, KEY
        )
        wanted = reference(loss, params, batch, 0.5, 5.0, None)
    for found, right in zip(jax.tree.leaves(seen), wanted, strict=True):
        np.testing.assert_allclose(found.reshape(-1), right, rtol=0, atol=1e-13)


@pytest.mark.parametrize("rows", [1, 5])
def test_squares_of_products(rows):
    generator = np.random.default_rng(0)
    x, d = generator.normal(size=(3, rows, 6)), generator.normal(size=(3, rows, 4))
    wanted = [(x[j].T @ d[j]).reshape(-1) @ (x[j].T @ d[j]).reshape(-1) for j in range(3)]
    np.testing.assert_allclose(squares(jnp.asarray(x), jnp.asarray(d)), wanted, rtol=1e-5)


@pytest.mark.parametrize("shared", [True, False])
def test_a_weight_used_twice_has_its_gradient_made(shared):
    def loss(params, batch, key):
        hidden = batch.inputs @ params["w"]
        again = hidden @ params["w"] if shared else hidden @ params["v"].T
        return jnp.mean(jnp.sum(again**2, -1)), {}

    with jax.enable_x64(True):
        params = {n: jax.random.normal(jax.random.key(i), (9, 9)) for i, n in enumerate("wv")}
        batch = Batch(jax.random.normal(KEY, (7, 9)), jnp.zeros(7), jnp.asarray(MASK))
        one = jax.tree.map(lambda leaf: leaf[:1], batch._replace(mask=None))
        # v is not read where w stands in for it; without a use there is nothing to add up.
        assert len(_ghosts(dx.local.gradient(loss), params, one, KEY)) == (0 if shared else 1)
        oracle = dx.privacy.clipped_per_example(loss, 2.0, expected=5.0)
        seen, _ = jax.jit(oracle.evaluate)(params, batch, KEY)
        wanted = reference(loss, params, batch, 2.0, 5.0, None)
    for found, right in zip(jax.tree.leaves(seen), wanted, strict=True):
        np.testing.assert_allclose(found.reshape(-1), right, rtol=0, atol=1e-13)


def test_jax_privacy_gives_the_same_sum_of_clipped_gradients():
    jax_privacy = pytest.importorskip("jax_privacy")
    loss, params, batch = of_images(jnp.float32)
    theirs = jax_privacy.clipped_grad(
        lambda params, inputs, labels: loss(params, Batch(inputs, labels), None)[0],
        l2_clip_norm=0.9,
        batch_argnums=(1, 2),
        normalize_by=4.5,
    )
    empty = jnp.asarray(MASK == 0)
    wanted = jax.jit(theirs)(params, batch.inputs, batch.labels, is_padding_example=empty)
    oracle = dx.privacy.clipped_per_example(loss, 0.9, expected=4.5)
    seen, _ = jax.jit(oracle.evaluate)(params, batch, KEY)
    assert_trees_close(seen, wanted, rtol=1e-5, atol=1e-7)


def test_what_is_not_finite_counts_as_nothing_and_is_counted():
    def loss(params, batch, key):
        return jnp.mean(batch.inputs @ params["w"]), {}

    params = {"w": jnp.zeros((3, 2))}
    inputs = jnp.array([[1.0, 0, 0], [jnp.nan, 0, 0], [jnp.inf, 1, 0], [0, 0, jnp.nan]])
    batch = Batch(inputs, jnp.zeros(4), jnp.array([1.0, 1.0, 1.0, 0.0]))
    for at_once in (None, 1):
        oracle = dx.privacy.clipped_per_example(loss, 10.0, expected=1.0, at_once=at_once)
        seen, metrics = jax.jit(oracle.evaluate)(params, batch, KEY)
        np.testing.assert_allclose(seen["w"], [[0.5, 0.5], [0, 0], [0, 0]])
        assert metrics["not_finite"] == 2
    nobody = batch._replace(mask=jnp.zeros(4))
    seen, metrics = oracle(params, nobody, KEY)
    assert not np.any(seen["w"])
    assert metrics["clipped"] == 0
    assert metrics["not_finite"] == 0


def test_one_example_moves_the_sum_by_the_norm_at_most():
    loss, params, batch = of_images(jnp.float32)
    oracle = jax.jit(dx.privacy.clipped_per_example(loss, 0.3, expected=2.0).evaluate)
    seen, _ = oracle(params, batch, KEY)
    for place in np.flatnonzero(MASK):
        without, _ = oracle(params, batch._replace(mask=batch.mask.at[place].set(0)), KEY)
        moved = optax.tree.norm(jax.tree.map(jnp.subtract, seen, without))
        assert moved <= 0.3 / 2.0 * (1 + 1e-5)


def test_norm_and_noise_are_swept_in_one_program_and_meshes_agree():
    task = regression()
    sampled = dx.privacy.poisson_sampled(task.partition, 0.5)
    federation = dx.Federation(
        task.data, sampled, batch_size=dx.privacy.places(task.partition, 0.5), local_steps=2
    )

    def method(norm, deviation):
        seen = dx.privacy.clipped_per_example(softmax_loss, norm, expected=15.0)
        return dx.server.fedavg(dx.privacy.noisy_gradient(seen, deviation), optax.sgd(0.5))

    grid = {"norm": np.array([0.1, 1.0]), "deviation": np.array([0.0, 0.05])}
    found = dx.sweep(
        method,
        lambda algorithm, key: algorithm.init(key, task.params),
        federation,
        grid=grid,
        key=KEY,
        rounds=3,
    )
    algorithm = method(1.0, 0.05)
    start = algorithm.init(KEY, task.params)
    own = jax.random.fold_in(KEY, 0)
    alone, history = dx.run(algorithm, start, federation, rounds=3, key=own)
    assert_trees_close(
        found.states.server.params["w"][1, 1, 0], alone.server.params["w"], rtol=1e-5, atol=1e-6
    )
    assert found.metrics["examples_dropped"].shape == (2, 2, 1, 3)
    mesh = dx.client_mesh()
    for source in (federation, dx.data.deal(federation, mesh)):
        dealt, measured = dx.run(algorithm, start, source, rounds=3, key=own, mesh=mesh)
        assert_trees_close(dealt.server, alone.server, rtol=1e-4, atol=1e-5)
        assert_trees_close(measured.metrics, history.metrics, rtol=1e-4, atol=1e-5)
    assert np.all(history.metrics["examples_dropped"] == 0)


def test_running_statistics_are_refused():
    with pytest.raises(ValueError, match="params must hold no running statistics"):
        dx.privacy.clipped_per_example(softmax_loss, 1.0)(
            {"params": {}, "batch_stats": {"m": jnp.ones(1)}},
            Batch(jnp.ones((1, 2)), jnp.zeros(1)),
            KEY,
        )
