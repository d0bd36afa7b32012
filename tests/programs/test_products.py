import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import dflax as dx
from dflax.programs import walk
from dflax.programs.products import contract_last

KEY = jax.random.key(0)


def slow_products(program):
    """Batched products in a program and all its parts whose left factor is not contracted last."""

    def visit(operation, inside):
        slow = False
        if operation.primitive.name == "dot_general":
            (contracted, _), (batch, _) = operation.params["dimension_numbers"]
            slow = bool(batch) and contracted != (walk.operands(operation)[0].ndim - 1,)
        return slow + sum(inside)

    return walk.fold(program, visit, sum)


def loss(params, inputs, labels):
    hidden = jax.nn.relu(inputs @ params["a"])
    return optax.softmax_cross_entropy_with_integer_labels(hidden @ params["b"], labels).mean()


def descend(params, inputs, labels):
    """Three steps in a scan, and one more in a branch and a call."""

    def step(params, _):
        value, slope = jax.value_and_grad(loss)(params, inputs, labels)
        return jax.tree.map(lambda p, g: p - 0.1 * g, params, slope), value

    params, values = jax.lax.scan(step, params, length=3)
    more = jax.jit(lambda params: step(params, None)[0])
    return jax.lax.cond(values[0] > 0, more, lambda params: params, params), values


@pytest.fixture(scope="module")
def clients():
    keys = jax.random.split(KEY, 4)
    params = {
        "a": jax.random.normal(keys[0], (6, 8, 5)),
        "b": jax.random.normal(keys[1], (6, 5, 3)),
    }
    labels = jax.random.randint(keys[3], (6, 4), 0, 3)
    return params, jax.random.normal(keys[2], (6, 4, 8)), labels


def test_every_product_of_a_gradient_is_found_in_loops_branches_and_calls(clients):
    plain = jax.vmap(descend)
    assert slow_products(jax.make_jaxpr(plain)(*clients)) >= 4
    assert slow_products(jax.make_jaxpr(contract_last(plain))(*clients)) == 0


@pytest.mark.slow
def test_values_gradients_and_sweeps_are_the_same(clients):
    plain, changed = jax.vmap(descend), contract_last(jax.vmap(descend))

    def close(one, other):
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-6), one, other)

    close(jax.jit(changed)(*clients), jax.jit(plain)(*clients))

    def total(function, params):
        return function(params, *clients[1:])[1].sum()

    slopes = [jax.grad(total, argnums=1)(function, clients[0]) for function in (changed, plain)]
    close(*slopes)
    two = jax.tree.map(lambda leaf: jnp.stack([leaf, 2 * leaf]), clients[0])
    swept = [jax.vmap(f, (0, None, None))(two, *clients[1:]) for f in (changed, plain)]
    close(*swept)


@pytest.mark.parametrize(
    ("shapes", "numbers"),
    [
        (((6, 4, 2), (6, 4, 7)), (((1,), (1,)), ((0,), (0,)))),
        (((6, 4, 2), (6, 7, 4)), (((1,), (2,)), ((0,), (0,)))),
        (((2, 6, 4, 3, 2), (2, 6, 4, 7)), (((2,), (2,)), ((0, 1), (0, 1)))),
    ],
)
def test_products_of_any_rank_keep_the_order_of_their_axes(shapes, numbers):
    left, right = (jax.random.normal(KEY, shape) for shape in shapes)

    def product(left, right):
        return jax.lax.dot_general(left, right, numbers)

    out = contract_last(product)(left, right)
    np.testing.assert_allclose(out, product(left, right), atol=1e-5)
    assert slow_products(jax.make_jaxpr(contract_last(product))(left, right)) == 0


def test_a_function_without_such_products_is_called_as_it_is():
    plain = jax.make_jaxpr(jnp.matmul)(jnp.ones((2, 3)), jnp.ones((3, 4)))
    kept = jax.make_jaxpr(contract_last(jnp.matmul))(jnp.ones((2, 3)), jnp.ones((3, 4)))
    assert str(plain) == str(kept)


def test_clients_are_computed_with_them():
    def gradient(inputs, weights):
        return jax.grad(lambda w: jnp.sum((inputs @ w) ** 2))(weights)

    stacked, weights = jnp.ones((6, 4, 8)), jnp.ones((8, 3))
    program = jax.make_jaxpr(lambda x: dx.map_clients(gradient, x, shared=(weights,)))(stacked)
    assert slow_products(program) == 0
