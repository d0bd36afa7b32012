"""The setting of MoNNA's study: runs of the algorithms, and the library's attacks."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import dflax as dx
from dflax import attacks, evaluation
from experiments.studies.robust import _monna_gradients as gradients_part
from experiments.studies.robust import monna
from experiments.tasks import robust_peers
from experiments.tasks.robust_peers import ATTACKS, HONEST, HOSTILE, PEERS

KEY = jax.random.key(0)


@pytest.mark.slow
def test_attacks_with_traced_numbers_are_the_librarys():
    messages = {"w": jax.random.normal(KEY, (PEERS, 4, 2)), "b": jax.random.normal(KEY, (PEERS,))}
    sending = dx.channel.Sending(KEY, jnp.int32(0), jnp.arange(PEERS))

    def sent(channel):
        return channel.apply(messages, jnp.ones(PEERS), (), sending)[0]

    known = {
        "sign flip": attacks.inner_product(HOSTILE, 1.0),
        "ALIE": attacks.little_is_enough(HOSTILE, 1.5),
    }
    for name, channel in known.items():
        nothing = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape[1:]), messages)
        numbers = jax.tree.map(jnp.float32, ATTACKS[name])
        found = jax.jit(lambda numbers, own=nothing: sent(robust_peers.liars(numbers, own)))(
            numbers
        )
        expected = sent(channel)
        jax.tree.map(
            functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6), found, expected
        )


@pytest.mark.slow
def test_flipped_labels_pull_the_honest_mean_along_their_gradient():
    given = robust_peers.peers([0])
    own = jax.tree.map(lambda leaf: leaf[0], given.sources.own)
    source = given.sources.source(own)
    alone = functools.partial(monna.momentum(dx.gossip.identity(PEERS)), given.loss, 0.0)
    method = robust_peers.under_attack(given.loss, alone, ATTACKS["label flip"], robust_peers.back)
    start = {"Dense_0": {"kernel": jnp.zeros((64, 10)), "bias": jnp.zeros(10)}}
    state = method.init(KEY, start)
    drawn = source.draw(KEY, 0)
    after = jax.jit(method.step)(state, drawn)[0].clients.params["Dense_0"]["bias"]
    labels = np.asarray(given.data.train.labels)[np.asarray(drawn.assignments.minibatches)][:, 0]
    # From 0 a bias goes down 0.75 (1/10 - share of the class).
    share = np.stack([(labels == c).mean(1) for c in range(10)], axis=1)
    steps = 0.75 * (share - 0.1)
    np.testing.assert_allclose(after[:HONEST], steps[:HONEST], atol=1e-6)
    wrong = steps[:HONEST].mean(0) + steps[:HONEST, ::-1].mean(0)
    np.testing.assert_allclose(after[HONEST:], np.tile(wrong, (3, 1)), atol=1e-6)


@pytest.mark.slow
def test_a_lane_is_a_run_of_the_recipe():
    given = robust_peers.peers([3, 4])
    method = monna.momentum(monna.mixer(monna.rules()["NNA"][0], robust_peers.FAULTY))
    point = (1, 0.9, ATTACKS["sign flip"])
    found = robust_peers.run(given, method, [(0, 0.0, ATTACKS["ALIE"]), point], 20)
    algorithm = method(given.loss, 0.9, attacks.inner_product(HOSTILE, 1.0))
    own = jax.tree.map(lambda leaf: leaf[1], given.sources.own)
    source, key = given.sources.source(own), jax.random.key(4)
    start = {"Dense_0": {"kernel": jnp.zeros((64, 10)), "bias": jnp.zeros(10)}}
    run = jax.jit(functools.partial(dx.rollout, algorithm, rounds=20))
    state, metrics = run(algorithm.init(key, start), source, key)
    honest = evaluation.models_of(HOSTILE, but=True)
    apart = evaluation.disagreement(models=honest)(state)["consensus_distance"]
    np.testing.assert_allclose(found.apart[1, -1], apart, rtol=1e-3)
    np.testing.assert_allclose(found.used[1], metrics["used_of_watched"], atol=1e-6)
    assert len(jax.tree.leaves(honest(state))[0]) == HONEST


def test_learn_spends_no_more_gradients_than_the_others():
    config = monna.Config()
    steps = monna.learn_rounds(config) // 2
    assert 0.9 < steps * (steps + 1) / 2 / (monna.BATCH * config.rounds) <= 1


def test_honest_peers_are_the_same_among_any_number_of_faulty_ones():
    several = [robust_peers.peers([5], faulty=faulty) for faulty in (0, 1, 5)]
    lists, drawn = [], []
    for given, faulty in zip(several, (0, 1, 5), strict=True):
        source = given.sources.source(jax.tree.map(lambda leaf: leaf[0], given.sources.own))
        assert source.clients == HONEST + faulty
        assert given.hostile == tuple(range(HONEST, HONEST + faulty))
        lists.append(np.stack(source.partition.as_lists()[:HONEST]))
        drawn.append(np.asarray(source.draw(given.keys[0], 3).assignments.minibatches[:HONEST]))
    for other in (1, 2):
        np.testing.assert_array_equal(lists[0], lists[other])
        np.testing.assert_array_equal(drawn[0], drawn[other])


@pytest.mark.slow
@pytest.mark.parametrize("faulty", [0, 1, 5])
def test_everyone_hears_as_many_as_are_honest_and_all_that_are_not(faulty):
    topology = robust_peers.heard(faulty)
    if not faulty:
        assert topology.nodes == HONEST
        assert set(topology.in_degrees) == {HONEST - 1}
        return
    heard = np.asarray(topology.draw(topology.tables, KEY, jnp.int32(0))) > 0
    np.fill_diagonal(heard, True)
    assert heard[:HONEST].sum(1).tolist() == [HONEST] * HONEST
    assert heard[:HONEST, HONEST:].all()


def needed(gradients, spent=9591):
    """Runs that reach the target after so many gradients, in every attack and seed."""
    gradients = np.asarray(gradients, float)
    accuracy = np.where(np.isfinite(gradients), 0.9, 0.7)[..., None]
    return gradients_part.Needed(accuracy, np.array([spent]), gradients)


@pytest.mark.parametrize("good", [True, False])
def test_what_is_said_of_gradients_follows_from_them(good):
    faulty = (0, 1, 3, 4)
    alone = np.full((1, 3), 640.0)
    ours = {f: needed(np.full((4, 3), 640.0 * (1 + (0.1 if good else 2) * f))) for f in faulty}
    theirs = {f: needed(np.full((4, 3), 3000.0 if good else 100.0)) for f in faulty}
    theirs[3] = needed(np.full((4, 3), 6000.0 if good else 200.0))
    ours[4] = needed(np.full((4, 3), np.inf if good else 640.0))
    ours[0], theirs[0] = needed(alone), needed(alone)
    claims = gradients_part.claims({"MoNNA": ours, "LEARN": theirs})
    assert [claim.holds for claim in claims] == [good] * 6


def test_learn_spends_one_more_in_every_step():
    rounds = np.array([2, 4, 10])
    assert gradients_part.spent_by("LEARN", rounds).tolist() == [1, 3, 15]
    assert gradients_part.spent_by("MoNNA", rounds).tolist() == [32, 64, 160]
    config = monna.Config()
    for method in gradients_part.METHODS:
        rounds = gradients_part.rounds_of(method, config)
        assert rounds % gradients_part.EVERY[method] == 0
        spent = gradients_part.spent_by(method, np.array([rounds]))[0]
        most = {"MoNNA": 1, "LEARN": 4}[method] * gradients_part.BATCH * config.rounds // 2
        assert 0.9 * most < spent <= most
