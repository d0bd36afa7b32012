import functools
import operator

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from tasks import (
    assert_trees_close,
    assert_trees_equal,
    half_square,
    quadratics,
    regression,
    softmax_loss,
)

import dflax as dx
from dflax import channel, participation
from dflax.channel import Channel

KEY = jax.random.key(0)
TASK = quadratics()
ONES = jnp.ones(3)


def advance(algorithm, federation, rounds, params=ONES):
    state = algorithm.init(KEY, params)
    return jax.jit(functools.partial(dx.rollout, algorithm, rounds=rounds))(state, federation, KEY)


def test_on_quadratics_the_model_follows_its_closed_form():
    """x+ = (1-h)^K x + (1 - (1-h)^K) mean of c, for full participation."""
    shrink = 0.9**4
    state, metrics = advance(dx.server.fedavg(half_square, optax.sgd(0.1)), TASK.federation(4), 3)
    center = TASK.centers.mean(0)
    np.testing.assert_allclose(
        state.server.params, center + shrink**3 * (1 - center), rtol=1e-5, atol=1e-6
    )
    assert state.round == 3
    np.testing.assert_array_equal(metrics["clients_reporting"], 6.0)


def test_weights_are_those_of_the_federation():
    weights = jnp.arange(6.0)
    federation = TASK.federation(weights=weights)
    state, _ = advance(dx.server.fedavg(half_square, optax.sgd(1.0)), federation, 1)
    expected = np.arange(6.0) @ TASK.centers / 15
    np.testing.assert_allclose(state.server.params, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.some(1)
@pytest.mark.parametrize(
    "server", [optax.sgd(0.5, momentum=0.9), optax.adam(0.1), optax.yogi(0.1), optax.adagrad(0.1)]
)
def test_adaptive_servers_equal_optax_on_the_negative_mean_change(server):
    algorithm = dx.server.fedavg(half_square, optax.sgd(0.1), server)
    state, _ = advance(algorithm, TASK.federation(2), 3)
    params, memory = ONES, server.init(ONES)
    for _ in range(3):
        change = (1 - 0.9**2) * (TASK.centers.mean(0) - params)
        updates, memory = jax.jit(server.update)(-change, memory, params)
        params = optax.apply_updates(params, updates)
    np.testing.assert_allclose(state.server.params, params, rtol=1e-4, atol=1e-6)


def test_one_local_step_of_everyone_is_gradient_descent_on_the_mean_loss():
    """FedAvg with K = 1 and weights n_i takes the step of the pooled minibatch of equal sizes."""
    task = regression()
    federation = dx.Federation(task.data, task.partition, batch_size=7, local_steps=1)
    algorithm = dx.server.fedavg(softmax_loss, optax.sgd(0.5))
    state, _ = jax.jit(algorithm.step)(algorithm.init(KEY, task.params), federation.draw(KEY, 0))
    drawn = federation.draw(KEY, 0)
    gradient = jax.jit(jax.grad(softmax_loss, has_aux=True))
    grads = [
        gradient(task.params, task.data.fetch(rows[0]), None)[0]
        for rows in np.asarray(drawn.assignments.minibatches)
    ]
    share = np.asarray(drawn.weights) / np.asarray(drawn.weights).sum()
    step = jax.tree.map(lambda *leaves: sum(w * g for w, g in zip(share, leaves)), *grads)  # noqa: B905
    expected = jax.tree.map(lambda x, g: x - 0.5 * g, task.params, step)
    assert_trees_close(state.server.params, expected, rtol=1e-5, atol=1e-6)


def test_a_round_in_which_nobody_reports_leaves_the_server_as_it_was():
    federation = TASK.federation(
        2, participation=participation.dropout(participation.everyone(), 1.0)
    )
    algorithm = dx.server.fedavg(half_square, optax.sgd(0.1), optax.adam(0.1))
    start = algorithm.init(KEY, ONES)
    state, metrics = advance(algorithm, federation, 4)
    assert_trees_equal(state.server, start.server)
    assert state.round == 4
    np.testing.assert_array_equal(metrics["clients_reporting"], 0.0)
    assert np.isnan(metrics["loss"]).all()


def test_dropout_averages_over_those_who_report():
    federation = TASK.federation(participation=participation.dropout(participation.uniform(4), 0.5))
    algorithm = dx.server.fedavg(half_square, optax.sgd(1.0))
    step = jax.jit(algorithm.step)
    for t in range(5):
        drawn = federation.draw(KEY, t)
        state, metrics = step(algorithm.init(KEY, ONES), drawn)
        reporting = np.asarray(drawn.cohort)[np.asarray(drawn.weights) > 0]
        assert metrics["clients_reporting"] == len(reporting)
        if len(reporting):
            np.testing.assert_allclose(
                state.server.params, TASK.centers[reporting].mean(0), rtol=1e-5, atol=1e-6
            )


def remembering():
    """Sends the message plus what it remembers, remembers the message: memory per client."""

    def apply(messages, weights, state, sending):
        return jax.tree.map(jnp.add, messages, state), weights, messages, {"sent": jnp.float32(1)}

    return Channel(lambda message: jnp.zeros_like(message), apply)


def test_a_channels_memory_stays_with_its_client():
    federation = TASK.federation(participation=participation.dropout(participation.uniform(3), 0.4))
    algorithm = dx.server.fedavg(half_square, optax.sgd(1.0), channel=remembering(), clients=6)
    state = algorithm.init(KEY, ONES)
    memory = np.zeros((6, 3), np.float32)
    step = jax.jit(algorithm.step)
    for t in range(6):
        drawn = federation.draw(KEY, t)
        before = np.asarray(state.server.params)
        state, metrics = step(state, drawn)
        ids = np.asarray(drawn.cohort)[np.asarray(drawn.weights) > 0]
        messages = TASK.centers[ids] - before
        if len(ids):
            expected = before + (messages + memory[ids]).mean(0)
            np.testing.assert_allclose(state.server.params, expected, rtol=1e-4, atol=1e-5)
        memory[ids] = messages
        np.testing.assert_allclose(state.clients.channel, memory, atol=1e-5)
        untouched = np.setdiff1d(np.arange(6), ids)
        np.testing.assert_array_equal(
            np.asarray(state.clients.channel)[untouched], memory[untouched]
        )
        assert metrics["sent"] == 1.0


def test_a_memory_for_another_number_of_clients_is_refused():
    for rule in (participation.everyone(), participation.uniform(2)):
        federation = TASK.federation(participation=rule)
        algorithm = dx.server.fedavg(half_square, optax.sgd(1.0), channel=remembering(), clients=4)
        with pytest.raises(ValueError, match="memory must have a leading axis of length 6, got 4"):
            algorithm.step(algorithm.init(KEY, ONES), federation.draw(KEY, 0))


def test_a_message_lost_on_the_way_does_not_count():
    algorithm = dx.server.fedavg(half_square, optax.sgd(1.0), channel=channel.lossy(1.0))
    state, metrics = advance(algorithm, TASK.federation(), 1)
    np.testing.assert_array_equal(state.server.params, ONES)
    assert metrics["messages_lost"][0] == 6


def test_a_diverged_client_that_does_not_report_poisons_nobody():
    def explodes(params, batch, key):
        gradient, _ = jax.grad(half_square, has_aux=True)(params, batch, key)
        bad = batch.inputs[0, 0] == TASK.centers[2, 0]
        return jnp.where(bad, jnp.nan, gradient), {"loss": jnp.where(bad, jnp.nan, 1.0)}

    absent = np.ones((1, 6), bool)
    absent[0, 2] = False
    federation = TASK.federation(participation=participation.availability(6, absent))
    algorithm = dx.server.fedavg(dx.local.Oracle(explodes), optax.sgd(1.0))
    state, metrics = advance(algorithm, federation, 2)
    assert np.isfinite(np.asarray(state.server.params)).all()
    assert np.isfinite(np.asarray(metrics["loss"])).all()


def test_a_reporting_client_that_diverged_is_dropped_when_asked_for():
    def explodes(params, batch, key):
        gradient, _ = jax.grad(half_square, has_aux=True)(params, batch, key)
        bad = batch.inputs[0, 0] == TASK.centers[2, 0]
        return jnp.where(bad, jnp.inf, gradient), {"loss": jnp.where(bad, jnp.nan, 1.0)}

    oracle = dx.local.Oracle(explodes)
    state, metrics = advance(
        dx.server.fedavg(oracle, optax.sgd(1.0), channel=channel.finite_only()),
        TASK.federation(),
        2,
    )
    others = np.delete(TASK.centers, 2, axis=0).mean(0)
    np.testing.assert_allclose(state.server.params, others, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(metrics["messages_dropped"], 1.0)
    np.testing.assert_array_equal(metrics["clients_reporting"], 5.0)
    np.testing.assert_array_equal(metrics["loss"], 1.0)
    poisoned, _ = advance(dx.server.fedavg(oracle, optax.sgd(1.0)), TASK.federation(), 2)
    assert not np.isfinite(np.asarray(poisoned.server.params)).all()


def test_a_client_of_weight_zero_does_not_count_whatever_it_holds():
    def explodes(params, batch, key):
        loss, metrics = half_square(params, batch, key)
        bad = batch.inputs[0, 0] == TASK.centers[2, 0]
        return jnp.where(bad, jnp.inf, 1.0) * loss, metrics

    federation = TASK.federation(weights=jnp.array([1.0, 1.0, 0.0, 1.0, 1.0, 1.0]))
    state, metrics = advance(dx.server.fedavg(explodes, optax.sgd(1.0)), federation, 2)
    others = np.delete(TASK.centers, 2, axis=0).mean(0)
    np.testing.assert_allclose(state.server.params, others, rtol=1e-5, atol=1e-6)
    assert np.isfinite(metrics["loss"]).all()


def test_clients_that_did_no_step_do_not_pull_the_metrics_to_zero():
    drawn = TASK.federation().draw(KEY, 0)
    done = jnp.array([1, 0, 0, 0, 0, 0], jnp.int32)
    drawn = drawn._replace(assignments=drawn.assignments._replace(local_steps=done))
    algorithm = dx.server.fedavg(half_square, optax.sgd(1.0))
    _, metrics = jax.jit(algorithm.step)(algorithm.init(KEY, ONES), drawn)
    expected = 0.5 * np.sum((1.0 - TASK.centers[0]) ** 2)
    np.testing.assert_allclose(metrics["loss"], expected, rtol=1e-5)


def test_a_cohort_of_which_four_fifths_drop_out_still_trains():
    task = regression()
    rule = participation.dropout(participation.everyone(), 0.8)
    federation = dx.Federation(
        task.data, task.partition, batch_size=8, local_steps=4, participation=rule
    )
    state, _ = advance(dx.server.fedavg(softmax_loss, optax.sgd(0.3)), federation, 60, task.params)
    _, measured = softmax_loss(state.server.params, task.data.fetch(jnp.arange(240)), None)
    assert measured["accuracy"] > 0.85


@pytest.mark.parametrize("method", ["fedavg", "scaffold"])
def test_messages_of_clients_in_turn_are_added_up_as_they_come(method):
    rule = participation.dropout(participation.uniform(4), 0.3)
    federation = TASK.federation(2, weights=jnp.arange(1.0, 7.0), participation=rule)

    def made(at_once):
        if method == "fedavg":
            return dx.server.fedavg(half_square, optax.sgd(0.1), at_once=at_once)
        return dx.server.scaffold(half_square, optax.sgd(0.1), 6, at_once=at_once)

    turn, told = advance(made(1), federation, 4)
    together, measured = advance(made(6), federation, 4)
    assert_trees_close(turn, together, rtol=1e-5, atol=1e-6)
    assert_trees_close(told, measured, rtol=1e-5, atol=1e-6)


def test_clients_in_turn_never_hold_two_messages():
    clients, width = 32, 1 << 14
    task = quadratics(clients=clients, dimension=width)

    def held(at_once, **options):
        algorithm = dx.server.fedavg(half_square, optax.sgd(0.1), at_once=at_once, **options)
        state = jax.eval_shape(algorithm.init, KEY, jnp.zeros(width))
        return dx.profile.round(algorithm, state, task.federation()).temporary_bytes

    model = 4 * width
    assert held(1) < 8 * model < clients * model <= held(clients)
    # A median wants to see them all.
    assert held(1, aggregator=dx.aggregation.median()) >= clients * model


def test_a_sweep_over_rates_and_seeds_is_one_program():
    task = regression()
    federation = dx.Federation(
        task.data,
        task.partition,
        batch_size=8,
        local_steps=3,
        participation=participation.uniform(4),
    )

    def final(rate, seed):
        key = jax.random.key(seed)
        algorithm = dx.server.fedavg(softmax_loss, optax.sgd(rate))
        state, metrics = dx.rollout(algorithm, algorithm.init(key, task.params), federation, key, 4)
        return state.server.params, metrics["loss"]

    rates, seeds = jnp.array([0.01, 0.1, 0.5]), jnp.array([0, 1, 2])
    swept = jax.jit(jax.vmap(final))(rates, seeds)
    for row in range(3):
        single = jax.jit(final)(rates[row], seeds[row])
        element = jax.tree.map(operator.itemgetter(row), swept)
        assert_trees_close(element, single, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: dx.server.fedavg(1, optax.sgd(0.1)), "loss must be a function"),
        (lambda: dx.server.fedavg(half_square, 0.1), "optimizer must be an optax optimiser"),
        (
            lambda: dx.server.fedavg(half_square, optax.sgd(0.1), 1.0),
            "server_optimizer must be an optax optimiser",
        ),
        (
            lambda: dx.server.fedavg(half_square, optax.sgd(0.1), at_once=0),
            "at_once must be an integer >= 1",
        ),
        (
            lambda: dx.server.fedavg(half_square, optax.sgd(0.1), channel=remembering()).init(
                KEY, ONES
            ),
            "clients must be given",
        ),
        (
            lambda: dx.server.fedavg(half_square, optax.sgd(0.1)).init(0, ONES),
            "key must be one typed JAX key",
        ),
        (
            lambda: dx.server.fedavg(half_square, optax.sgd(0.1), aggregator=dx.aggregation.mean),
            "aggregator must be of type Aggregator, not function",
        ),
        (
            lambda: dx.server.fedavg(half_square, optax.sgd(0.1), channel=channel.perfect),
            "channel must be of type Channel, not function",
        ),
        (
            lambda: dx.server.fedavg(half_square, optax.sgd(0.1), clients=0),
            "clients must be an integer >= 1, got 0",
        ),
        (
            lambda: dx.server.fedavg(half_square, optax.sgd(0.1)).init(KEY, {"w": "x"}),
            r"params\['w'\] must be an array of real numbers, got str",
        ),
        (
            lambda: dx.server.fedavg(half_square, optax.sgd(0.1)).init(KEY, None),
            "params must be a pytree with at least one array",
        ),
    ],
)
def test_bad_arguments_are_refused(make, message):
    with pytest.raises((TypeError, ValueError), match=message):
        make()
