import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from tasks import quadratics

import dflax as dx

KEY = jax.random.key(0)
SGD = optax.sgd(0.1)


def half_square(params, batch, key):
    loss = 0.5 * jnp.sum(jnp.square(params - batch.inputs), -1).mean()
    return loss, {"loss": loss}


@functools.cache
def method():
    return dx.server.fedavg(half_square, SGD)


@functools.cache
def source():
    rule = dx.participation.bernoulli(0.3)
    return quadratics(clients=3).federation(participation=rule)


@functools.cache
def plain():
    """The run in single rounds; in some of them nobody reports, and the loss is NaN."""
    start = method().init(KEY, jnp.zeros(3))
    return dx.run(method(), start, source(), rounds=24, key=KEY)


def squares_of_the_last(values, axis):
    return jnp.square(values[-1])


@functools.cache
def short():
    return dx.condensed(method(), {"clients_reporting": jnp.nansum, "loss": squares_of_the_last})


def test_a_stretch_of_rounds_is_one_step_and_one_row_of_metrics():
    start = method().init(KEY, jnp.zeros(3))
    state, history = dx.run(short(), start, dx.stretches(source(), 6), rounds=4, key=KEY)
    whole, rows = plain()
    assert int(state.round) == 4
    np.testing.assert_array_equal(state.server.params, whole.server.params)
    reporting, loss = (rows.metrics[name].reshape(4, 6) for name in ("clients_reporting", "loss"))
    assert np.isnan(loss).any()
    np.testing.assert_array_equal(history.metrics["clients_reporting"], reporting.sum(1))
    np.testing.assert_array_equal(history.metrics["loss"], np.square(loss[:, -1]))


def test_the_mean_leaves_out_rounds_that_measured_nothing():
    start = method().init(KEY, jnp.zeros(3))
    lean = dx.condensed(method())
    _, metrics = dx.rollout(lean, start, dx.stretches(source(), 12), KEY, 2)
    loss = plain()[1].metrics["loss"].reshape(2, 12)
    np.testing.assert_allclose(metrics["loss"], np.nanmean(loss, 1), rtol=1e-6)
    largest = dx.condensed(method(), jnp.max)
    _, metrics = dx.rollout(largest, start, dx.stretches(source(), 12), KEY, 2)
    np.testing.assert_array_equal(metrics["loss"], loss.max(1))


def test_runs_go_on_and_stretches_nest():
    start = method().init(KEY, jnp.zeros(3))
    pairs = dx.stretches(source(), 6)
    half, _ = dx.run(short(), start, pairs, rounds=2, key=KEY)
    state, history = dx.run(short(), half, pairs, rounds=2, key=KEY)
    np.testing.assert_array_equal(state.server.params, plain()[0].server.params)
    assert list(history.rounds) == [3, 4]
    twice = dx.condensed(dx.condensed(method(), jnp.nansum), jnp.nansum)
    nested = dx.stretches(dx.stretches(source(), 6), 2)
    state, history = dx.run(twice, start, nested, rounds=2, key=KEY)
    np.testing.assert_array_equal(state.server.params, plain()[0].server.params)
    reporting = plain()[1].metrics["clients_reporting"]
    np.testing.assert_array_equal(
        history.metrics["clients_reporting"], reporting.reshape(2, 12).sum(1)
    )


@pytest.mark.slow
def test_a_killed_run_is_taken_up_and_a_sweep_is_one(tmp_path):
    start = method().init(KEY, jnp.zeros(3))
    pairs = dx.stretches(source(), 6)
    dx.run(short(), start, pairs, rounds=1, key=KEY, checkpoint=tmp_path / "run")
    state, history = dx.run(short(), start, pairs, rounds=4, key=KEY, checkpoint=tmp_path / "run")
    np.testing.assert_array_equal(state.server.params, plain()[0].server.params)
    assert len(history.metrics["loss"]) == 4

    def make(rate):
        return dx.condensed(dx.server.fedavg(half_square, optax.sgd(rate)))

    swept = dx.sweep(
        make,
        lambda algorithm, key: algorithm.init(key, jnp.zeros(3)),
        pairs,
        grid={"rate": [0.1, 0.2]},
        key=KEY,
        rounds=4,
    )
    assert swept.metrics["loss"].shape == (2, 1, 4)


def test_systems_of_events_keep_the_memory_of_their_rows():
    events = dx.Events({"x": jnp.arange(1000)})
    count = dx.Algorithm(
        lambda key, params: params,
        lambda state, event: (state + event[0]["x"], {"x": jnp.full(1000, event[0]["x"])}),
    )
    lean = dx.stretches(events, 10)
    state, metrics = dx.rollout(dx.condensed(count), jnp.int32(0), lean, KEY, 100)
    assert state == 499_500
    np.testing.assert_array_equal(metrics["x"][:, 0], np.arange(1000).reshape(100, 10).mean(1))

    def memory(algorithm, source, rounds):
        run = jax.jit(functools.partial(dx.rollout, algorithm, rounds=rounds))
        analysis = run.lower(jnp.int32(0), source, KEY).compile().memory_analysis()
        return analysis.temp_size_in_bytes + analysis.output_size_in_bytes

    # 100 rows, 10 rounds of a stretch and their mean.
    assert memory(dx.condensed(count), lean, 100) < 4000 * 150 < memory(count, events, 1000)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: dx.stretches(source(), 0), "every must be an integer >= 1, got 0"),
        (lambda: dx.stretches(3), "source must have a method draw"),
        (lambda: dx.condensed(3), "algorithm must be of type Algorithm"),
        (lambda: dx.condensed(method(), 3), "reduce must be a function"),
        (lambda: dx.condensed(method(), {"loss": 3}), r"reduce\['loss'\] must be a function"),
        (
            lambda: run(dx.condensed(method(), {"cost": jnp.mean}), dx.stretches(source(), 2)),
            r"reduce must name metrics of the algorithm, \['clients_reporting', 'loss'\], got",
        ),
        (lambda: run(short(), source()), "the round must be of type Stretch"),
        (
            lambda: run(short(), dx.stretches(dx.Events(jnp.arange(25)), 6)),
            "rounds must not go beyond the 4 rows",
        ),
    ],
)
def test_bad_arguments_are_refused(call, message):
    with pytest.raises((TypeError, ValueError), match=message):
        call()


def run(algorithm, source):
    return dx.run(algorithm, method().init(KEY, jnp.zeros(3)), source, rounds=5, key=KEY)
