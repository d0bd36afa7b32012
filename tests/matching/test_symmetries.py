import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from tasks import assert_trees_equal

import dflax as dx
from dflax import matching
from dflax.matching import Place

KEY = jax.random.key(0)
IMAGES = jax.random.normal(KEY, (3, 8, 8, 2))


class Depthwise(nn.Module):
    """Plain flax layers: grouped convolution, two norms, average pooling, odd padding, dropout."""

    @nn.compact
    def __call__(self, x, train: bool = False):
        x = nn.relu(nn.Conv(6, (3, 3), padding="VALID")(x))
        x = nn.relu(nn.Conv(6, (3, 3), feature_group_count=6)(x))
        x = nn.LayerNorm()(nn.avg_pool(x, (2, 2), (2, 2)))
        x = nn.Dropout(0.5, deterministic=not train)(x).reshape(x.shape[0], -1)
        return nn.Dense(3)(nn.tanh(nn.Dense(5)(x)))


def recurrent(params, x):
    """A plain function with a loop: rows of the image are read one after another."""

    def step(state, row):
        return jnp.tanh(row @ params["read"] + state @ params["carry"]), None

    rows = x.reshape(x.shape[0], 8, -1).swapaxes(0, 1)
    state, _ = jax.lax.scan(step, jnp.zeros((x.shape[0], 7)), rows)
    return state @ params["out"]


def weights(module):
    params = jax.eval_shape(module.init, KEY, IMAGES)
    params = params if "batch_stats" in params else params["params"]
    params = matching.derived.without_statistics(params)
    generator = np.random.default_rng(0)
    return jax.tree.map(lambda p: 0.3 * generator.normal(size=p.shape).astype(np.float32), params)


def activated(params, x):
    """Activations of which the newest JAX made operations of their own, and layers read as a stack."""
    hidden = x.reshape(x.shape[0], -1) @ params["read"]
    hidden = (
        jnp.log2(1.5 + jnp.tanh(hidden) ** 2) + jnp.sinc(hidden) + jax.scipy.special.i0e(hidden)
    )
    first, second = jnp.stack([hidden, hidden**2])
    return (first + second) @ params["out"]


RECURRENT = {
    "read": 0.3 * jax.random.normal(KEY, (16, 7)),
    "carry": 0.3 * jax.random.normal(KEY, (7, 7)),
    "out": jax.random.normal(KEY, (7, 3)),
}
RESNET = dx.models.ResNet18(3, norm="batch", width=4)
ACTIVATED = {
    "read": 0.3 * jax.random.normal(KEY, (128, 7)),
    "out": jax.random.normal(KEY, (7, 3)),
}
FUNCTIONS = {"recurrent": (recurrent, RECURRENT), "activated": (activated, ACTIVATED)}
MODELS = {
    "mlp": (dx.models.MLP((5, 6), classes=3), [5, 6]),
    "cnn": (dx.models.CNN(3, (4, 6), 5), [4, 5, 6]),
    # Four streams, and the inner layer of each of the eight blocks.
    "resnet": (RESNET, sorted([4, 8, 16, 32] + 2 * [4, 8, 16, 32])),
    "depthwise": (Depthwise(), [5, 6]),
    # The stream, and in a block the hidden layer, the two heads, and the four channels of a head.
    "transformer": (
        dx.models.TransformerClassifier(3, patch=4, width=8, depth=1, heads=2, dropout=0.1),
        [2, 4, 8, 32],
    ),
}


@pytest.mark.some(2)
@pytest.mark.parametrize("name", [*MODELS, *FUNCTIONS])
def test_permuting_all_derived_groups_keeps_the_function(name):
    if name in FUNCTIONS:
        (model, params), expected = FUNCTIONS[name], [7]
    else:
        model, expected = MODELS[name]
        params = weights(model)
    found = matching.symmetries(model, params, IMAGES)
    widths = matching.widths_of(found, params)
    assert sorted(widths.values()) == expected
    permutations = matching.random_permutations(jax.random.key(1), widths)
    moved = jax.jit(lambda p, q: matching.permute(p, found, q))(params, permutations)
    forward = jax.jit(matching.derived.calibrating(model))
    before = np.asarray(forward(params, IMAGES))
    tolerance = 1e-4 * np.abs(before).max()
    np.testing.assert_allclose(forward(moved, IMAGES), before, rtol=1e-3, atol=tolerance)
    changed = jax.tree.map(lambda a, b: bool(np.any(a != np.asarray(b))), params, moved)
    assert any(jax.tree.leaves(changed))


@pytest.mark.some(2)
@pytest.mark.parametrize("name", ["mlp", "cnn", "transformer"])
def test_activations_move_with_their_units(name):
    model, _ = MODELS[name]
    params = weights(model)
    found = matching.symmetries(model, params, IMAGES)
    read = jax.jit(matching.activations(model, found))
    widths = matching.widths_of(found, params)
    permutations = matching.random_permutations(jax.random.key(2), widths)
    before, after = (
        read(params, IMAGES),
        read(matching.permute(params, found, permutations), IMAGES),
    )
    for group, permutation in permutations.items():
        np.testing.assert_allclose(
            after[group], before[group][:, permutation], rtol=1e-3, atol=1e-4
        )


@pytest.mark.slow
def test_what_is_read_is_the_layer_after_its_non_linearity():
    model = dx.models.CNN(3, (4, 6), 5)
    params = weights(model)
    read = matching.activations(model, matching.symmetries(model, params, IMAGES))(params, IMAGES)
    assert {name: values.shape for name, values in read.items()} == {
        "Conv_0/bias[0]": (3 * 64, 4),
        "Conv_1/bias[0]": (3 * 16, 6),
        "Dense_0/bias[0]": (3, 5),
    }
    first = dx.models.convolve(IMAGES, params["Conv_0"]["kernel"]) + params["Conv_0"]["bias"]
    np.testing.assert_allclose(
        read["Conv_0/bias[0]"], nn.relu(first).reshape(-1, 4), rtol=1e-5, atol=1e-5
    )


def test_units_that_are_not_interchangeable_are_no_group():
    def positional(params, x):
        hidden = jnp.tanh(x.reshape(x.shape[0], -1) @ params["in"])
        return (
            jnp.cumsum(hidden, axis=1) @ params["out"] + (hidden * jnp.arange(6.0)) @ params["out"]
        )

    params = {"in": jnp.ones((128, 6)), "out": jnp.ones((6, 3))}
    assert matching.symmetries(positional, params, IMAGES) == {}


class Grouped(nn.Module):
    """A layer of six units in two groups with statistics of their own."""

    @nn.compact
    def __call__(self, x):
        return nn.Dense(3)(nn.tanh(dx.models.GroupNorm(2)(nn.Dense(6)(x.reshape(x.shape[0], -1)))))


def test_groups_may_change_places_and_units_within_all_groups_alike():
    params = weights(Grouped())
    found = matching.symmetries(Grouped(), params, IMAGES)
    assert sorted(matching.widths_of(found, params).values()) == [2, 3]
    matching.verify(Grouped(), params, IMAGES, found, KEY)


def test_places_by_hand_are_those_derived_and_identity_changes_nothing():
    model = dx.models.MLP((5,), classes=3)
    params = weights(model)
    by_hand = {"hidden": [("Dense_0/kernel", 1), ("Dense_0/bias", 0), ("Dense_1/kernel", 0)]}
    derived = matching.symmetries(model, params, IMAGES)
    assert {Place(*place) for place in by_hand["hidden"]} == set(*derived.values())
    matching.verify(model, params, IMAGES, by_hand, KEY)
    widths = matching.widths_of(by_hand, params)
    assert_trees_equal(matching.permute(params, by_hand, matching.identity(widths)), params)
    moved = matching.permute(params, by_hand, {"hidden": jnp.asarray([2, 0, 1, 4, 3])})
    np.testing.assert_array_equal(
        moved["Dense_0"]["kernel"], params["Dense_0"]["kernel"][:, [2, 0, 1, 4, 3]]
    )


MLP = dx.models.MLP((5, 6), classes=3)
PARAMS = weights(MLP)


@pytest.mark.parametrize(
    ("symmetries", "message"),
    [
        ({}, "at least one group"),
        ({"a": [("Dense_9/bias", 0)]}, "must name leaves of the model"),
        ({"a": [("Dense_0/bias", 1)]}, "must name axes"),
        ({"a": [("Dense_0/bias", 0, 2)]}, "must divide axis 0"),
        (
            {"a": [("Dense_0/bias", 0), ("Dense_1/bias", 0)]},
            "no permutation of each other",
        ),
    ],
)
def test_bad_symmetries_are_refused(symmetries, message):
    with pytest.raises(ValueError, match=message):
        matching.widths_of(symmetries, PARAMS)


def test_symmetries_that_change_the_function_are_refused():
    half = {"hidden": [("Dense_0/kernel", 1), ("Dense_0/bias", 0)]}
    with pytest.raises(ValueError, match="no permutation of each other"):
        matching.verify(MLP, PARAMS, IMAGES, half, KEY)
    twisted = {"hidden": [("Dense_0/bias", 0), ("Dense_1/kernel", 0), ("Dense_0/kernel", 1)]}
    matching.verify(MLP, PARAMS, IMAGES, twisted, KEY)
    square = dx.models.MLP((5, 5), classes=3)
    mixed = {"hidden": [("Dense_0/bias", 0), ("Dense_1/bias", 0)]}
    with pytest.raises(ValueError, match="must name places that carry the same units"):
        matching.activations(square, mixed)(weights(square), IMAGES)
