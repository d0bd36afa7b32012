"""The protocol carries systems that are no synchronous federation: an event-driven server."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
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
