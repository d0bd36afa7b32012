"""Running statistics that travel among the parameters, against flax's mutable update."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn

from dflax import Federation, local, losses, models, server
from dflax.data.dataset import Batch, Dataset
from dflax.data.partition import from_indices
from dflax.models import recalibrate, with_statistics
from dflax.population import Assignment

KEY = jax.random.key(0)
GENERATOR = np.random.default_rng(0)
INPUTS = jnp.asarray(GENERATOR.normal(2.0, 3.0, size=(40, 4)), jnp.float32)
LABELS = jnp.asarray(GENERATOR.integers(0, 3, 40), jnp.int32)


class Normalised(nn.Module):
    momentum: float = 0.9

    @nn.compact
    def __call__(self, x, train=False):
        x = nn.BatchNorm(use_running_average=not train, momentum=self.momentum)(x)
        x = nn.Dropout(0.5, deterministic=not train)(nn.relu(nn.Dense(5)(x)))
        x = nn.BatchNorm(use_running_average=not train, momentum=0.5)(x)
        return nn.Dense(3)(x)


MODULE = Normalised()
VARIABLES = MODULE.init(KEY, INPUTS)


def test_steps_equal_flaxs_mutable_update():
    optimizer = optax.sgd(0.1, momentum=0.9)
    ours = with_statistics(optimizer)
    loss = losses.classification(MODULE)

    @jax.jit
    def our_step(variables, state, batch, key):
        gradient = jax.grad(lambda v: loss(v, batch, key)[0])(variables)
        updates, state = ours.update(gradient, state, variables)
        return optax.apply_updates(variables, updates), state

    @jax.jit
    def flax_step(variables, state, batch, key):
        def value(params):
            logits, moved = MODULE.apply(
                {**variables, "params": params},
                batch.inputs,
                train=True,
                mutable=["batch_stats"],
                rngs={"dropout": key},
            )
            losses = optax.softmax_cross_entropy_with_integer_labels(logits, batch.labels)
            return losses.mean(), moved

        gradient, moved = jax.grad(value, has_aux=True)(variables["params"])
        updates, state = optimizer.update(gradient, state)
        return {"params": optax.apply_updates(variables["params"], updates), **moved}, state

    first, first_state = VARIABLES, ours.init(VARIABLES)
    second, second_state = VARIABLES, optimizer.init(VARIABLES["params"])
    for t in range(4):
        rows = slice(10 * t, 10 * t + 10)
        batch, key = Batch(INPUTS[rows], LABELS[rows]), jax.random.fold_in(KEY, t)
        first, first_state = our_step(first, first_state, batch, key)
        second, second_state = flax_step(second, second_state, batch, key)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), first, dict(second)
    )
    moved = jax.tree.map(lambda a, b: np.abs(a - b).max(), first, VARIABLES)
    assert min(jax.tree.leaves(moved["batch_stats"])) > 0.01


@pytest.mark.some(1)
@pytest.mark.parametrize(
    "optimizer", [optax.sgd(0.1), optax.adamw(0.1, weight_decay=0.1), optax.sgd(0.1, momentum=0.9)]
)
def test_the_solver_keeps_statistics_from_any_optimiser(optimizer):
    """One step: statistics are flax's, whatever the rate, the scaling and the decay of the weights."""
    data = Dataset(INPUTS, LABELS)
    loss = losses.classification(MODULE)
    assignment = Assignment(jnp.arange(10)[None], jnp.int32(1), KEY)
    plain, told = (
        jax.jit(local.solver(loss, each))(local.Subproblem(), VARIABLES, assignment, data).params
        for each in (optimizer, with_statistics(optimizer))
    )
    jax.tree.map(np.testing.assert_array_equal, plain, told)
    found = plain["batch_stats"]["BatchNorm_0"]["mean"]
    np.testing.assert_allclose(found, 0.1 * INPUTS[:10].mean(0), rtol=1e-5)
    assert (
        np.abs(
            plain["params"]["Dense_0"]["kernel"] - VARIABLES["params"]["Dense_0"]["kernel"]
        ).max()
        > 0
    )


@pytest.mark.slow
def test_a_servers_optimiser_averages_statistics_and_steps_with_weights():
    data = Dataset(INPUTS, LABELS)
    federation = Federation(
        data, from_indices([np.arange(20), np.arange(20, 40)]), batch_size=20, local_steps=1
    )
    ends = []
    for make in (server.fedavg, functools.partial(server.fedadam, server_rate=0.01)):
        algorithm = make(losses.classification(MODULE), optax.sgd(0.1))
        with pytest.warns(models.AveragedStatistics):
            state = algorithm.init(KEY, VARIABLES)
        ends.append(jax.jit(algorithm.step)(state, federation.draw(KEY, 0))[0].server.params)
    found = [end["batch_stats"]["BatchNorm_0"]["mean"] for end in ends]
    np.testing.assert_allclose(found[0], 0.1 * INPUTS.mean(0), rtol=1e-4)
    np.testing.assert_allclose(found[1], found[0], rtol=1e-5)


def test_an_optimiser_is_put_apart_once_and_models_without_statistics_see_no_difference():
    optimizer = with_statistics(optax.adam(0.1))
    assert with_statistics(optimizer) is optimizer
    weights = VARIABLES["params"]
    bare, _ = jax.jit(optax.adam(0.1).update)(weights, optax.adam(0.1).init(weights))
    found, _ = jax.jit(optimizer.update)(weights, optimizer.init(weights))
    jax.tree.map(np.testing.assert_array_equal, found, bare)


def test_an_optimiser_that_asks_for_the_objective_gets_that_of_the_weights():
    def update(gradients, state, params, *, value_fn, grad):
        return jax.tree.map(lambda g, h: value_fn(params) * (g + h), gradients, grad), state

    asks = optax.GradientTransformationExtraArgs(lambda params: (), update)
    variables = {"params": jnp.array(2.0), "batch_stats": jnp.array(3.0)}
    slope = {"params": jnp.array(1.0), "batch_stats": jnp.array(0.5)}
    updates, _ = with_statistics(asks).update(
        slope, (), variables, value_fn=lambda v: v["params"] * v["batch_stats"], grad=slope
    )
    assert updates == {"params": 12.0, "batch_stats": -0.5}


def test_the_term_has_value_zero_and_gradient_old_minus_new():
    loss, batch = losses.classification(MODULE), Batch(INPUTS, LABELS)
    (value, metrics), gradient = jax.jit(jax.value_and_grad(loss, has_aux=True))(
        VARIABLES, batch, KEY
    )
    assert value == metrics["loss"]
    found = gradient["batch_stats"]["BatchNorm_0"]["mean"]
    np.testing.assert_allclose(found, -0.1 * INPUTS.mean(0), rtol=1e-5)


@pytest.mark.parametrize("momentum", [0.0, 0.9, 0.99])
def test_recalibration_averages_the_batches_statistics(momentum):
    module = Normalised(momentum)
    data = Dataset(INPUTS, LABELS)
    renewed = jax.jit(lambda v: recalibrate(module, v, data, batches=3, batch_size=10))(VARIABLES)
    groups = np.asarray(INPUTS[:30], np.float64).reshape(3, 10, 4)
    first = renewed["batch_stats"]["BatchNorm_0"]
    np.testing.assert_allclose(first["mean"], groups.mean(1).mean(0), rtol=1e-4)
    np.testing.assert_allclose(first["var"], groups.var(1).mean(0), rtol=1e-4)
    jax.tree.map(np.testing.assert_array_equal, renewed["params"], VARIABLES["params"])

    dense = VARIABLES["params"]["Dense_0"]
    normal = (groups - groups.mean(1, keepdims=True)) / np.sqrt(groups.var(1, keepdims=True) + 1e-5)
    hidden = np.maximum(normal @ np.asarray(dense["kernel"], np.float64) + dense["bias"], 0)
    second = renewed["batch_stats"]["BatchNorm_1"]
    np.testing.assert_allclose(second["mean"], hidden.mean(1).mean(0), rtol=1e-4)
    np.testing.assert_allclose(second["var"], hidden.var(1).mean(0), rtol=1e-4)


def test_recalibration_with_a_key_reads_each_example_once():
    data = Dataset(INPUTS, LABELS)
    renewed = recalibrate(MODULE, VARIABLES, data, batches=1, batch_size=100, key=KEY)
    found = renewed["batch_stats"]["BatchNorm_0"]["mean"]
    np.testing.assert_allclose(found, INPUTS.mean(0), rtol=1e-4)


def test_bad_arguments_are_refused():
    data = Dataset(INPUTS, LABELS)
    with pytest.raises(TypeError, match="optimizer must be an optax"):
        with_statistics(0.1)
    with pytest.raises(ValueError, match="variables must be a dict"):
        recalibrate(MODULE, VARIABLES["params"], data)
    with pytest.raises(TypeError, match="model must be a module or a haiku transform here"):
        recalibrate(lambda params, inputs: inputs, VARIABLES, data)
    with pytest.raises(TypeError, match="data must be a Dataset"):
        recalibrate(MODULE, VARIABLES, INPUTS)
    with pytest.raises(ValueError, match="batches must be an integer >= 1, got 0"):
        recalibrate(MODULE, VARIABLES, data, batches=0)
    with pytest.raises(ValueError, match="batch_size must be an integer >= 1, got 0"):
        recalibrate(MODULE, VARIABLES, data, batch_size=0)
    with pytest.raises(TypeError, match="key must be one typed JAX key"):
        recalibrate(MODULE, VARIABLES, data, key=0)
