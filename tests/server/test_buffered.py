"""FedBuff on a table of arrivals: each round is one client's return from the model it was sent last."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
from quadratic_rounds import CLIENTS, KEY, LOSS, START, A, B, federation, local_steps

import dflax as dx
from dflax.local import Subproblem, solver
from dflax.server import Report, with_server

BUFFER, ARRIVALS, RATE, SERVER_RATE = 3, 40, 0.05, 0.7


def fedbuff(loss, optimizer, clients, *, buffer, server_rate=1.0):
    """FedBuff: the server steps along the mean of K changes, each made from a model of its own age.

        y = K local steps from the model that client i was sent last; it is sent the new model then
        g = g + (y - x_i) / sqrt(1 + staleness);    after every K changes  x = x + server_rate g / K

    References:
      Nguyen et al., Federated Learning with Buffered Asynchronous Aggregation, arXiv 2106.06639.
    """
    solve = solver(loss, optimizer)

    def start(key, params):
        return (jax.tree.map(jnp.zeros_like, params), jnp.int32(0)), dx.replicate(params, clients)

    def work(assignment, sent, server, data, index):
        solution = solve(Subproblem(), sent, assignment, data, index=index)
        return Report(jax.tree.map(jnp.subtract, solution.params, sent), sent, solution.metrics)

    def update(server, received):
        share = jax.lax.rsqrt(1.0 + received.event["staleness"]) / buffer
        total = jax.tree.map(lambda g, d: g + share * d, server.memory[0], received.message)
        moved = jax.tree.map(lambda x, g: x + server_rate * g, server.params, total)
        full, left = server.memory[1] == buffer - 1, jax.tree.map(jnp.zeros_like, total)
        kept = (server.params, (total, server.memory[1] + 1))
        return *dx.select(full, (moved, (left, jnp.int32(0))), kept), {}

    def receive(sent, arrived, server, index):
        return server.params

    return with_server(start, work, update, receive=receive, clients=clients)


def arrivals():
    """Who arrives when, and how many times the server stepped since it was sent its model."""
    clients = np.random.default_rng(0).integers(0, CLIENTS, ARRIVALS)
    sent, staleness = np.zeros(CLIENTS, int), []
    for t, client in enumerate(clients):
        staleness.append(t // BUFFER - sent[client])
        sent[client] = (t + 1) // BUFFER
    return clients, np.array(staleness)


def test_fedbuff_is_its_pseudo_code():
    clients, staleness = arrivals()
    assert staleness.max() > 3
    with jax.enable_x64(True):
        table = dx.participation.from_table(clients[:, None], staleness=staleness)
        source = federation(cohort=CLIENTS).replace(participation=table)
        algorithm = fedbuff(LOSS, optax.sgd(RATE), CLIENTS, buffer=BUFFER, server_rate=SERVER_RATE)
        start = algorithm.init(KEY, jnp.asarray(START))
        run = jax.jit(functools.partial(dx.rollout, algorithm, rounds=ARRIVALS))
        state, _ = run(start, source, KEY)
    x, buffered, sent = START, [], np.tile(START, (CLIENTS, 1))
    for client, age in zip(clients, staleness, strict=True):
        y, _ = local_steps(sent[client], lambda x, i=client: A[i] @ (x - B[i]), RATE)
        buffered.append((y - sent[client]) / np.sqrt(1 + age))
        if len(buffered) == BUFFER:
            x, buffered = x + SERVER_RATE * np.mean(buffered, axis=0), []
        sent[client] = x
    np.testing.assert_allclose(state.server.params, x, rtol=0, atol=1e-12)
    np.testing.assert_allclose(state.clients.memory, sent, rtol=0, atol=1e-12)
    assert np.abs(x - START).max() > 0.1
