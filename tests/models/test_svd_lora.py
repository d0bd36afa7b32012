"""Adapters of singular values: they start as nothing, keep their first components, stay orthonormal."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dflax.models import LowRank, apply_lora, orthogonality, rank_mask, svd_lora

KEY = jax.random.key(0)
PARAMS = {"a": {"kernel": jnp.ones((4, 5))}, "b": {"kernel": jnp.ones((5, 3)), "bias": jnp.ones(3)}}
SCALE = 32 / 3


@pytest.fixture(scope="module")
def start():
    return jax.jit(lambda key: svd_lora(key, PARAMS, 3))(KEY)


@pytest.fixture(scope="module")
def masked():
    """The weights with an adapter of some ranks in them, and how far from orthonormal it is."""

    def run(own, ranks):
        kept = jax.tree.map(jnp.multiply, own, rank_mask(own, ranks))
        return apply_lora(PARAMS, kept, scale=SCALE), orthogonality(own, ranks)

    return jax.jit(run)


def any_adapter(start):
    keys = iter(jax.random.split(KEY, 6))
    return jax.tree.map(lambda leaf: jax.random.normal(next(keys), leaf.shape), start)


def test_it_starts_as_the_base_with_orthonormal_factors_for_every_rank(start, masked):
    for ranks in ([0, 3], [1, 1], [3, 2]):
        weights, apart = masked(start, jnp.array(ranks))
        jax.tree.map(np.testing.assert_array_equal, weights, PARAMS)
        assert float(apart) < 1e-11
    assert start["b"]["bias"] is None


def test_a_rank_keeps_the_first_components(start, masked):
    own = any_adapter(start)
    weights, apart = masked(own, jnp.array([2, 1]))
    penalty = 0.0
    for name, rank in (("a", 2), ("b", 1)):
        left, values, right = (np.asarray(leaf, np.float64) for leaf in own[name]["kernel"])
        p, q = left[:, :rank], right[:rank]
        wanted = 1 + SCALE * (p * values[:rank]) @ q
        np.testing.assert_allclose(weights[name]["kernel"], wanted, rtol=1e-5, atol=1e-5)
        eye = np.eye(rank)
        penalty += np.sum((p.T @ p - eye) ** 2) + np.sum((q @ q.T - eye) ** 2)
    np.testing.assert_allclose(apart, penalty / 2, rtol=1e-5)


def test_components_outside_of_the_rank_get_no_gradient(start):
    own = any_adapter(start)

    @jax.jit
    @jax.grad
    def slope(own, ranks):
        kept = jax.tree.map(jnp.multiply, own, rank_mask(own, ranks))
        changed = apply_lora(PARAMS, kept)["a"]["kernel"]
        return jnp.sum(jnp.sin(changed)) + orthogonality(own, ranks)

    found = slope(own, jnp.array([2, 0]))
    a, b = found["a"]["kernel"], found["b"]["kernel"]
    assert np.all(np.asarray(a.left[:, 2:]) == 0)
    assert np.all(np.asarray(a.left[:, :2]) != 0)
    assert float(a.values[2]) == 0
    assert np.all(np.asarray(a.values[:2]) != 0)
    assert all(np.all(np.asarray(leaf) == 0) for leaf in b)


def test_what_is_no_adapter_or_no_rank_is_refused(start):
    with pytest.raises(ValueError, match="ranks must"):
        orthogonality(start, 4)
    with pytest.raises(TypeError, match="adapter must be a tree of Singular"):
        orthogonality({"a": LowRank(jnp.ones((2, 1)), jnp.ones((1, 2)))})
    with pytest.raises(ValueError, match="rank must be at most"):
        svd_lora(KEY, PARAMS, 4)
