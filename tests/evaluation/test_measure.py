"""Evaluations made again from the same parts are equal: the compiled program is used again."""

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
from dflax.evaluation.measure import Bound

KEY = jax.random.key(0)
ATTACK = dx.local.projected_gradient(softmax_loss, 0.1, 1)
MODULE = nn.BatchNorm(use_running_average=False)
OPTIMIZER = optax.sgd(0.1)


def makers():
    task = regression()
    data, dealt = task.data, task.partition
    return {
        "on": lambda: evaluation.server_model(evaluation.on(softmax_loss, data)),
        "attacked": lambda: evaluation.mean_model(
            evaluation.attacked(softmax_loss, ATTACK, data, KEY)
        ),
        "clients": lambda: evaluation.client_models(
            evaluation.on(softmax_loss, data, batch_size=7), at_once=2
        ),
        "own": lambda: evaluation.on_own_data(softmax_loss, data, dealt),
        "recalibrated": lambda: evaluation.mean_model(
            evaluation.recalibrated(evaluation.on(softmax_loss, data), MODULE, data)
        ),
        "together": lambda: evaluation.together(
            evaluation.server_model(evaluation.on(softmax_loss, data)), evaluation.consensus
        ),
    }


@pytest.mark.parametrize("name", makers())
def test_two_of_the_same_parts_are_equal(name):
    make = makers()[name]
    assert jax.tree.structure(make()) == jax.tree.structure(make())
    assert hash(jax.tree.structure(make())) == hash(jax.tree.structure(make()))


def test_other_parts_are_not():
    task = regression()
    structures = [
        jax.tree.structure(evaluation.on(loss, task.data, batch_size=size, examples=examples))
        for loss, size, examples in (
            (softmax_loss, 7, None),
            (softmax_loss, 8, None),
            (softmax_loss, 7, 100),
            (lambda *arguments: softmax_loss(*arguments), 7, None),
        )
    ]
    assert len(set(structures)) == 4


def test_a_run_with_an_equal_evaluation_compiles_and_traces_nothing():
    task, traced = regression(), []

    def loss(params, batch, key):
        traced.append(1)
        return softmax_loss(params, batch, key)

    federation = dx.Federation(task.data, task.partition, batch_size=6, local_steps=2)
    algorithm = dx.server.fedavg(softmax_loss, optax.sgd(0.1))
    state = algorithm.init(KEY, task.params)

    def run():
        measure = evaluation.server_model(evaluation.on(loss, task.data))
        dx.run(algorithm, state, federation, rounds=1, key=KEY, evaluate=measure)
        return len(traced)

    first = run()
    assert first > 0
    assert run() == first


def test_arguments_that_are_no_keys_count_by_identity():
    values, steps = np.ones(3), [1]
    assert Bound(print, values, steps) == Bound(print, values, steps)
    assert hash(Bound(print, values, steps)) == hash(Bound(print, values, steps))
    assert Bound(print, values) != Bound(print, np.ones(3))
    assert Bound(print, [1]) != Bound(print, [1])
    assert Bound(print, 1) != Bound(print)
    assert Bound(print, 1) != functools.partial(print, 1)
    assert Bound(lambda a, b, c: (a, b, c), 1, 2)(3) == (1, 2, 3)


def test_a_measure_of_one_model_is_no_evaluation_of_a_state():
    task = regression()
    measure = evaluation.on(softmax_loss, task.data)
    for given in (measure, jax.tree.map(jnp.asarray, measure)):
        with pytest.raises(TypeError, match=r"evaluate must measure a state.*server_model"):
            dx.run(
                dx.Algorithm(lambda key, params: params, lambda state, round: (state, {})),
                jnp.zeros(3),
                dx.Events(jnp.zeros(2)),
                rounds=1,
                key=KEY,
                evaluate=given,
            )
