"""Any rule is a neighbour rule, and liars lie among peers as they do to a server."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from tasks import assert_trees_close, half_square, quadratics

import dflax as dx
from dflax import aggregation, attacks, gossip, topology

CLIENTS, KEY = 12, jax.random.key(0)
RULES = {
    "krum": lambda: aggregation.krum(1),
    "mea_med": lambda: aggregation.mea_med(1),
    "median of nnm": lambda: aggregation.nnm(aggregation.median(), 1),
    "centred clipping": lambda: aggregation.centred_clipping(1.0),
}


def trained(rule):
    graph = topology.circulant(CLIENTS, (1, 2, 3))
    mixer = gossip.by_rule(graph, gossip.aggregating(rule))
    liar = attacks.constant(5, 1e4)
    method = dx.decentralized.dpsgd(half_square, optax.sgd(0.1), mixer, channel=liar)
    state = method.init(KEY, jnp.zeros(3))
    run = jax.jit(functools.partial(dx.rollout, method, rounds=12))
    state, _ = run(state, quadratics(clients=CLIENTS).federation(), KEY)
    return np.asarray(state.clients.params)


@pytest.mark.parametrize("name", RULES)
def test_a_liar_among_neighbours_is_not_followed(name):
    alone = trained(RULES[name]())
    honest = np.delete(alone, 5, axis=0)
    assert np.abs(honest).max() < 10
    with jax.set_mesh(dx.client_mesh()):
        assert_trees_close(trained(RULES[name]()), alone, rtol=1e-4, atol=1e-4)


def test_the_mean_follows_it():
    assert np.abs(np.delete(trained(aggregation.mean()), 5, axis=0)).max() > 100


@pytest.mark.parametrize("family", ["server", "decentralized"])
def test_a_mask_over_another_number_of_clients_is_refused(family):
    liar = attacks.sign_flipping(np.arange(CLIENTS - 1) == 3)
    method = {
        "server": lambda: dx.server.fedavg(half_square, optax.sgd(0.1), channel=liar),
        "decentralized": lambda: dx.decentralized.dpsgd(
            half_square, optax.sgd(0.1), gossip.ring(CLIENTS), channel=liar
        ),
    }[family]()
    state = method.init(KEY, jnp.zeros(3))
    drawn = quadratics(clients=CLIENTS).federation().draw(KEY, 0)
    with pytest.raises(
        ValueError, match="clients must be a mask over all 12 clients, got one of 11"
    ):
        jax.eval_shape(method.step, state, drawn)
