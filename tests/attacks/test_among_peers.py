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


@pytest.mark.slow
@pytest.mark.some(2)
@pytest.mark.parametrize("name", RULES)
def test_a_liar_among_neighbours_is_not_followed(name):
    alone = trained(RULES[name]())
    honest = np.delete(alone, 5, axis=0)
    assert np.abs(honest).max() < 10
    with jax.set_mesh(dx.client_mesh()):
        assert_trees_close(trained(RULES[name]()), alone, rtol=1e-4, atol=1e-4)


def test_the_mean_follows_it():
    assert np.abs(np.delete(trained(aggregation.mean()), 5, axis=0)).max() > 100


@pytest.mark.some(1)
@pytest.mark.parametrize("family", ["inner_product", "little_is_enough"])
@pytest.mark.parametrize("name", ["nna", "clipping"])
def test_a_line_search_knows_what_peers_make_of_all_messages(family, name):
    """Its harm is what the mixer does: the length found against the search written out in NumPy."""
    liars, honest = [2, 5, 7], np.array([0, 1, 3, 4, 6, 8, 9, 10, 11])
    rule = {"nna": gossip.nna(3), "clipping": gossip.self_centred_clipping(1.0, 2)}[name]
    channel = attacks.line_searched(family, rule, liars, evaluations=7, step=0.5)
    with jax.enable_x64(True):
        tree = jnp.asarray(np.random.default_rng(1).normal(size=(CLIENTS, 4)) + 1)
        sending = dx.channel.Sending(KEY, jnp.int32(0), jnp.arange(CLIENTS))
        send = jax.jit(lambda x: channel.apply(x, jnp.ones(CLIENTS), (), sending)[0])
        sent = np.asarray(send(tree))
        rows = np.asarray(tree)
        mean, deviation = rows[honest].mean(0), rows[honest].std(0, ddof=1)
        start, away = (0 * mean, -mean) if family == "inner_product" else (mean, deviation)
        mixer = gossip.by_rule(topology.complete(CLIENTS), rule, together=True)
        mix = jax.jit(lambda x: mixer.apply(x, mixer.init(x), gossip.Mixing(KEY, jnp.int32(0)))[0])

        def harm(length):
            given = rows.copy()
            given[liars] = start + length * away
            return np.square(np.asarray(mix(given))[honest].mean(0) - mean).sum()

        best, most, step, expands = 0.0, harm(0.0), 0.5, True
        for _ in range(6):
            found = harm(best + step)
            better = found > most
            if better:
                best, most = best + step, found
            expands = expands and better
            step = step * (2 if expands else 0.8)
    np.testing.assert_allclose(sent[liars], np.tile(start + best * away, (3, 1)), rtol=1e-5)
    np.testing.assert_array_equal(sent[honest], rows[honest])
    with pytest.raises(ValueError, match="aggregator must be a rule that combines"):
        attacks.line_searched(family, gossip.aggregating(aggregation.median()), liars)


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
