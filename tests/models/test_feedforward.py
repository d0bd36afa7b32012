"""Linear model, perceptron, small convolutional network and ResNet-18."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from dflax.models import CNN, MLP, BasicBlock, Linear, ResNet18
from dflax.models import resnet as resnet_file

KEY = jax.random.key(0)


def shapes(module, *shape):
    return jax.eval_shape(module.init, KEY, jax.ShapeDtypeStruct((1, *shape), jnp.float32))


def count(tree):
    return sum(leaf.size for leaf in jax.tree.leaves(tree))


def test_published_parameter_counts():
    assert count(shapes(Linear(10), 28, 28)) == 7_850
    assert count(shapes(MLP((200, 200), 10), 28, 28, 1)) == 199_210
    assert count(shapes(CNN(10), 28, 28, 1)) == 421_642
    variables = shapes(ResNet18(10, norm="batch"), 32, 32, 3)
    assert count(variables["params"]) == 11_173_962
    assert count(variables["batch_stats"]) == 9_600
    assert count(shapes(ResNet18(10), 32, 32, 3)) == 11_173_962
    # torchvision's resnet18
    imagenet = shapes(ResNet18(1000, norm="batch", small_images=False), 64, 64, 3)
    assert count(imagenet["params"]) == 11_689_512


def test_linear_and_mlp_are_their_formulas():
    x = jax.random.normal(KEY, (5, 2, 3))
    params = Linear(4).init(KEY, x)["params"]["Dense_0"]
    flat = np.asarray(x).reshape(5, 6)
    expected = flat @ params["kernel"] + params["bias"]
    np.testing.assert_allclose(Linear(4).apply(Linear(4).init(KEY, x), x), expected, atol=1e-6)

    module = MLP((7,), 4)
    variables = module.init(KEY, x)
    first, last = variables["params"]["Dense_0"], variables["params"]["Dense_1"]
    hidden = np.maximum(flat @ first["kernel"] + first["bias"], 0)
    np.testing.assert_allclose(
        module.apply(variables, x), hidden @ last["kernel"] + last["bias"], atol=1e-5
    )


@pytest.mark.slow
def test_cnn_is_the_flax_network():
    class Flax(nn.Module):
        @nn.compact
        def __call__(self, x):
            for width in (3, 5):
                x = nn.relu(nn.Conv(width, (3, 3), name=f"Conv_{int(width == 5)}")(x))
                x = nn.max_pool(x, (2, 2), (2, 2))
            x = nn.relu(nn.Dense(8, name="Dense_0")(x.reshape(x.shape[0], -1)))
            return nn.Dense(4, name="Dense_1")(x)

    # An odd size: pooling drops the last row and column.
    x = jax.random.normal(KEY, (2, 11, 9, 2))
    ours = CNN(4, channels=(3, 5), hidden=8)
    variables = jax.jit(Flax().init)(KEY, x)
    jax.tree.map(np.testing.assert_array_equal, jax.jit(ours.init)(KEY, x), variables)

    def gradient(module):
        return jax.grad(lambda v: jnp.sum(module.apply(v, x) ** 2))(variables)

    np.testing.assert_allclose(ours.apply(variables, x), Flax().apply(variables, x), atol=1e-5)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5),
        *jax.jit(lambda: (gradient(ours), gradient(Flax())))(),
    )


@pytest.mark.parametrize(("stride", "features"), [(1, 4), (2, 8)])
def test_a_block_is_the_same_on_flaxs_layers(monkeypatch, stride, features):
    module = BasicBlock(features, stride, groups=2)
    x = jax.random.normal(KEY, (2, 6, 6, 4))
    variables = jax.jit(module.init)(KEY, x)
    ours = jax.jit(module.apply)(variables, x)
    assert ours.shape == (2, 6 // stride, 6 // stride, features)
    monkeypatch.setattr(resnet_file, "Conv", nn.Conv)
    monkeypatch.setattr(resnet_file, "GroupNorm", nn.GroupNorm)
    theirs = jax.jit(lambda v: module.apply(v, x))(variables)
    np.testing.assert_allclose(ours, theirs, atol=1e-4)


def test_batch_norm_moves_its_statistics_only_in_training():
    module = BasicBlock(4, 2, norm="batch")
    x = jax.random.normal(KEY, (3, 4, 4, 2))
    variables = jax.jit(module.init)(KEY, x)

    @functools.partial(jax.jit, static_argnums=1)
    def apply(variables, *train):
        return module.apply(variables, x, *train, mutable=["batch_stats"])

    _, moved = apply(variables, True)
    _, still = apply(variables)
    jax.tree.map(np.testing.assert_array_equal, still["batch_stats"], variables["batch_stats"])
    changes = jax.tree.map(
        lambda a, b: np.abs(a - b).max(), moved["batch_stats"], variables["batch_stats"]
    )
    assert min(jax.tree.leaves(changes)) > 0


@pytest.mark.slow
def test_resnet_sees_every_corner_of_the_image():
    module = ResNet18(3, width=2, groups=1, small_images=False)
    variables = jax.tree.map(
        lambda leaf: 0.3 * jax.random.normal(KEY, leaf.shape), shapes(module, 40, 40, 3)
    )
    images = jnp.tile(jax.random.normal(KEY, (1, 40, 40, 3)), (5, 1, 1, 1))
    for index, (row, column) in enumerate([(0, 0), (0, 39), (39, 0), (39, 39)]):
        images = images.at[index, row, column].add(1.0)
    logits = jax.jit(module.apply)(variables, images)
    assert logits.shape == (5, 3)
    assert np.abs(logits[:4] - logits[4]).max(1).min() > 1e-6


@pytest.mark.parametrize("module", [Linear(3, jnp.bfloat16), MLP((4,), 3, jnp.bfloat16)])
def test_dtype_is_that_of_the_computation(module):
    x = jnp.ones((2, 4))
    variables = module.init(KEY, x)
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype("float32")}
    assert module.apply(variables, x).dtype == jnp.bfloat16


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: Linear(0), ValueError, "classes must be an integer >= 1, got 0"),
        (lambda: MLP(200, 10), TypeError, r"features must be a list of integers.* Write \(200,\)"),
        (lambda: MLP((0,), 10), ValueError, r"features\[0\] must be an integer >= 1, got 0"),
        (lambda: CNN(10, channels=(32, -1)), ValueError, r"channels\[1\] must be an integer >= 1"),
        (lambda: CNN(10, hidden=1.5), TypeError, "hidden must be an integer"),
        (lambda: ResNet18(10, norm="layer"), ValueError, "norm must be one of 'group', 'batch'"),
        (lambda: ResNet18(10, width=16), ValueError, "groups must divide width = 16, got 32"),
        (lambda: shapes(CNN(10), 28, 28), ValueError, r"inputs must be images \[B, H, W, C\]"),
        (lambda: shapes(CNN(10), 3, 28, 1), ValueError, "at least 4 pixels a side"),
    ],
)
def test_bad_arguments_are_refused(make, error, message):
    with pytest.raises(error, match=message):
        make()
