"""Our convolution against flax's: parameters, values, gradients, tangents, under vmap and in scans."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from dflax.models import Conv, convolve

KEY = jax.random.key(0)

# kernel_size, strides, padding, dilation, groups, features; inputs have 4 channels.
GEOMETRIES = [
    ((3, 3), 1, "SAME", 1, 1, 3),
    ((3, 3), 1, "SAME", 1, 1, 6),
    ((2, 3), 1, "VALID", 1, 1, 4),
    ((3, 2), 1, ((0, 2), (3, 1)), (2, 1), 1, 4),
    ((1, 2), (1, 1), 2, 1, 1, 2),
    ((3, 3), (2, 1), "SAME", 1, 1, 4),
    ((3, 3), 2, 1, 2, 1, 4),
    ((3, 3), 1, "SAME", 1, 2, 4),
    ((3, 3), 2, "VALID", 1, 4, 8),
    ((1, 1), 1, "SAME", 1, 1, 5),
    ((1, 1), 2, "SAME", 1, 1, 5),
    ((1, 1), 1, "SAME", 1, 2, 4),
    ((3,), 1, "SAME", 1, 1, 4),
    (5, 2, ((3, 1),), 1, 2, 4),
    ((4,), 1, "VALID", 2, 1, 3),
]


def pair(size, strides, padding, dilation, groups, features):
    ours = Conv(features, size, strides, padding, dilation, groups)
    theirs = nn.Conv(
        features,
        size,
        strides,
        padding,
        kernel_dilation=dilation,
        feature_group_count=groups,
    )
    space = (7,) if isinstance(size, int) or len(size) == 1 else (7, 6)
    x = jax.random.normal(jax.random.key(1), (2, *space, 4))
    return ours, theirs, x


def assert_close(first, second):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=2e-5), first, second)


@pytest.mark.slow
@pytest.mark.parametrize("geometry", GEOMETRIES, ids=str)
def test_drop_in_for_flax(geometry):
    ours, theirs, x = pair(*geometry)
    params = jax.jit(theirs.init)(KEY, x)
    jax.tree.map(np.testing.assert_array_equal, jax.jit(ours.init)(KEY, x), params)
    params = jax.tree.map(lambda leaf: leaf + 0.1, params)
    directions = jax.tree.map(jnp.cos, (params, x))

    def facts(module):
        def value(params, x):
            return jnp.sum(jnp.sin(module.apply(params, x)))

        outputs, tangent = jax.jvp(module.apply, (params, x), directions)
        gradient = jax.grad(value, (0, 1))
        curvature = jax.jvp(gradient, (params, x), directions)[1]
        return outputs, tangent, gradient(params, x), curvature

    # One program a module: geometries differ in shape, so there is nothing to share between them.
    first, second = jax.jit(lambda: (facts(ours), facts(theirs)))()
    assert_close(first, second)


@pytest.mark.some(1)
@pytest.mark.parametrize("features", [3, 6])
def test_clients_with_their_own_kernels_in_a_scan(features):
    ours, theirs, x = pair((3, 3), 1, "SAME", 1, 1, features)
    keys = jax.random.split(KEY, 3)
    params = jax.vmap(lambda key: theirs.init(key, x))(keys)
    inputs = jax.random.normal(KEY, (3, *x.shape))

    def trained(module, clients):
        def step(params, _):
            def value(params, x):
                return jnp.mean(jnp.square(module.apply(params, x)))

            gradient = clients(lambda args: jax.grad(value)(*args))((params, inputs))
            return jax.tree.map(lambda p, g: p - 0.1 * g, params, gradient), None

        return jax.lax.scan(step, params, None, length=2)[0]

    def one_by_one(function):
        return lambda args: jax.lax.map(function, args)

    expected = jax.jit(lambda: trained(theirs, jax.vmap))()
    assert_close(jax.jit(lambda: trained(ours, jax.vmap))(), expected)
    assert_close(jax.jit(lambda: trained(ours, one_by_one))(), expected)


def test_gradient_of_a_mapped_gradient():
    ours, theirs, x = pair((3, 3), 1, "SAME", 1, 1, 3)
    params = jax.jit(theirs.init)(KEY, x)

    def sharpness(module):
        def per_example(params, x):
            return jnp.sum(jnp.sin(module.apply(params, x[None])))

        def norm(params):
            gradients = jax.vmap(jax.grad(per_example), (None, 0))(params, x)
            return sum(jnp.sum(g**2) for g in jax.tree.leaves(gradients))

        return jax.jit(jax.grad(norm))(params)

    assert_close(sharpness(ours), sharpness(theirs))


@pytest.mark.slow
def test_batch_axes_and_dtypes_are_as_in_flax():
    x = jax.random.normal(KEY, (2, 3, 6, 6, 4))
    for dtype in (None, jnp.bfloat16):
        ours, theirs = Conv(3, (3, 3), dtype=dtype), nn.Conv(3, (3, 3), dtype=dtype)
        params = jax.jit(theirs.init)(KEY, x)
        first, second = jax.jit(lambda p, o=ours, t=theirs: (o.apply(p, x), t.apply(p, x)))(params)
        assert first.dtype == second.dtype
        tolerance = 1e-5 if dtype is None else 0.05
        np.testing.assert_allclose(
            first.astype(jnp.float32), second.astype(jnp.float32), atol=tolerance
        )
        single = jax.jit(ours.apply)(params, x[0, 0])
        np.testing.assert_allclose(
            single.astype(jnp.float32), first[0, 0].astype(jnp.float32), atol=tolerance
        )
    assert "bias" not in Conv(3, (3, 3), use_bias=False).init(KEY, x)["params"]


@pytest.mark.some(2)
@pytest.mark.parametrize(
    ("space", "padding"),
    [((6, 8), "SAME"), ((7, 5), "VALID"), ((5, 6), ((0, 2), (3, 1))), ((9,), "SAME")],
    ids=str,
)
def test_every_method_computes_the_same(space, padding):
    x = jax.random.normal(KEY, (3, *space, 4))
    kernel = jax.random.normal(jax.random.key(1), (3,) * len(space) + (4, 5))

    def facts(method):
        def value(x, kernel):
            return jnp.sum(jnp.sin(convolve(x, kernel, padding=padding, method=method)))

        return jax.value_and_grad(value, (0, 1))(x, kernel)

    native, patches, winograd = jax.jit(
        lambda: [facts(method) for method in ("native", "patches", "winograd")]
    )()
    assert_close(patches, native)
    assert_close(winograd, native)


def products(x, kernel, **options):
    """Matrix products of the program for CPU: 1 of patches, 16 of Winograd's method."""
    run = jax.jit(lambda x, kernel: convolve(x, kernel, **options))
    text = jax.export.export(run, platforms=["cpu"])(x, kernel).mlir_module()
    return text.count("stablehlo.dot_general")


def test_winograds_method_where_it_pays():
    images, kernel = jnp.ones((8, 8, 8, 32)), jnp.ones((3, 3, 32, 32))
    assert products(images, kernel) == 16
    assert products(images, kernel, strides=2) == 1
    assert products(images, kernel, dilation=2) == 1
    assert products(images[:2], kernel) == 1  # too few tiles
    assert products(images[:, :5, :5].repeat(2, 0), kernel) == 1  # tiles stand over the edge
    assert products(images[..., :16], kernel[:, :, :16]) == 1  # too few channels
    assert products(images.astype(jnp.bfloat16), kernel.astype(jnp.bfloat16)) == 1


@pytest.mark.parametrize(("platform", "convolutions"), [("cpu", 0), ("cuda", 3), ("tpu", 3)])
def test_the_platform_of_the_program_decides(platform, convolutions):
    ours, _, x = pair((3, 3), 1, "SAME", 1, 1, 4)
    params = ours.init(KEY, x)
    gradient = jax.jit(jax.grad(lambda p, x: jnp.sum(ours.apply(p, x) ** 2), (0, 1)))
    text = jax.export.export(gradient, platforms=[platform])(params, x).mlir_module()
    assert text.count("stablehlo.convolution") == convolutions
    assert ("dot_general" in text) == (platform == "cpu")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"strides": 0}, "strides must be an integer >= 1, got 0"),
        ({"strides": (1, 1, 1)}, "strides must have 2 entries"),
        ({"dilation": -1}, "dilation must be an integer >= 1, got -1"),
        ({"groups": 0}, "groups must be an integer >= 1, got 0"),
        ({"groups": 3}, "kernel must have 4 / groups input channels"),
        ({"padding": "FULL"}, "padding must be 'SAME', 'VALID'"),
        ({"padding": ((1, 1),)}, "padding must have one int or pair"),
        ({"padding": -1}, "padding must be an integer >= 0, got -1"),
        ({"method": "fft"}, "method must be one of .* got 'fft'"),
        ({"method": "winograd", "strides": 2}, "method 'winograd' needs a kernel of 3"),
    ],
)
def test_bad_geometry_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        convolve(jnp.ones((1, 5, 5, 4)), jnp.ones((3, 3, 4, 2)), **options)


def test_bad_shapes_are_refused():
    with pytest.raises(ValueError, match="kernel must have shape"):
        convolve(jnp.ones((1, 5, 5, 5, 4)), jnp.ones((3, 3, 3, 4, 2)))
    with pytest.raises(ValueError, match="at least as large as the kernel"):
        convolve(jnp.ones((1, 2, 2, 4)), jnp.ones((3, 3, 4, 2)), padding="VALID")
    with pytest.raises(TypeError, match="strides must be an integer"):
        convolve(jnp.ones((1, 5, 5, 4)), jnp.ones((3, 3, 4, 2)), strides=(1.0, 1))
    with pytest.raises(ValueError, match="features must be an integer >= 1, got 0"):
        Conv(0, (3, 3)).init(KEY, jnp.ones((1, 5, 5, 4)))
    with pytest.raises(ValueError, match="kernel_size must have one or two entries"):
        Conv(2, (3, 3, 3)).init(KEY, jnp.ones((1, 5, 5, 5, 4)))
    with pytest.raises(ValueError, match="feature_group_count must divide the 4 input channels"):
        Conv(3, (3, 3), feature_group_count=3).init(KEY, jnp.ones((1, 5, 5, 4)))
