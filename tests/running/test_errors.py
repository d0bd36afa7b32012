"""Whose error it is: the user's own come out as they are, and what does not fit is told by name."""

import traceback

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from tasks import regression, softmax_loss

import dflax as dx
from dflax import evaluation

KEY = jax.random.key(0)


class MineError(Exception):
    pass


@pytest.fixture(scope="module")
def task():
    return regression()


@pytest.fixture(scope="module")
def federation(task):
    return dx.Federation(task.data, task.partition, batch_size=6, local_steps=2)


def walk():
    """The smallest algorithm: adds what the source hands out."""
    return dx.Algorithm(lambda key, params: params, lambda state, round: (state + round[0], {}))


def small(algorithm, state=None, **options):
    state = jnp.zeros(2) if state is None else state
    return dx.run(algorithm, state, dx.Events(jnp.ones(3)), rounds=2, key=KEY, **options)


def failing(error):
    def fail(*arguments, **named):
        raise error

    return fail


def in_loss(task, fail):
    return dx.server.fedavg(fail, optax.sgd(0.1)), {}


def in_aggregator(task, fail):
    aggregator = dx.aggregation.Aggregator(lambda message: (), fail)
    return dx.server.fedavg(softmax_loss, optax.sgd(0.1), aggregator=aggregator), {}


def in_mixer(task, fail):
    mixer = dx.gossip.ring(8)._replace(apply=fail)
    return dx.decentralized.dpsgd(softmax_loss, optax.sgd(0.1), mixer), {}


def in_optimizer(task, fail):
    optimizer = optax.GradientTransformation(lambda params: (), fail)
    return dx.server.fedavg(softmax_loss, optimizer), {}


def in_evaluate(task, fail):
    return dx.server.fedavg(softmax_loss, optax.sgd(0.1)), {"evaluate": fail}


def in_measure(task, fail):
    measure = evaluation.server_model(evaluation.on(fail, task.data))
    return dx.server.fedavg(softmax_loss, optax.sgd(0.1)), {"evaluate": measure}


@pytest.mark.some(1)
@pytest.mark.parametrize(
    "kind", [MineError, AttributeError, KeyError, TypeError, IndexError, ValueError]
)
@pytest.mark.parametrize(
    "place", [in_loss, in_aggregator, in_mixer, in_optimizer, in_evaluate, in_measure]
)
def test_the_users_own_error_comes_out_as_itself(task, federation, place, kind):
    error = kind("'int' object has no attribute 'mine'")
    algorithm, options = place(task, failing(error))
    with pytest.raises(kind) as raised:
        dx.run(
            algorithm, algorithm.init(KEY, task.params), federation, rounds=1, key=KEY, **options
        )
    assert raised.value is error
    told = "".join(traceback.format_exception(raised.value))
    assert "The state must come from" not in told
    assert "in fail\n" in told
    assert len(told.splitlines()) < 30


def test_also_with_a_checkpoint_and_before_the_folder_is_touched(task, federation, tmp_path):
    algorithm, _ = in_loss(task, failing(MineError("mine")))
    state = algorithm.init(KEY, task.params)
    with pytest.raises(MineError):
        dx.run(algorithm, state, federation, rounds=1, key=KEY, checkpoint=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_state_of_another_optimizer_gets_the_hint(task, federation):
    algorithm = dx.server.fedavg(softmax_loss, optax.sgd(0.1), optax.adam(0.1))
    other = dx.server.fedavg(softmax_loss, optax.sgd(0.1), optax.sgd(0.1))
    with pytest.raises(TypeError, match=r"algorithm\.step does not fit.*this algorithm's init"):
        dx.run(algorithm, other.init(KEY, task.params), federation, rounds=1, key=KEY)


@pytest.mark.parametrize(
    ("step", "message"),
    [
        (lambda state, round: state, r"must return \(state, metrics\).*got (ArrayImpl|.*Tracer)"),
        (lambda state, round: (state, {}, 3), "got a tuple of 3"),
        (lambda state, round: None, "got NoneType"),
        (lambda state, round: (state, None), "got metrics of type NoneType. Return {} for none"),
        (lambda state, round: (state, state), "got metrics of type"),
        (lambda state, round: (state, {"a": "b"}), r"leaf of type str at \['a'\] in the metrics"),
        (lambda state, round: ("no", {}), "leaf of type str in the state"),
        (
            lambda state, round: (state[:1], {}),
            r"state is float32\[2\] before a round and float32\[1\] after",
        ),
        (lambda state, round: ((state, state), {}), r"state\[0\] is missing before|after it"),
        (
            lambda state, round: (state.astype(jnp.int32), {}),
            r"float32\[2\] before a round and int32\[2\] after",
        ),
    ],
)
def test_what_step_returns_is_checked_by_name(step, message):
    with pytest.raises(TypeError, match=message) as refused:
        small(walk()._replace(step=step))
    assert "algorithm.step must return" in str(refused.value)


@pytest.mark.parametrize(
    ("evaluate", "message"),
    [
        (lambda state: None, "got None. Does it lack a return"),
        (lambda state: {"name": "text"}, r"got a leaf of type str at \['name'\]"),
        (lambda state: {"f": len}, r"got a leaf of type builtin_function_or_method at \['f'\]"),
    ],
)
def test_what_evaluate_returns_is_checked_by_name(evaluate, message):
    with pytest.raises(TypeError, match=message) as refused:
        small(walk(), evaluate=evaluate)
    assert "evaluate must return a dict of arrays" in str(refused.value)


def test_an_evaluation_may_be_one_number_or_python_numbers():
    _, history = small(walk(), evaluate=lambda state: {"sum": state.sum(), "one": 1, "yes": True})
    assert history.evaluations["sum"].tolist() == [4.0]
    assert history.evaluations["one"].tolist() == [1]
    _, history = small(walk(), evaluate=lambda state: state.sum())
    assert history.evaluations.tolist() == [4.0]


def measures(loss, task):
    attack = dx.local.projected_gradient(softmax_loss, 0.1, 1)
    held_out = task.partition
    return {
        "on": evaluation.server_model(evaluation.on(loss, task.data, batch_size=100)),
        "attacked": evaluation.server_model(
            evaluation.attacked(loss, attack, task.data, KEY, batch_size=100)
        ),
        "own": evaluation.on_own_data(loss, task.data, held_out),
    }


@pytest.mark.slow
def test_integer_metrics_and_losses_without_any_are_measured_as_in_training(task, federation):
    def counting(params, batch, key):
        value, metrics = softmax_loss(params, batch, key)
        hit = metrics["accuracy"] > 0
        return value, {"hit": hit, "count": jnp.int32(3), "accuracy": metrics["accuracy"]}

    def silent(params, batch, key):
        return softmax_loss(params, batch, key)[0], {}

    params = {"w": jnp.ones((5, 3)), "b": jnp.zeros(3)}
    state = dx.server.fedavg(softmax_loss, optax.sgd(0.1)).init(KEY, params)
    exact = measures(softmax_loss, task)["on"](state)
    for name, measure in measures(counting, task).items():
        found = measure(state)
        (count,) = (found[key] for key in found if key in ("count", "robust_count", "own_count"))
        assert (name, float(count)) == (name, 3.0)
    for measure in measures(silent, task).values():
        assert any(key.endswith("loss") for key in measure(state))
    np.testing.assert_allclose(measures(silent, task)["on"](state)["loss"], exact["loss"])


def test_a_loss_that_returns_no_pair_is_refused_by_name_in_evaluations(task):
    state = dx.server.fedavg(softmax_loss, optax.sgd(0.1)).init(KEY, task.params)
    for measure in measures(lambda params, batch, key: jnp.float32(1), task).values():
        with pytest.raises(TypeError, match=r"loss must return \(loss, metrics\)"):
            measure(state)
    for measure in measures(lambda params, batch, key: (1.0, jnp.ones(3)), task).values():
        with pytest.raises(TypeError, match=r"loss must return .*got metrics of type"):
            measure(state)
