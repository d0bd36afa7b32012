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
    value, gradient = jax.jit(jax.value_and_grad(lambda p: loss(p, batch, None)[0]))(params)
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
    params, static = eqx.partition(model, eqx.is_inexact_array)
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
        (lambda: 3, r"got one with the arguments \(\)"),
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


class Told(nn.Module):
    """Its switch has a name that only its author knows."""

    normalise: bool = True
    drop: float = 0.5

    @nn.compact
    def __call__(self, x, is_training=False):
        if self.normalise:
            x = nn.BatchNorm(use_running_average=not is_training, momentum=0.9)(x)
        return nn.Dense(2)(nn.Dropout(self.drop, deterministic=not is_training)(x))


class Required(nn.Module):
    @nn.compact
    def __call__(self, x, is_training):
        return nn.Dense(2)(nn.Dropout(0.5, deterministic=not is_training)(x))


class Always(nn.Module):
    @nn.compact
    def __call__(self, x, is_training=True):
        return nn.Dense(2)(nn.Dropout(0.5, deterministic=not is_training)(x))


class Reversed(nn.Module):
    @nn.compact
    def __call__(self, x, train=False):
        return nn.Dense(2)(nn.Dropout(0.5)(x, deterministic=train))


class OwnStatistics(nn.Module):
    """A layer that flax does not know."""

    @nn.compact
    def __call__(self, x, is_training=False):
        mean = self.variable("batch_stats", "mean", jnp.zeros, 3)
        if is_training:
            mean.value = x.mean(0)
        return nn.Dense(2)(x - mean.value)


class Frozen(nn.Module):
    """Normalises by the statistics it came with, and trains the rest."""

    @nn.compact
    def __call__(self, x):
        return nn.Dense(2)(nn.BatchNorm(use_running_average=True)(x))


class Attention(nn.Module):
    @nn.compact
    def __call__(self, x, is_training=False):
        x = nn.MultiHeadDotProductAttention(1, dropout_rate=0.5)(x, deterministic=not is_training)
        return nn.Dense(2)(x)


@pytest.mark.some(2)
@pytest.mark.parametrize(
    ("module", "key", "message"),
    [
        (Told(), 0, "no Dropout and no BatchNorm was in training.*training='NAME'"),
        (Told(normalise=False), 0, r"no argument; its call takes \(x, is_training\)"),
        (Always(), None, "an evaluation in which Dropout_0 was in training"),
        (Reversed(), 0, "with train=True; its call takes"),
        (Reversed(), None, "an evaluation in which Dropout_0 was in training"),
        (OwnStatistics(), 0, 'left all "batch_stats" as they were'),
        (Frozen(), 0, "training={} if its layers are fixed on purpose"),
        (Attention(), 0, "no Dropout and no BatchNorm was in training"),
    ],
)
def test_a_switch_that_is_not_known_is_refused(module, key, message):
    keys = {name: jax.random.key(0) for name in ("params", "dropout")}
    variables = module.init(keys, INPUTS)
    with pytest.raises(ValueError, match=message):
        as_apply(module)(variables, INPUTS, None if key is None else jax.random.key(key))


def test_arguments_that_nobody_fills_are_refused_at_the_door():
    with pytest.raises(ValueError, match=r"arguments \['is_training'\], which have no default"):
        losses.classification(Required())
    with pytest.raises(ValueError, match=r"training must name an argument of Told.*got 'train'"):
        as_apply(Told(), training="train")
    with pytest.raises(TypeError, match="training must be the name of an argument, or a dict"):
        as_apply(Told(), training=True)
    with pytest.raises(TypeError, match=r"training\['is_training'\] must be True or False, got 1"):
        as_apply(Told(), training={"is_training": 1})
    with pytest.raises(ValueError, match="training must be left out for a function"):
        as_apply(lambda params, x: x, training="train")
    with pytest.raises(ValueError, match="training must be said where the model is given"):
        as_apply(as_apply(Told()), training="is_training")


@pytest.mark.slow
def test_a_switch_that_is_told_works_and_one_that_does_nothing_is_noticed():
    key, variables = jax.random.key(2), Told().init(jax.random.key(0), INPUTS)
    expected, moved = Told().apply(
        variables, INPUTS, True, rngs={"dropout": key}, mutable=["batch_stats"]
    )
    model = as_apply(Told(), training="is_training")
    np.testing.assert_array_equal(model(variables, INPUTS, key), expected)
    np.testing.assert_array_equal(model(variables, INPUTS), Told().apply(variables, INPUTS))
    batch = Batch(INPUTS, LABELS)
    slope = jax.grad(lambda v: losses.classification(model)(v, batch, key)[0])(variables)
    for found, old, new in zip(
        *map(jax.tree.leaves, (slope["batch_stats"], variables["batch_stats"], moved)), strict=True
    ):
        np.testing.assert_allclose(found, old - new, rtol=1e-5, atol=1e-6)
    required = as_apply(Required(), training="is_training")
    params = required.variables(key, INPUTS)
    assert np.abs(required(params, INPUTS, key) - required(params, INPUTS)).max() > 0
    with pytest.raises(ValueError, match="with is_training=False"):
        as_apply(Told(), training={"is_training": False})(variables, INPUTS, key)


def test_frozen_statistics_are_a_word_and_are_never_trained_like_weights():
    variables = Frozen().init(jax.random.key(0), INPUTS)
    loss, batch = losses.classification(as_apply(Frozen(), training={})), Batch(INPUTS, LABELS)
    slope = jax.grad(lambda v: loss(v, batch, jax.random.key(1))[0])(variables)
    jax.tree.map(lambda leaf: np.testing.assert_array_equal(leaf, 0), slope["batch_stats"])
    assert np.abs(slope["params"]["Dense_0"]["kernel"]).max() > 0


def test_streams_of_other_names_are_fed():
    class Noisy(nn.Module):
        @nn.compact
        def __call__(self, x, train=False):
            return nn.Dropout(0.5, rng_collection="noise")(x, deterministic=not train)

    apply = as_apply(Noisy())
    assert (np.asarray(apply({}, INPUTS, jax.random.key(0))) == 0).any()
