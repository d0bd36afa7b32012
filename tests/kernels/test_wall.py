"""What `dflax.kernels.wall` does to a program, and that it does nothing to values."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import dflax as dx
from dflax.kernels.wall import wall


def test_values_and_derivatives_pass():
    x, v = jnp.array([1.0, -2.0, 3.0]), jnp.array([0.5, 0.25, -1.0])

    def cube(x):
        return wall(x**3)

    primal, tangent = jax.jvp(cube, (x,), (v,))
    np.testing.assert_array_equal(primal, x**3)
    np.testing.assert_allclose(tangent, 3 * x**2 * v, rtol=1e-6)
    np.testing.assert_allclose(jax.grad(lambda x: cube(x) @ v)(x), 3 * x**2 * v, rtol=1e-6)
    both = jax.jit(jax.vmap(jax.grad(lambda x: cube(x).sum())))(jnp.stack([x, v]))
    np.testing.assert_allclose(both, 3 * jnp.stack([x, v]) ** 2, rtol=1e-6)
    assert jax.hessian(lambda x: cube(x).sum())(x).shape == (3, 3)


@pytest.mark.parametrize("platform", ["cpu", "cuda", "tpu"])
def test_only_a_cpu_calls(platform):
    traced = jax.jit(jax.grad(lambda x: wall(jnp.sin(x)).sum())).trace(jnp.ones(3))
    text = traced.lower(lowering_platforms=(platform,)).as_text()
    assert ("inlineable" in text) == (platform == "cpu")


def test_the_sums_behind_a_pooling_are_computed_once():
    """Or else each of the four places of a window would add up the sixteen products anew."""

    def loss(x, first, second):
        pooled = dx.models.max_pool(dx.models.convolve(x, first, method="winograd"), (2, 2), (2, 2))
        return dx.models.convolve(pooled, second, method="winograd").sum()

    x = jax.ShapeDtypeStruct((2, 12, 12, 32), jnp.float32)
    kernels = [jax.ShapeDtypeStruct((3, 3, 32, 32), jnp.float32)] * 2
    compiled = jax.jit(jax.grad(loss)).lower(x, *kernels).compile()
    program = compiled.as_text()
    # The gradient in what was pooled, of its own size, is stored before it goes to the windows.
    assert "inlineable" in program
    behind = [line for line in program.splitlines() if " call(" in line and "transpose(jvp" in line]
    assert any("f32[2,8,8,32]" in line for line in behind)


def test_examples_over_devices():
    mesh = jax.make_mesh((8,), ("examples",), axis_types=(AxisType.Auto,))
    x = jax.random.normal(jax.random.key(0), (16, 6, 6, 2))

    def gradient(x):
        return jax.grad(lambda x: (dx.models.max_pool(jnp.sin(x), (2, 2), (2, 2)) ** 2).sum())(x)

    dealt = jax.device_put(x, NamedSharding(mesh, PartitionSpec("examples")))
    there = jax.jit(gradient)(dealt)
    np.testing.assert_allclose(there, jax.jit(gradient)(x), rtol=1e-6)
