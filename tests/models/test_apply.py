"""One calling convention for linen, nnx, equinox and plain functions."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax import nnx

from dflax import losses
from dflax.data.dataset import Batch
from dflax.models import Apply, as_apply

INPUTS = jnp.asarray(np.random.default_rng(0).normal(size=(6, 3)), jnp.float32)
LABELS = jnp.array([0, 1, 0, 1, 1, 0])


class Dropped(nn.Module):
    @nn.compact
    def __call__(self, x, deterministic=True):
        return nn.Dense(2)(nn.Dropout(0.5, deterministic=deterministic)(x))


def learns(model, params):
    """One gradient step lowers the loss: the parameters are really reached."""
    loss = losses.classification(model)
    batch = Batch(INPUTS, LABELS)
    value, gradient = jax.value_and_grad(lambda p: loss(p, batch, None)[0])(params)
    after = jax.tree.map(lambda p, g: p - 0.05 * g, params, gradient)
    return float(loss(after, batch, None)[0]) < float(value)


@pytest.mark.parametrize("bound", [False, True])
def test_linen_takes_bare_params_and_whole_variables(bound):
    module = nn.Dense(2)
    variables = module.init(jax.random.key(0), INPUTS)
    apply = as_apply(module.apply if bound else module)
    expected = module.apply(variables, INPUTS)
    np.testing.assert_array_equal(apply(variables["params"], INPUTS), expected)
    np.testing.assert_array_equal(apply(variables, INPUTS), expected)
    assert learns(module.apply if bound else module, variables["params"])


def test_a_key_means_training():
    module = Dropped()
    params = module.init(jax.random.key(0), INPUTS)["params"]
    apply = as_apply(module)
    key = jax.random.key(3)
    expected = module.apply({"params": params}, INPUTS, False, rngs={"dropout": key})
    np.testing.assert_array_equal(apply(params, INPUTS, key), expected)
    calm = module.apply({"params": params}, INPUTS)
    np.testing.assert_array_equal(apply(params, INPUTS), calm)
    assert np.abs(expected - calm).max() > 0


def test_nnx_after_split():
    model = nnx.Linear(3, 2, rngs=nnx.Rngs(0))
    graphdef, state = nnx.split(model)
    function = lambda p, x: nnx.merge(graphdef, p)(x)  # noqa: E731
    np.testing.assert_array_equal(as_apply(function)(state, INPUTS), model(INPUTS))
    assert learns(function, state)


def test_equinox_after_partition():
    model = eqx.nn.MLP(3, 2, 4, 1, key=jax.random.key(0))
    params, static = eqx.partition(model, eqx.is_array)
    function = lambda p, x: jax.vmap(eqx.combine(p, static))(x)  # noqa: E731
    np.testing.assert_allclose(
        as_apply(function)(params, INPUTS), jax.vmap(model)(INPUTS), rtol=1e-6
    )
    assert learns(function, params)


def test_functions_get_the_key_when_they_ask_for_it():
    seen = []

    def required(params, inputs, noise):
        seen.append(noise)
        return inputs

    def optional(params, inputs, key=None):
        seen.append(key)
        return inputs

    def keyword(params, inputs, *, key=None):
        seen.append(key)
        return inputs

    def unrelated(params, inputs, scale=2.0):
        seen.append(scale)
        return inputs

    key = jax.random.key(0)
    for function in (required, optional, keyword, unrelated):
        as_apply(function)({}, INPUTS, key)
    assert seen == [key, key, key, 2.0]


def test_an_apply_is_handed_back():
    apply = as_apply(lambda p, x: x)
    assert isinstance(apply, Apply)
    assert as_apply(apply) is apply


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (3, "model must be a function, got 3"),
        (lambda params: params, r"got one with the arguments \(params\)"),
        (lambda a, b, c, d: a, r"got one with the arguments \(a, b, c, d\)"),
    ],
)
def test_what_cannot_be_called_is_refused(model, message):
    with pytest.raises(TypeError, match=message):
        as_apply(model)


def test_missing_statistics_are_explained():
    class Normalised(nn.Module):
        @nn.compact
        def __call__(self, x, train=False):
            return nn.BatchNorm(use_running_average=not train)(x)

    module = Normalised()
    params = module.init(jax.random.key(0), INPUTS)["params"]
    for key in (None, jax.random.key(0)):
        with pytest.raises(ValueError, match="params must be the whole variables dict"):
            as_apply(module)(params, INPUTS, key)
