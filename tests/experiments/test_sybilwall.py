"""The study of Sybils: graphs, poisoned copies, runs that are the algorithm's, claims that can fail."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import dflax as dx
from dflax import attacks, evaluation, gossip, topology
from experiments.studies.robust import sybilwall
from experiments.tasks.sybils import FLIPPED, Peers, Setting, federation, graphs

SMALL = Setting(honest=8, radius=0.6, degree=3, epochs=1)


@pytest.mark.parametrize("density", [0.0, 0.5, 2.0])
def test_graphs_have_their_caps_and_all_seeds_one_shape(density):
    made = [graphs(SMALL, density, seed) for seed in range(3)]
    assert len({(graph.nodes, int(graph.in_degrees.max())) for graph in made}) == 1
    for graph in made:
        assert graph.connected
        honest = graph.links[(graph.links < 8).all(1)]
        assert np.bincount(honest.reshape(-1), minlength=8).max() == 3
        assert (graph.links >= 8).any(1).sum() == round(8 * density)


def test_sybils_own_swapped_copies_and_the_honest_what_is_true():
    data = dx.data.digits(seed=1)
    count, labels = len(data.train), np.asarray(data.labels)
    made = federation(SMALL, "label flip", 2, data, seed=1)
    owned = made.partition.as_lists()
    true = np.concatenate(owned[:8])
    assert true.max() < count
    assert len(np.unique(true)) == len(true) < count
    np.testing.assert_array_equal(np.sort(owned[8]), np.sort(owned[9]))
    copies = owned[8] - count
    assert set(np.flatnonzero(np.isin(labels, FLIPPED))) <= set(copies.tolist())
    swapped = np.asarray(made.data.labels)
    np.testing.assert_array_equal(swapped[:count], labels)
    both = np.isin(labels[copies], FLIPPED)
    np.testing.assert_array_equal(swapped[owned[8]][both], 1 - labels[copies][both])
    np.testing.assert_array_equal(swapped[owned[8]][~both], labels[copies][~both])
    # The adversary's share is what the honest do not have.
    rest = np.setdiff1d(np.arange(count), true)
    assert set(rest.tolist()) <= set(copies.tolist())


@pytest.mark.slow
def test_a_lane_is_the_algorithms_own_run():
    given = Peers(SMALL, "label flip", 1.0, [0, 1], rounds=3)

    def rule():
        return sybilwall.wall(8, given.nodes)

    found = given.run(rule, sybilwall.sybil_weight(8))
    data, key = dx.data.digits(seed=1), jax.random.key(1)
    graph = given.graphs[1]
    mixer = attacks.one_adversary(
        gossip.by_rule(topology.uniform(graph, row_stochastic=True), rule()), 8
    )
    algorithm = dx.decentralized.dfedavg(given.loss, optax.sgd(SMALL.rate), mixer)
    state = jax.jit(lambda: algorithm.init(key, given.start))()
    source = federation(SMALL, "label flip", given.nodes - 8, data, seed=1)
    measure = jax.jit(
        jax.vmap(lambda model: evaluation.on(given.loss, data.test)(model)["accuracy"])
    )
    step = jax.jit(algorithm.step)
    for t in range(3):
        state, metrics = step(state, source.draw(key, jnp.int32(t)))
        honest = jax.tree.map(lambda leaf: leaf[:8], state.clients.params)
        np.testing.assert_allclose(found["accuracy"][1, t], measure(honest).mean(), atol=0.01)
        assert found["sent"][1, t] == metrics["models_sent"]
        trust = np.asarray(state.clients.mixer[0].memory.rows.trust)[:8]
        share = [
            sum(trust[i, slot] for slot, j in enumerate(heard) if j >= 8) / (1 + trust[i].sum())
            for i in range(8)
            for heard in [graph.senders[graph.receivers == i]]
        ]
        np.testing.assert_allclose(found["sybil weight"][1, t], np.mean(share), atol=0.01)


@pytest.mark.parametrize("good", [True, False])
def test_the_claims_follow_from_the_numbers(good):
    """Attack success by rule, of two seeds that agree, and the accuracies without an attack."""

    def ends(success, accuracy=0.5):
        return {
            "attack_success": np.full((2, 1), success),
            "accuracy": np.full((2, 1), accuracy),
        }

    low, high = (0.05, 0.9) if good else (0.6, 0.4)
    names = (sybilwall.MEAN, sybilwall.LOCAL, sybilwall.ALONE, sybilwall.WALL)
    found = {
        1.0: dict(zip(names, map(ends, (high, high, high, low)), strict=True)),
        2.0: dict(zip(names, map(ends, (high, low - 0.04, low - 0.04, low - 0.04)), strict=True)),
        4.0: dict(zip(names, map(ends, (high, low, low, low if good else 0.9)), strict=True)),
        0.0: {
            sybilwall.MEAN: ends(0.0, 0.7),
            sybilwall.WALL: ends(0.0, 0.6 if good else 0.68),
        },
    }
    claims = sybilwall._claims(found)
    assert len(claims) == 7
    assert [claim.holds for claim in claims] == [good] * 7
