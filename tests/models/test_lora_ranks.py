"""Masks of ranks: the products are those of the first components, and the others get no gradient."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dflax.aggregation import Weighted, weighted_by_leaf
from dflax.aggregation.aggregator import Combining
from dflax.models import LowRank, apply_lora, lora, rank_mask

KEY = jax.random.key(0)
PARAMS = {"a": {"kernel": jnp.ones((4, 5))}, "b": {"kernel": jnp.ones((5, 3)), "bias": jnp.ones(3)}}


def adapter():
    made = lora(KEY, PARAMS, 3)
    return jax.tree.map(lambda leaf: jax.random.normal(KEY, leaf.shape), made)


def test_a_mask_keeps_the_first_components_of_each_matrix():
    own = adapter()
    ranks = jnp.array([2, 0])

    @jax.jit
    def run(own, ranks):
        def value(own):
            masked = jax.tree.map(jnp.multiply, own, rank_mask(own, ranks))
            changed = apply_lora(PARAMS, masked)
            return sum(jnp.sum(jnp.sin(leaf)) for leaf in jax.tree.leaves(changed)), changed

        return jax.grad(value, has_aux=True)(own)

    slope, changed = run(own, ranks)
    a = own["a"]["kernel"]
    np.testing.assert_allclose(
        changed["a"]["kernel"], 1 + a.down[:, :2] @ a.up[:2], rtol=1e-5, atol=1e-6
    )
    np.testing.assert_array_equal(changed["b"]["kernel"], PARAMS["b"]["kernel"])
    assert np.all(np.asarray(slope["a"]["kernel"].down[:, 2:]) == 0)
    assert np.all(np.asarray(slope["a"]["kernel"].up[2:]) == 0)
    assert np.all(np.asarray(slope["a"]["kernel"].up[:2]) != 0)


def test_clients_of_several_ranks_average_what_they_have():
    own = {"w": LowRank(jnp.ones((2, 3)), jnp.ones((3, 2)))}
    several = jax.tree.map(lambda leaf: jnp.stack([leaf, 3 * leaf]), own)
    masks = jax.vmap(lambda ranks: rank_mask(own, ranks))(jnp.array([[3], [1]]))
    rule = weighted_by_leaf()
    mean, _, _ = rule.apply(Weighted(several, masks), jnp.ones(2), (), Combining(KEY))
    np.testing.assert_allclose(mean.value["w"].up[:, 0], [2, 1, 1])
    np.testing.assert_allclose(mean.value["w"].down[0], [2, 1, 1])


@pytest.mark.parametrize("ranks", [4, -1, [1, 2, 3]])
def test_wrong_ranks_are_refused(ranks):
    with pytest.raises(ValueError, match="ranks must"):
        rank_mask(adapter(), np.asarray(ranks))
