"""The flag aggregator against its definition by singular vectors, float64, and its exact values."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec
from tasks import assert_trees_close

import dflax as dx
from dflax import aggregation
from dflax.aggregation import Combining
from dflax.aggregation.flag import flag_subspace

KEY = jax.random.key(0)
HERE = Combining(KEY)


@functools.partial(jax.jit, static_argnums=(3, 4, 5, 6))
def combined(
    rows,
    weights,
    regularisation=0.0,
    dimension=None,
    steps=5,
    scale="directions",
    pairs="normalised",
):
    rule = aggregation.flag(
        dimension, regularisation=regularisation, steps=steps, scale=scale, pairs=pairs
    )
    out, _, metrics = rule.apply(rows, weights, (), HERE)
    return out, metrics


def of(rows, *settings, **more):
    rows = jnp.asarray(rows)
    return combined(rows, jnp.ones(len(jax.tree.leaves(rows)[0])), *settings, **more)


def by_singular_vectors(rows, dimension, regularisation, steps, pairs, smoothing=1e-7):
    """Y, v and the loss of every iterate, from the columns themselves."""
    x = (rows / np.linalg.norm(rows, axis=1, keepdims=True)).T
    p = x.shape[1]
    share = regularisation / (p * (p - 1))
    differences = (x[:, :, None] - x[:, None])[:, ~np.eye(p, dtype=bool)]
    lengths = (differences**2).sum(0) if pairs == "normalised" else np.ones(p * (p - 1))
    v, u, best = np.zeros(p), np.zeros(p * (p - 1)), (None, None, np.inf)
    losses = []
    for _ in range(steps):
        columns = [x * (np.abs(1 - v) + smoothing) ** -0.25]
        if regularisation:
            scale = np.sqrt(share / lengths) if pairs == "normalised" else share
            columns.append(differences * scale * (np.abs(1 - u) + smoothing) ** -0.25)
        y = np.linalg.svd(np.concatenate(columns, 1), full_matrices=False)[0][:, :dimension]
        v = ((y.T @ x) ** 2).sum(0)
        u = ((y.T @ differences) ** 2).sum(0) / lengths
        losses.append(np.sqrt(np.abs(1 - v)).sum() + share * np.sqrt(np.abs(1 - u)).sum())
        best = min(best, (y, v, losses[-1]), key=lambda one: one[2])
    return *best, losses


@pytest.mark.some(2)
@pytest.mark.parametrize(
    ("regularisation", "pairs"), [(0.0, "normalised"), (4.0, "normalised"), (4.0, "plain")]
)
def test_it_is_its_definition_by_singular_vectors(regularisation, pairs):
    rows = np.random.default_rng(0).normal(size=(9, 40)) + 0.3
    rows *= np.random.default_rng(1).uniform(0.1, 10, (9, 1))
    x = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    with jax.enable_x64(True):
        for steps in (1, 5):
            y, v, loss, _ = by_singular_vectors(rows, 5, regularisation, steps, pairs)
            for scale, expected in (
                ("directions", y @ y.T @ x.sum(0) / 9),
                ("directions/r", y @ y.T @ x.sum(0) / 5),
                ("messages", y @ y.T @ rows.sum(0) / 9),
            ):
                out, metrics = of(rows, regularisation, None, steps, scale, pairs)
                np.testing.assert_allclose(out, expected, rtol=1e-9, atol=1e-12)
            assert metrics["flag_loss"] == pytest.approx(loss, rel=1e-9)
            assert metrics["explained"] == pytest.approx(v.mean(), rel=1e-9)


def test_worked_values():
    out, metrics = of([[1.0, 0], [2, 0], [0, 3]], dimension=1)
    np.testing.assert_allclose(out, [2 / 3, 0], atol=1e-6)
    assert metrics["explained"] == pytest.approx(2 / 3)
    # All directions are kept: the mean of the directions.
    rows = np.random.default_rng(0).normal(size=(7, 30)).astype(np.float32)
    out, metrics = of(rows, dimension=7)
    directions = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    np.testing.assert_allclose(out, directions.mean(0), rtol=1e-4, atol=1e-6)
    assert metrics["explained"] == pytest.approx(1, abs=1e-5)
    # More directions are asked for than there are.
    for dimension in (1, 3, 6):
        out, metrics = of(np.arange(1, 7)[:, None] * rows[:1], dimension=dimension)
        np.testing.assert_allclose(out, directions[0], rtol=1e-4, atol=1e-6)
        assert metrics["explained"] == pytest.approx(1, abs=1e-5)


@pytest.mark.slow
def test_the_loss_does_not_rise_and_the_limit_passes_through_half_of_the_messages():
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(15, 200)) + 0.1 * rng.normal(size=200)
    with jax.enable_x64(True):
        for regularisation in (0.0, 4.0):
            exact = by_singular_vectors(rows, 8, regularisation, 8, "normalised")[3]
            assert (np.diff(exact) <= 1e-9).all(), exact
            found = of(rows, regularisation, 8, 8)[1]["flag_loss"]
            assert found == pytest.approx(exact[-1], rel=1e-9)
        found = flag_subspace(np.corrcoef(rows - rows.mean()), jnp.ones(15, bool), 8, steps=200)
        assert 7 <= (found.explained > 1 - 1e-3).sum() <= 8


def test_one_step_from_equal_weights_is_the_principal_subspace():
    rows = np.random.default_rng(0).normal(size=(15, 2000)).astype(np.float32)
    directions = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    y = np.linalg.svd(directions.T, full_matrices=False)[0][:, :8]
    out, _ = of(rows, steps=1)
    np.testing.assert_allclose(out, y @ y.T @ directions.mean(0), atol=1e-6)


@pytest.mark.slow
def test_lengths_signs_order_and_one_liar_hardly_matter():
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(11, 50)).astype(np.float32) + 1
    out, _ = of(rows)
    assert np.linalg.norm(out) <= 1 + 1e-6
    for changed in (rows * rng.uniform(1e-3, 1e12, (11, 1)), rows[rng.permutation(11)]):
        np.testing.assert_allclose(of(changed.astype(np.float32))[0], out, rtol=1e-3, atol=1e-5)
    rotation = np.linalg.qr(rng.normal(size=(50, 50)))[0].astype(np.float32)
    np.testing.assert_allclose(of(rows @ rotation)[0], out @ rotation, rtol=1e-3, atol=1e-5)
    for p in (10, 20, 40):
        base = rng.normal(size=300)
        rows = (base + 0.3 * rng.normal(size=(p, 300))).astype(np.float32)
        lying = np.concatenate([-50 * base[None], rows[1:]]).astype(np.float32)
        assert np.linalg.norm(of(lying)[0] - of(rows)[0]) < 2.1 / p


@pytest.mark.slow
def test_who_is_absent_broken_or_silent_does_not_count():
    rng = np.random.default_rng(0)
    tree = {"b": rng.normal(size=(9, 3)), "w": rng.normal(size=(9, 5, 4))}
    weights = np.ones(9)
    weights[2] = 0
    spoilt = jax.tree.map(np.copy, tree)
    spoilt["w"][2], spoilt["b"][5, 1] = np.nan, np.inf
    for leaf in jax.tree.leaves(spoilt):
        leaf[7] = 0
    left = np.setdiff1d(np.arange(9), [2, 5, 7])
    with jax.enable_x64(True):
        for settings in ((0.0, None), (3.0, None), (0.0, 8), (0.0, 2)):
            out, metrics = combined(spoilt, weights, *settings)
            expected, _ = combined(
                jax.tree.map(lambda leaf: leaf[left], tree), np.ones(6), *settings
            )
            assert_trees_close(out, expected, rtol=1e-8, atol=1e-10)
            assert metrics["messages_dropped"] == 1
        nothing, metrics = combined(spoilt, np.zeros(9))
        assert not any(np.any(leaf) for leaf in jax.tree.leaves(nothing))
        assert metrics["explained"] == 0


def test_lengths_that_overflow_count_for_no_more():
    rows = np.random.default_rng(0).normal(size=(7, 20)).astype(np.float32)
    plain, _ = of(rows)
    rows[1] *= 1e30
    np.testing.assert_allclose(of(rows)[0], plain, rtol=1e-3, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("clients", [8, 12])
def test_on_eight_devices(clients):
    rng = np.random.default_rng(0)
    tree = {"b": rng.normal(size=(clients, 3)), "w": rng.normal(size=(clients, 5, 4))}
    tree = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), tree)
    weights = jnp.ones(clients).at[3].set(0)
    expected = combined(tree, weights)
    mesh = dx.client_mesh()
    with jax.set_mesh(mesh):
        if clients == 8:
            tree = jax.device_put(tree, NamedSharding(mesh, PartitionSpec("clients")))
        found = combined(tree, weights)
    assert_trees_close(found, expected, rtol=1e-4, atol=1e-5)


def test_regularisations_are_swept_in_one_program():
    rows = np.random.default_rng(0).normal(size=(6, 10)).astype(np.float32)
    swept = jax.vmap(lambda one: combined(rows, jnp.ones(6), one)[0])(jnp.array([0.0, 2.0]))
    for found, one in zip(swept, (0.0, 2.0), strict=True):
        np.testing.assert_allclose(found, of(rows, one)[0], rtol=1e-4, atol=1e-6)
    assert np.abs(swept[0] - swept[1]).max() > 1e-3


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: aggregation.flag(0), "dimension must be an integer >= 1"),
        (lambda: aggregation.flag(regularisation=-1.0), "regularisation must be a finite number"),
        (lambda: aggregation.flag(steps=0), "steps must be an integer >= 1"),
        (lambda: aggregation.flag(scale="mean"), "scale must be one of"),
        (lambda: aggregation.flag(pairs="all"), "pairs must be one of"),
        (lambda: aggregation.flag(smoothing=0.0), "smoothing must be a finite number"),
    ],
)
def test_refusals(call, message):
    with pytest.raises((TypeError, ValueError), match=message):
        call()
