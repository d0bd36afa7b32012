"""The protocol carries systems that are no synchronous federation: an event-driven server."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tasks import quadratics

import dflax as dx

KEY = jax.random.key(0)


class Asynchronous(NamedTuple):
    model: jax.Array
    sent: jax.Array


def asynchronous_sgd(centers, rate):
    """A client returns, the server moves by its stale gradient and sends it the new model."""

    def init(key, model):
        return Asynchronous(model, dx.replicate(model, len(centers)))

    def step(state, event):
        row, _ = event
        client = row["client"]
        model = state.model - rate * (state.sent[client] - centers[client])
        return Asynchronous(model, state.sent.at[client].set(model)), {"time": row["time"]}

    return dx.Algorithm(init, step)


def test_an_event_table_is_a_source_like_a_federation():
    task = quadratics(clients=3)
    clients = np.random.default_rng(0).integers(0, 3, 40)
    table = {"client": jnp.asarray(clients), "time": jnp.arange(40.0)}
    algorithm = asynchronous_sgd(jnp.asarray(task.centers), 0.3)
    state, history = dx.run(
        algorithm, algorithm.init(KEY, jnp.zeros(3)), dx.Events(table), rounds=40, key=KEY
    )
    model, sent = np.zeros(3), np.zeros((3, 3))
    for client in clients:
        model = model - 0.3 * (sent[client] - task.centers[client])
        sent[client] = model
    np.testing.assert_allclose(state.model, model, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(history.metrics["time"], np.arange(40.0))


def test_rollouts_continue_and_stack_their_metrics():
    task = quadratics(clients=3)
    algorithm = asynchronous_sgd(jnp.asarray(task.centers), 0.3)
    events = dx.Events({"client": jnp.arange(12) % 3, "time": jnp.arange(12.0)})
    start = algorithm.init(KEY, jnp.ones(3))
    whole, metrics = dx.rollout(algorithm, start, events, KEY, 12)
    half, _ = dx.rollout(algorithm, start, events, KEY, 5)
    rest, tail = dx.rollout(algorithm, half, events, KEY, 7, start=5)
    np.testing.assert_allclose(rest.model, whole.model, rtol=1e-6)
    np.testing.assert_array_equal(tail["time"], metrics["time"][5:])


def test_events_hand_out_fresh_keys():
    events = dx.Events({"x": jnp.arange(3)})
    keys = {
        tuple(jax.random.key_data(events.draw(KEY, jnp.int32(t))[1]).tolist()) for t in range(3)
    }
    assert len(keys) == 3


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"algorithm": 3}, "algorithm must be of type Algorithm, not int, got 3"),
        ({"rounds": -1}, "rounds must be an integer >= 0, got -1"),
        ({"key": 0}, "key must be one typed JAX key, got 0"),
        ({"source": 3}, "source must have a method draw.*got int"),
        ({"source": dx.Events}, "source must have a method draw"),
        ({"start": 2}, "rounds must not go beyond the 3 rows .* got a last round 5"),
    ],
)
def test_rollout_refuses(changes, message):
    algorithm = dx.Algorithm(lambda key, params: params, lambda state, row: (state, {}))
    arguments = {"algorithm": algorithm, "state": jnp.zeros(2), "source": dx.Events(jnp.arange(3))}
    with pytest.raises((TypeError, ValueError), match=message):
        dx.rollout(**(arguments | {"key": KEY, "rounds": 3} | changes))


def test_event_tables_are_checked_once_and_stay_pytrees():
    with pytest.raises(ValueError, match="table must have leaves that share one leading axis"):
        dx.Events({"a": jnp.zeros(3), "b": jnp.zeros(4)})
    events = dx.Events({"a": jnp.zeros(3), "b": jnp.ones((3, 2))})
    shapes = jax.tree.map(jnp.shape, events, is_leaf=lambda leaf: False)
    assert isinstance(shapes, dx.Events)
    row, _ = jax.jit(lambda events: events.draw(KEY, 1))(events)
    np.testing.assert_array_equal(row["b"], [1.0, 1.0])


def test_run_refuses_more_rounds_than_events():
    algorithm = dx.Algorithm(lambda key, params: params, lambda state, row: (state, {}))
    with pytest.raises(ValueError, match="rounds must not go beyond the 3 rows"):
        dx.run(algorithm, jnp.zeros(2), dx.Events(jnp.arange(3)), rounds=4, key=KEY)
