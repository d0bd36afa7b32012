"""Rewritten functions against the originals: values, derivatives, signatures, what is left alone."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax import nnx
from jax import lax

import dflax as dx
from dflax.models import ResNet18, rewrite_convolutions
from dflax.models import resnet as resnet_file

KEY = jax.random.key(0)


def assert_close(first, second, rtol=1e-4, atol=2e-5):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=rtol, atol=atol), first, second)


def convolutions(function, *args, platform="cpu"):
    text = jax.export.export(jax.jit(function), platforms=[platform])(*args).mlir_module()
    return text.count("stablehlo.convolution")


# shape of x, shape of kernel, options of conv_general_dilated
COVERED = {
    "NHWC": ((2, 6, 7, 4), (3, 3, 4, 5), {"dimension_numbers": ("NHWC", "HWIO", "NHWC")}),
    "NCHW": ((2, 4, 6, 7), (5, 4, 3, 2), {"dimension_numbers": ("NCHW", "OIHW", "NCHW")}),
    "mixed": ((6, 2, 4, 7), (3, 5, 4, 2), {"dimension_numbers": ("HNCW", "HOIW", "WCHN")}),
    "1-d": ((2, 9, 4), (3, 4, 5), {"dimension_numbers": ("NHC", "HIO", "NHC")}),
    "grouped": (
        (2, 4, 6, 7),
        (6, 2, 3, 3),
        {"feature_group_count": 2, "rhs_dilation": (1, 2), "padding": ((0, 1), (2, 1))},
    ),
    "strided": ((2, 4, 6, 7), (5, 4, 3, 3), {"window_strides": (2, 1)}),
    "pointwise": ((2, 4, 6, 7), (5, 4, 1, 1), {}),
}
LEFT = {
    "transposed": ((2, 4, 6, 7), (5, 4, 3, 3), {"lhs_dilation": (2, 1)}),
    "batch groups": ((4, 4, 6, 7), (6, 4, 3, 3), {"batch_group_count": 2}),
    "3-d": ((2, 4, 5, 5, 5), (5, 4, 3, 3, 3), {"window_strides": (1, 1, 1)}),
    "cropped": ((2, 4, 6, 7), (5, 4, 3, 3), {"padding": ((-1, 0), (0, 0))}),
    "integers": ((2, 4, 6, 7), (5, 4, 3, 3), {}),
    "wider sum": ((2, 4, 6, 7), (5, 4, 3, 3), {"preferred_element_type": jnp.float32}),
}
DTYPES = {"integers": jnp.int32, "wider sum": jnp.bfloat16}


def operation(name):
    inputs, kernel, options = (COVERED | LEFT)[name]
    dtype = DTYPES.get(name, jnp.float32)
    x = (4 * jax.random.normal(KEY, inputs)).astype(dtype)
    k = (4 * jax.random.normal(jax.random.key(1), kernel)).astype(dtype)
    settings = {"window_strides": (1,) * (len(inputs) - 2), "padding": "SAME"} | options
    if "lhs_dilation" in options:
        settings["padding"] = ((1, 1), (1, 1))
    return (lambda x, k: lax.conv_general_dilated(x, k, **settings)), x, k


@pytest.mark.some(2)
@pytest.mark.parametrize("name", COVERED)
def test_any_layout_gives_the_same_values_and_derivatives(name):
    convolve, x, k = operation(name)
    directions = (jnp.cos(x), jnp.sin(k))

    def facts(convolve):
        gradient = jax.grad(lambda x, k: jnp.sum(jnp.sin(convolve(x, k) / 20)), (0, 1))
        return (
            *jax.jvp(convolve, (x, k), directions),
            *jax.jvp(gradient, (x, k), directions),
        )

    fast = rewrite_convolutions(convolve)
    assert_close(*jax.jit(lambda: (facts(fast), facts(convolve)))(), 1e-4, 2e-4)
    assert convolutions(fast, x, k) == 0
    assert convolutions(fast, x, k, platform="cuda") == 1


@pytest.mark.some(1)
@pytest.mark.parametrize("name", LEFT)
def test_what_is_not_covered_is_left_alone(name):
    convolve, x, k = operation(name)
    fast = rewrite_convolutions(convolve)
    assert str(jax.make_jaxpr(fast)(x, k)) == str(jax.make_jaxpr(convolve)(x, k))


POOLINGS = [
    lambda x: nn.max_pool(x, (2, 2), (2, 2)),
    lambda x: nn.max_pool(x, (3, 3), (2, 2), "SAME"),
    lambda x: nn.avg_pool(x, (2, 3), (2, 3)),
    lambda x: nn.avg_pool(x, (2, 2), (1, 1), "SAME", count_include_pad=False),
]


@pytest.mark.some(2)
@pytest.mark.parametrize("pool", POOLINGS, ids=["max tiles", "max", "mean tiles", "mean"])
def test_poolings(pool):
    x = jax.random.randint(KEY, (3, 2, 5, 7, 3), 0, 3).astype(jnp.float32)

    def facts(pool):
        weights = jnp.cos(jnp.arange(pool(x[0]).size)).reshape(pool(x[0]).shape)
        return jax.vmap(jax.value_and_grad(lambda x: jnp.sum(jnp.square(pool(x)) * weights)))(x)

    fast = rewrite_convolutions(pool)
    assert_close(*jax.jit(lambda: (facts(fast), facts(pool)))())
    export = jax.export.export(jax.jit(jax.grad(lambda x: jnp.sum(fast(x)))), platforms=["cpu"])
    text = export(x[0]).mlir_module()
    assert "reduce_window" not in text
    assert "select_and_scatter" not in text


def test_windows_left_alone():
    x = jnp.ones((1, 20, 20, 2))
    for pool in (
        lambda x: nn.max_pool(x, (9, 9)),
        lambda x: lax.reduce_window(
            x, 0.0, lax.add, (1, 2, 2, 1), (1, 1, 1, 1), "SAME", (1, 2, 2, 1)
        ),
        lambda x: lax.reduce_window(x.astype(int), 0, lax.add, (1, 2, 2, 1), (1, 2, 2, 1), "SAME"),
    ):
        fast = rewrite_convolutions(pool)
        assert str(jax.make_jaxpr(fast)(x)) == str(jax.make_jaxpr(pool)(x))


def same(x, k):
    return nn.relu(
        lax.conv_general_dilated(x, k, (1,), "SAME", dimension_numbers=("NHC", "HIO", "NHC"))
    )


@jax.custom_jvp
def halved(x, k):
    return same(x, k)


@halved.defjvp
def _(primals, tangents):
    value, tangent = jax.jvp(same, primals, tangents)
    return value, 0.5 * tangent


@jax.custom_vjp
def doubled(x, k):
    return same(x, k)


doubled.defvjp(
    lambda x, k: (same(x, k), (x, k)),
    lambda saved, g: (None, 2 * jax.vjp(same, *saved)[1](g)[1]),
)

CALLS = {
    "jit": lambda x, k: jax.jit(same)(x, k),
    "checkpoint": lambda x, k: jax.checkpoint(same)(x, k),
    "scan": lambda x, k: lax.scan(lambda c, t: (same(c, t * k), c[0]), x, jnp.arange(3.0))[0],
    "map": lambda x, k: lax.map(lambda row: same(row[None], k)[0], x),
    "loop": lambda x, k: lax.fori_loop(0, 2, lambda i, c: same(c, k), x),
    "cond": lambda x, k: lax.cond(x[0, 0, 0] > 9, same, lambda x, k: 2 * same(x, k), x, k),
    "custom jvp": halved,
    "custom vjp": doubled,
    "vmap": lambda x, k: jax.vmap(lambda x: same(x[None], k)[0])(x),
    "closure": lambda x, k: jax.jit(lambda k: same(x, k))(k),
}


@pytest.mark.some(2)
@pytest.mark.parametrize("name", CALLS)
def test_inside_of_calls(name):
    call = CALLS[name]
    x, k = jax.random.normal(KEY, (2, 6, 3)), jax.random.normal(jax.random.key(1), (3, 3, 3))
    fast = rewrite_convolutions(call)

    def gradient(call):
        return jax.grad(lambda k, x: jnp.sum(jnp.square(call(x, k))))

    clients = jnp.stack([k, 2 * k])
    assert_close(
        *jax.jit(
            lambda: tuple(
                (f(x, k), gradient(f)(k, x), jax.vmap(gradient(f), (0, None))(clients, x))
                for f in (fast, call)
            )
        )(),
        atol=1e-4,
    )
    assert convolutions(gradient(fast), k, x) == 0


def test_a_loop_of_unknown_length():
    def call(x, k):
        return lax.while_loop(lambda c: jnp.sum(same(c, k)) < 50, lambda c: c + same(c, k), x)

    x, k = jnp.ones((1, 6, 3)), 0.1 * jnp.ones((3, 3, 3))
    fast = rewrite_convolutions(call)
    assert_close(fast(x, k), call(x, k))
    assert convolutions(fast, x, k) == 0


class Net(nn.Module):
    @nn.compact
    def __call__(self, x, train=False):
        x = nn.max_pool(nn.relu(nn.Conv(4, (3, 3))(x)), (2, 2), (2, 2))
        x = nn.Dropout(0.5, deterministic=not train)(x)
        return nn.Dense(3)(x.reshape(x.shape[0], -1))


def linen_model(key):
    params = Net().init(key, jnp.ones((1, 6, 6, 1)))["params"]
    return params, Net()


def nnx_model(key):
    class Small(nnx.Module):
        def __init__(self, rngs):
            self.conv = nnx.Conv(1, 4, (3, 3), rngs=rngs)
            self.out = nnx.Linear(36, 3, rngs=rngs)

        def __call__(self, x):
            x = nnx.max_pool(nnx.relu(self.conv(x)), (2, 2), (2, 2))
            return self.out(x.reshape(x.shape[0], -1))

    graph, state = nnx.split(Small(nnx.Rngs(0)))
    return state, lambda p, x: nnx.merge(graph, p)(x)


def equinox_model(key):
    layers = [
        eqx.nn.Conv2d(1, 4, 3, padding=1, key=key),
        eqx.nn.Lambda(jax.nn.relu),
        eqx.nn.MaxPool2d(2, 2),
        eqx.nn.Lambda(jnp.ravel),
        eqx.nn.Linear(36, 3, key=key),
    ]
    params, static = eqx.partition(eqx.nn.Sequential(layers), eqx.is_inexact_array)
    return params, lambda p, x: jax.vmap(eqx.combine(p, static))(jnp.moveaxis(x, -1, 1))


@pytest.mark.some(1)
@pytest.mark.parametrize("model", [linen_model, nnx_model, equinox_model])
def test_losses_of_every_library_keep_their_signature(model):
    params, apply = model(KEY)
    batch = dx.data.Batch(jax.random.normal(KEY, (5, 6, 6, 1)), jnp.arange(5) % 3)
    loss = dx.losses.classification(apply)
    fast = rewrite_convolutions(loss)

    def gradient(loss, key):
        return jax.value_and_grad(loss, has_aux=True)(params, batch, key)

    assert_close(
        *jax.jit(lambda: tuple((gradient(f, None), gradient(f, KEY)) for f in (fast, loss)))()
    )
    exported = jax.jit(
        lambda params, inputs, labels: jax.grad(fast, has_aux=True)(
            params, dx.data.Batch(inputs, labels), None
        )
    )
    assert convolutions(exported, params, batch.inputs, batch.labels) == 0


@pytest.mark.slow
def test_flags_and_other_results_pass_as_they_are():
    variables = Net().init(KEY, jnp.ones((1, 6, 6, 1)))
    x = jax.random.normal(KEY, (2, 6, 6, 1))
    fast = rewrite_convolutions(Net().apply)
    assert_close(fast(variables, x), Net().apply(variables, x))
    key = jax.random.key(7)
    first = fast(variables, x, train=True, rngs={"dropout": key})
    assert_close(first, Net().apply(variables, x, train=True, rngs={"dropout": key}))

    def labelled(x, name):
        return {"y": x + 1, "name": name, "none": None, "number": 3}

    assert rewrite_convolutions(labelled)(jnp.ones(()), "a") == {
        "y": 2.0,
        "name": "a",
        "none": None,
        "number": 3,
    }


@pytest.mark.slow
def test_our_own_layers_are_left_as_they_are():
    model = dx.models.CNN(3, (2,), 4)
    params = model.init(KEY, jnp.ones((1, 4, 4, 1)))
    x = jnp.ones((1, 4, 4, 1))
    assert convolutions(model.apply, params, x, platform="cuda") == 1
    assert convolutions(rewrite_convolutions(model.apply), params, x, platform="cuda") == 1


@pytest.mark.slow
def test_resnet_18_of_flaxs_layers(monkeypatch):
    monkeypatch.setattr(resnet_file, "Conv", nn.Conv)
    module = ResNet18(3, width=32, groups=8)
    x = jax.random.normal(KEY, (1, 32, 32, 3))
    shapes = jax.eval_shape(module.init, KEY, x)
    leaves, tree = jax.tree.flatten(shapes)
    keys = jax.random.split(KEY, len(leaves))
    params = tree.unflatten(
        [
            jnp.ones(leaf.shape)
            if leaf.ndim == 1
            else jax.random.normal(key, leaf.shape) * np.sqrt(2 / np.prod(leaf.shape[:-1]))
            for key, leaf in zip(keys, leaves, strict=True)
        ]
    )

    def value(apply):
        def loss(params, x):
            scores = apply(params, x)
            return jnp.mean(nn.logsumexp(scores, axis=-1) - scores[:, 0])

        # Compiled fast rather than to run fast: it runs once.
        quickly = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}
        return jax.jit(jax.value_and_grad(loss), compiler_options=quickly)(params, x)

    (fast, fast_gradient), (plain, gradient) = (
        value(rewrite_convolutions(module.apply)),
        value(module.apply),
    )
    np.testing.assert_allclose(fast, plain, rtol=1e-5)

    def relative(a, b):
        return jnp.linalg.norm(a - b) / jnp.linalg.norm(b)

    assert max(jax.tree.leaves(jax.tree.map(relative, fast_gradient, gradient))) < 2e-5


@pytest.mark.slow
def test_what_is_no_function_is_refused():
    with pytest.raises(TypeError, match="function must be"):
        rewrite_convolutions(3)
