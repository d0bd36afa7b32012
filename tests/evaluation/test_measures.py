"""What evaluations accept, where they look for models, and when two of them are the same."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn
from tasks import regression, softmax_loss

import dflax as dx
from dflax import evaluation

KEY = jax.random.key(0)
N = 4
TASK = regression(clients=N, examples=60)
TRAIN, HELD_OUT = dx.data.train_test_per_client(TASK.partition, 0.4)
MODELS = {"w": jax.random.normal(KEY, (N, 5, 3)), "b": jnp.zeros((N, 3))}
FIRST = jax.tree.map(lambda leaf: leaf[0], MODELS)
STATE = dx.FederatedState(jnp.int32(0), dx.server.Server(FIRST), dx.decentralized.Clients(MODELS))
ATTACK = dx.local.projected_gradient(softmax_loss, 0.5, 1, random_start=False)


def silent(params, batch, key):
    """The loss, and no metrics."""
    return softmax_loss(params, batch, key)[0], {}


def counting(params, batch, key):
    """Metrics of other kinds: integers, booleans, arrays of a fixed shape, half precision."""
    value, _ = softmax_loss(params, batch, key)
    classes = jnp.arange(3, dtype=jnp.int32)
    return value, {
        "classes": jnp.int32(3),
        "finite": jnp.isfinite(value),
        "each": classes,
        "half": jnp.bfloat16(1.0),
    }


EVALUATIONS = {
    "server": lambda loss: evaluation.server_model(evaluation.on(loss, TASK.data, batch_size=25)),
    "clients": lambda loss: evaluation.client_models(evaluation.on(loss, TASK.data, batch_size=25)),
    "mean": lambda loss: evaluation.mean_model(evaluation.on(loss, TASK.data, batch_size=25)),
    "own": lambda loss: evaluation.on_own_data(loss, TASK.data, HELD_OUT, batch_size=5),
    "attacked": lambda loss: evaluation.server_model(
        evaluation.attacked(loss, ATTACK, TASK.data, KEY, batch_size=25)
    ),
}
PREFIX = {"server": "", "clients": "", "mean": "mean_model_", "own": "own_", "attacked": "robust_"}


@pytest.mark.some(2)
@pytest.mark.parametrize("name", EVALUATIONS)
def test_a_loss_without_metrics_measures_itself(name):
    found = jax.jit(EVALUATIONS[name](silent))(STATE)
    expected = jax.jit(EVALUATIONS[name](softmax_loss))(STATE)
    assert found
    for each in found:
        assert each.startswith(PREFIX[name] + "loss")
        np.testing.assert_allclose(found[each], expected[each], rtol=1e-6)


@pytest.mark.parametrize("name", EVALUATIONS)
def test_metrics_of_other_kinds_are_averaged_as_real_numbers(name):
    found = jax.jit(EVALUATIONS[name](counting))(STATE)
    prefix = PREFIX[name]
    assert {leaf.dtype for leaf in found.values()} == {jnp.dtype("float32")}
    np.testing.assert_allclose(found[f"{prefix}classes"], 3, rtol=1e-6)
    np.testing.assert_allclose(found[f"{prefix}finite"], 1, rtol=1e-6)
    np.testing.assert_allclose(found[f"{prefix}half"], 1, rtol=1e-6)
    np.testing.assert_allclose(found[f"{prefix}each"], [0, 1, 2], rtol=1e-6)


def test_the_spread_of_a_metric_that_is_an_array_is_that_of_each_entry():
    values = jnp.asarray(np.random.default_rng(0).normal(size=(11, 3)), jnp.float32)
    found = evaluation.distribution("x", values)
    for entry in range(3):
        alone = evaluation.distribution("x", values[:, entry])
        for name, value in alone.items():
            np.testing.assert_allclose(found[name][entry], value, rtol=1e-6)


@pytest.mark.parametrize(
    ("loss", "message"),
    [
        (lambda p, b, k: softmax_loss(p, b, k)[0], r"return \(loss, metrics\).* if there are none"),
        (lambda p, b, k: (1.0, 2.0), "with a dict of metrics.*got metrics of type float"),
        (lambda p, b, k: (1.0, {"x": {"y": 1.0}}), "the metric 'x' of type dict"),
        (lambda p, b, k: (1.0, {"x": "good"}), "the metric 'x' of type str"),
    ],
)
def test_what_is_no_metric_is_refused_by_name(loss, message):
    with pytest.raises(TypeError, match=message):
        evaluation.on(loss, TASK.data)(FIRST)


def own_models(state):
    return state.clients.params


class Normed(nn.Module):
    @nn.compact
    def __call__(self, x, train=False):
        return nn.BatchNorm(use_running_average=not train)(x)


MODULE, SGD = Normed(), optax.sgd(0.1)
BUILT = {
    **{name: functools.partial(make, softmax_loss) for name, make in EVALUATIONS.items()},
    "other models": lambda: evaluation.mean_model(
        evaluation.on(softmax_loss, TASK.data), models=own_models
    ),
    "tuned": lambda: evaluation.personalized(
        softmax_loss, SGD, TASK.data, TRAIN, HELD_OUT, KEY, local_steps=2, models=own_models
    ),
    "recalibrated": lambda: evaluation.mean_model(
        evaluation.recalibrated(evaluation.on(softmax_loss, TASK.data), MODULE, TASK.data)
    ),
    "together": lambda: evaluation.together(
        evaluation.consensus, evaluation.server_model(evaluation.on(softmax_loss, TASK.data))
    ),
}


@pytest.mark.parametrize("name", BUILT)
def test_what_is_built_twice_of_the_same_parts_is_the_same_to_jit(name):
    first, second = (jax.tree.structure(BUILT[name]()) for _ in range(2))
    assert first == second
    assert hash(first) == hash(second)


@pytest.mark.parametrize(
    "other",
    [
        lambda: evaluation.on(silent, TASK.data, batch_size=25),
        lambda: evaluation.on(softmax_loss, TASK.data, batch_size=24),
        lambda: evaluation.on(softmax_loss, TASK.data, batch_size=25, examples=59),
    ],
)
def test_what_measures_something_else_is_another(other):
    one = evaluation.on(softmax_loss, TASK.data, batch_size=25)
    assert jax.tree.structure(one) != jax.tree.structure(other())


def test_a_program_is_traced_once_for_evaluations_built_twice():
    traced = []

    def loss(params, batch, key):
        traced.append(1)
        return softmax_loss(params, batch, key)

    measured = jax.jit(lambda evaluate, state: evaluate(state))
    for _ in range(2):
        measured(evaluation.server_model(evaluation.on(loss, TASK.data)), STATE)
    assert len(traced) == 1


def test_a_measure_looks_where_it_is_told():
    measure = evaluation.on(softmax_loss, TASK.data)
    aside = dx.FederatedState(jnp.int32(0), FIRST, MODELS)
    pairs = (
        (evaluation.server_model, lambda state: state.server),
        (evaluation.client_models, lambda state: state.clients),
        (evaluation.mean_model, lambda state: state.clients),
    )
    for make, models in pairs:
        expected, found = make(measure)(STATE), make(measure, models=models)(aside)
        for name, value in expected.items():
            np.testing.assert_allclose(found[name], value, rtol=1e-6)
    with pytest.raises(
        TypeError, match=r"state.server.params.*client_models or mean_model.*models="
    ):
        evaluation.server_model(measure)(STATE._replace(server=()))
    with pytest.raises(TypeError, match=r"state.clients.params.*evaluation.server_model"):
        evaluation.consensus(STATE._replace(clients=()))
    with pytest.raises(TypeError, match="models must be a function, got 3"):
        evaluation.mean_model(measure, models=3)
