"""The warm-up of SPES: worked examples, laws, its schedule, and the authors' own numbers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dflax import experts
from dflax.experts.spes_merging import cosines, mean_cosine, merged

GENERATOR = np.random.default_rng(5)


def layer(count=5, shape=(2, 3)):
    return {
        name: jnp.asarray(GENERATOR.normal(size=(count, *shape)), jnp.float32)
        for name in ("gate", "up", "down")
    }


def merge(tree, alpha, donors):
    return jax.jit(lambda t: merged(t, jnp.float32(alpha), donors, "gate"))(tree)


def test_the_worked_example():
    tree = {"a": {"gate": jnp.array([[1.0, 0.0], [1.0, 0.1], [0.0, 1.0]]), "rest": jnp.eye(3)}}
    found = merge(tree, 0.1, 1)["a"]
    np.testing.assert_allclose(
        found["gate"], [[1, 0.01], [1, 0.09], [0.1, 0.91]], rtol=1e-6, atol=1e-7
    )
    np.testing.assert_allclose(
        found["rest"], [[0.9, 0.1, 0], [0.1, 0.9, 0], [0, 0.1, 0.9]], rtol=1e-6, atol=1e-7
    )


def test_with_all_others_the_mean_stays_and_the_last_alpha_makes_all_equal():
    tree = layer()
    for alpha in (0.3, 0.8):
        for name, leaf in merge(tree, alpha, 4).items():
            np.testing.assert_allclose(leaf.mean(0), tree[name].mean(0), rtol=1e-5, atol=1e-6)
            if alpha == 0.8:
                np.testing.assert_allclose(leaf, leaf.mean(0)[None].repeat(5, 0), atol=1e-6)


def test_donors_do_not_depend_on_scale_and_equal_experts_stay():
    tree = layer()
    scaled = tree | {"gate": tree["gate"] * jnp.array([1.0, 7.0, 0.2, 3.0, 1.0])[:, None, None]}
    for name in ("up", "down"):
        np.testing.assert_allclose(
            merge(tree, 0.1, 2)[name], merge(scaled, 0.1, 2)[name], rtol=1e-6
        )
    same = jax.tree.map(lambda leaf: leaf[:1].repeat(5, 0), tree)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), merge(same, 0.5, 2), same
    )


def test_cosines_are_those_of_numpy():
    leaf = layer()["gate"]
    wide = np.asarray(leaf, np.float64).reshape(5, -1)
    unit = wide / np.linalg.norm(wide, axis=1, keepdims=True)
    np.testing.assert_allclose(cosines(leaf), unit @ unit.T, atol=1e-6)
    off = unit @ unit.T - np.eye(5)
    np.testing.assert_allclose(mean_cosine({"gate": leaf}, "gate"), off.sum() / 20, atol=1e-6)


def test_the_schedule_falls_in_a_line_and_is_zero_between_merges():
    made = experts.merging(0.4, every=2, until=8.0)
    found = [float(made.at(jnp.int32(t))) for t in range(1, 12)]
    np.testing.assert_allclose(found, [0, 0.3, 0, 0.2, 0, 0.1, 0, 0, 0, 0, 0], rtol=1e-6, atol=1e-7)


def test_strengths_can_be_swept():
    tree = layer()

    def run(strength):
        made = experts.merging(strength, every=1, until=10.0, donors=2)
        return merged(tree, made.at(jnp.int32(1)), made.donors, made.like)

    several = jax.jit(jax.vmap(run))(jnp.array([0.0, 0.5]))
    jax.tree.map(
        lambda leaf, one: np.testing.assert_allclose(leaf[1], one, rtol=1e-5, atol=1e-6),
        several,
        merge(tree, 0.45, 2),
    )
    jax.tree.map(lambda leaf, one: np.testing.assert_array_equal(leaf[0], one), several, tree)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"strength": 1.5}, r"strength must be .* got 1\.5"),
        ({"every": 0}, "every must be an integer >= 1, got 0"),
        ({"until": 0.0}, r"until must be .* got 0\.0"),
        ({"donors": 0}, "donors must be an integer >= 1, got 0"),
    ],
)
def test_wrong_merging_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        experts.merging(**options)
