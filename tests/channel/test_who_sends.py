"""Channels know who sends, in every framework: what is said of a client by its number holds for it."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from quadratic_rounds import CLIENTS, KEY, LOSS, START, A, B, cohorts, federation, local_steps
from tasks import half_square, quadratics

import dflax as dx
from dflax import participation
from dflax.channel import Channel, only
from dflax.server import Report, with_server

RATE, ROUNDS = 0.05, 5
SGD = optax.sgd(0.1)
FLIP = Channel(lambda one: (), lambda m, w, s, sending: (jax.tree.map(jnp.negative, m), w, s, {}))


def test_client_3_sends_its_message_with_the_sign_turned():
    """FedAvg in float64 NumPy: whenever 3 is invited, and only then, a change is turned around."""
    with jax.enable_x64(True):
        algorithm = dx.server.fedavg(LOSS, optax.sgd(RATE), channel=only(FLIP, 3))
        start = algorithm.init(KEY, jnp.asarray(START))
        run = jax.jit(functools.partial(dx.rollout, algorithm, rounds=ROUNDS))
        state, _ = run(start, federation(), KEY)
    x, turned = START, 0
    for cohort in cohorts():
        changes = []
        for client in cohort:
            y, _ = local_steps(x, lambda x, i=client: A[i] @ (x - B[i]), RATE)
            changes.append((y - x) * (-1 if client == 3 else 1))
            turned += client == 3
        x = x + np.mean(changes, axis=0)
    assert 0 < turned < ROUNDS
    np.testing.assert_allclose(state.server.params, x, rtol=0, atol=1e-12)


def told():
    """Measures what it is told of a sending, client by client."""

    def apply(messages, weights, state, sending):
        who = jnp.zeros(CLIENTS).at[sending.senders].set(weights)
        return messages, weights, state, {"who": who, "round": sending.index}

    return Channel(lambda one: (), apply)


def measured(algorithm, source, *given):
    state = algorithm.init(KEY, jnp.zeros(3), *given)
    return jax.jit(functools.partial(dx.rollout, algorithm, rounds=3))(state, source, KEY)[1]


@functools.cache
def source():
    rule = participation.dropout(participation.uniform(3), 0.3)
    return quadratics(clients=CLIENTS).federation(participation=rule)


def reporting():
    """The numbers of those who report in the first three rounds, as masks."""
    drawn = jax.vmap(source().draw, in_axes=(None, 0))(KEY, jnp.arange(3))
    return np.stack(
        [
            np.isin(np.arange(CLIENTS), c[r > 0])
            for c, r in zip(drawn.cohort, drawn.reports, strict=True)
        ]
    )


def test_on_the_way_to_a_server_and_back():
    def work(assignment, memory, heard, data, index):
        return Report(heard.message, memory, {})

    def algorithm(**links):
        return with_server(
            lambda key, params: ((), ()),
            work,
            lambda server, received: (received.message, (), {}),
            publish=lambda server: (server.params, jnp.bool_(True)),
            equal=True,
            **links,
        )

    up = measured(algorithm(channel=told()), source())
    np.testing.assert_array_equal(up["who"] > 0, reporting())
    np.testing.assert_array_equal(up["round"], [0, 1, 2])
    down = measured(algorithm(downlink=told()), source())
    np.testing.assert_array_equal(down["downlink_who"] > 0, reporting())


@pytest.mark.parametrize("name", ["dpsgd", "gossip_learning"])
def test_among_peers(name):
    if name == "dpsgd":
        method = dx.decentralized.dpsgd(half_square, SGD, dx.gossip.ring(CLIENTS), channel=told())
    else:
        method = dx.decentralized.gossip_learning(half_square, SGD, CLIENTS, channel=told())
    found = measured(method, source())
    np.testing.assert_array_equal(found["who"] > 0, reporting())


def test_among_nodes_that_sample_themselves():
    method = dx.decentralized.modest(half_square, SGD, clients=CLIENTS, sample=3, channel=told())
    found = measured(method, quadratics(clients=CLIENTS).federation())
    for who, sampled in zip(found["who"], found["sampled"], strict=True):
        np.testing.assert_array_equal(np.flatnonzero(who), np.sort(sampled))
