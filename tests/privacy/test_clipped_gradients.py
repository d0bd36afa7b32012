"""Clipped gradients against a float64 reference, against jax-privacy, and in runs."""

import functools

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


@functools.cache
def of_images_each():
    """The gradients of the images one by one, and what is measured on them together, in float64."""
    with jax.enable_x64(True):
        loss, params, batch = of_images()
        gradients, _ = jax.jit(dx.local.per_example(loss).evaluate)(params, batch, KEY)
        return gradients, jax.jit(dx.local.gradient(loss).evaluate)(params, batch, KEY)


def reference(gradients, norm, expected, groups):
    """The formula, of gradients one by one, in float64 NumPy."""
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


@pytest.mark.some(1)
@pytest.mark.parametrize(("groups", "at_once"), [(None, None), (dx.privacy.layer, 3)])
def test_it_is_its_formula_in_float64(groups, at_once):
    with jax.enable_x64(True):
        loss, params, batch = of_images()
        oracle = dx.privacy.clipped_per_example(
            loss, 0.9, expected=4.5, groups=groups, at_once=at_once
        )
        seen, metrics = jax.jit(oracle.evaluate)(params, batch, KEY)
    gradients, (_, measured) = of_images_each()
    wanted = reference(gradients, 0.9, 4.5, groups)
    for found, right in zip(jax.tree.leaves(seen), wanted, strict=True):
        np.testing.assert_allclose(found.reshape(-1), right, rtol=0, atol=1e-14)
    assert 0 < metrics["clipped"] <= 1
    np.testing.assert_allclose(metrics["loss"], measured["loss"], rtol=1e-12)
    np.testing.assert_allclose(metrics["accuracy"], measured["accuracy"], rtol=1e-12)


def by_convolutions(params, batch, key):
    """Two convolutions of other layouts, the second of many channels and few outputs."""
    layout = ("NCHW", "OIHW", "NCHW")
    hidden = jax.lax.conv_general_dilated(
        batch.inputs, params["direct"], (1, 1), "SAME", dimension_numbers=layout
    )
    scores = jax.lax.conv_general_dilated(
        jnp.tanh(hidden), params["rows"], (2, 2), "SAME", dimension_numbers=layout
    )
    return jnp.mean(jnp.square(scores).sum((1, 2, 3)) * batch.labels), {}


@pytest.mark.parametrize("at_once", [None, 2])
def test_convolutions_of_any_layout(at_once):
    generator = np.random.default_rng(2)
    with jax.enable_x64(True):
        params = {
            "direct": jnp.asarray(generator.normal(size=(6, 2, 3, 3))),
            "rows": jnp.asarray(generator.normal(size=(40, 6, 3, 3))),
        }
        inputs = jnp.asarray(generator.normal(size=(7, 2, 7, 8)))
        batch = Batch(inputs, jnp.asarray(generator.normal(size=7)), jnp.asarray(MASK))
        one = jax.tree.map(lambda leaf: leaf[:1], batch._replace(mask=None))
        ghosts = _ghosts(dx.local.gradient(by_convolutions), params, one, KEY)
        assert [ghosts[leaf].by_rows for leaf in range(2)] == [False, True]
        each, _ = jax.jit(dx.local.per_example(by_convolutions).evaluate)(params, batch, KEY)
        lengths = np.sqrt(sum((leaf.reshape(7, -1) ** 2).sum(1) for leaf in each.values()))
        norm = float(np.median(lengths[MASK > 0]))
        oracle = dx.privacy.clipped_per_example(
            by_convolutions, norm, expected=5.0, at_once=at_once
        )
        seen, metrics = jax.jit(oracle.evaluate)(params, batch, KEY)
    assert 0 < metrics["clipped"] < 1
    for own, right in zip(jax.tree.leaves(seen), reference(each, norm, 5.0, None), strict=True):
        np.testing.assert_allclose(own.reshape(-1), right, rtol=0, atol=1e-12 * norm)


def test_no_clip_is_the_gradient_and_the_kernels_gradients_are_products():
    with jax.enable_x64(True):
        loss, params, batch = of_images()
        one = jax.tree.map(lambda leaf: leaf[:1], batch._replace(mask=None))
        ghosts = _ghosts(dx.local.gradient(loss), params, one, KEY)
        oracle = dx.privacy.clipped_per_example(loss, 1e9, expected=5.0)
        seen, metrics = jax.jit(oracle.evaluate)(params, batch, KEY)
    _, (whole, _) = of_images_each()
    paths = [jax.tree_util.keystr(p) for p, _ in jax.tree_util.tree_leaves_with_path(params)]
    layers = ("Conv_0", "Conv_1", "Dense_0", "Dense_1")
    assert [paths[leaf] for leaf in ghosts] == [f"['params']['{n}']['kernel']" for n in layers]
    assert_trees_close(seen, whole, rtol=0, atol=1e-14)
    assert metrics["clipped"] == 0


def over_tokens(params, batch, key):
    """Products over tokens: a weight that multiplies 4 rows of an example."""
    hidden = jnp.tanh(params["table"][batch.inputs] @ params["in"])
    scores = hidden.mean(1) @ params["out"]
    losses = optax.softmax_cross_entropy_with_integer_labels(scores, batch.labels)
    return jnp.mean(losses), {}


def test_rows_of_a_sequence_share_a_weight():
    """Its length is from products of the rows, where these are few beside the weight's own."""
    with jax.enable_x64(True):
        generator = np.random.default_rng(0)
        shapes = {"table": (9, 12), "in": (12, 16), "out": (16, 3)}
        params = {name: jnp.asarray(generator.normal(size=s)) for name, s in shapes.items()}
        tokens = jnp.asarray(generator.integers(0, 9, (7, 4)))
        batch = Batch(tokens, jnp.arange(7) % 3, jnp.asarray(MASK))
        one = jax.tree.map(lambda leaf: leaf[:1], batch._replace(mask=None))
        found = _ghosts(dx.local.gradient(over_tokens), params, one, KEY)
        assert [p.shape for p in found.values()] == [(1, 4, 16), (1, 3)]
        oracle = dx.privacy.clipped_per_example(over_tokens, 0.5, expected=5.0)
        seen, _ = jax.jit(oracle.evaluate)(params, batch, KEY)
        each, _ = jax.jit(dx.local.per_example(over_tokens).evaluate)(params, batch, KEY)
    for own, right in zip(jax.tree.leaves(seen), reference(each, 0.5, 5.0, None), strict=True):
        np.testing.assert_allclose(own.reshape(-1), right, rtol=0, atol=1e-14)


@pytest.mark.slow
def test_a_transformer_is_clipped_as_its_gradients_say():
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
        each, _ = jax.jit(dx.local.per_example(loss).evaluate)(params, batch, KEY)
    wanted = reference(each, 0.5, 5.0, None)
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
        each, _ = jax.jit(dx.local.per_example(loss).evaluate)(params, batch, KEY)
    wanted = reference(each, 2.0, 5.0, None)
    for found, right in zip(jax.tree.leaves(seen), wanted, strict=True):
        np.testing.assert_allclose(found.reshape(-1), right, rtol=0, atol=1e-13)


def of_rows():
    """A softmax regression away from zero, which is quick to compile."""
    generator = np.random.default_rng(1)
    params = {"w": generator.normal(size=(5, 3)), "b": generator.normal(size=3)}
    batch = Batch(generator.normal(size=(7, 5)), np.arange(7) % 3, MASK)
    return jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), (params, batch))


def test_jax_privacy_gives_the_same_sum_of_clipped_gradients():
    jax_privacy = pytest.importorskip("jax_privacy")
    params, batch = of_rows()
    batch = batch._replace(labels=batch.labels.astype(int))
    theirs = jax_privacy.clipped_grad(
        lambda params, inputs, labels: softmax_loss(params, Batch(inputs, labels), None)[0],
        l2_clip_norm=2.0,
        batch_argnums=(1, 2),
        normalize_by=4.5,
    )
    empty = jnp.asarray(MASK == 0)
    wanted = jax.jit(theirs)(params, batch.inputs, batch.labels, is_padding_example=empty)
    oracle = dx.privacy.clipped_per_example(softmax_loss, 2.0, expected=4.5)
    seen, metrics = jax.jit(oracle.evaluate)(params, batch, KEY)
    assert 0 < metrics["clipped"] < 1
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
    params, batch = of_rows()
    batch = batch._replace(labels=batch.labels.astype(int))
    oracle = dx.privacy.clipped_per_example(softmax_loss, 0.3, expected=2.0)
    # All of them, then each but one.
    masks = np.where(np.eye(7)[[0, *range(7)]] * (np.arange(8) > 0)[:, None], 0, MASK)
    run = jax.jit(jax.vmap(lambda mask: oracle.evaluate(params, batch._replace(mask=mask), KEY)[0]))
    sums = np.concatenate(
        [np.asarray(leaf, float).reshape(8, -1) for leaf in jax.tree.leaves(run(masks))], axis=1
    )
    moved = np.linalg.norm(sums[1:] - sums[0], axis=1)
    assert np.all(moved <= 0.3 / 2.0 * (1 + 1e-5))
    np.testing.assert_array_equal(moved > 0, MASK > 0)


def of_sampled():
    """A factory of DP-SGD, and a federation of Poisson minibatches with a start."""
    task = regression()
    sampled = dx.privacy.poisson_sampled(task.partition, 0.5)
    federation = dx.Federation(
        task.data, sampled, batch_size=dx.privacy.places(task.partition, 0.5), local_steps=2
    )

    def method(norm, deviation):
        seen = dx.privacy.clipped_per_example(softmax_loss, norm, expected=15.0)
        return dx.server.fedavg(dx.privacy.noisy_gradient(seen, deviation), optax.sgd(0.5))

    return method, federation, task.params


@pytest.mark.slow
def test_norm_and_noise_are_swept_in_one_program():
    method, federation, params = of_sampled()

    @jax.jit
    def ended(norm, deviation):
        algorithm = method(norm, deviation)
        return dx.rollout(algorithm, algorithm.init(KEY, params), federation, KEY, 2)

    grid = jnp.array([[0.1, 0.0], [1.0, 0.05], [0.1, 0.05]])
    swept, measured = jax.jit(jax.vmap(ended))(*grid.T)
    for place in range(len(grid)):
        alone, _ = ended(*grid[place])
        own = jax.tree.map(lambda leaf, n=place: leaf[n], swept.server.params)
        assert_trees_close(own, alone.server.params, rtol=1e-5, atol=1e-6)
    assert measured["examples_dropped"].shape == (3, 2)
    assert not np.any(measured["examples_dropped"])


@pytest.mark.slow
def test_sweeps_and_meshes_agree_with_a_run():
    method, federation, params = of_sampled()
    grid = {"norm": np.array([0.1, 1.0]), "deviation": np.array([0.0, 0.05])}
    found = dx.sweep(
        method,
        lambda algorithm, key: algorithm.init(key, params),
        federation,
        grid=grid,
        key=KEY,
        rounds=3,
    )
    algorithm = method(1.0, 0.05)
    start = algorithm.init(KEY, params)
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


def test_running_statistics_are_refused():
    with pytest.raises(ValueError, match="params must hold no running statistics"):
        dx.privacy.clipped_per_example(softmax_loss, 1.0)(
            {"params": {}, "batch_stats": {"m": jnp.ones(1)}},
            Batch(jnp.ones((1, 2)), jnp.zeros(1)),
            KEY,
        )
