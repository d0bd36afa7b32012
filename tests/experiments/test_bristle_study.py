"""The study of Bristle: who owns what, who hears whom, and claims that can fail."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import dflax as dx
from dflax import attacks
from experiments.studies.robust import bristle
from experiments.tasks import owned_classes as task


def features(count=400, width=8):
    generator = np.random.default_rng(0)
    labels = np.arange(count) % 10
    inputs = 3 * np.eye(10, width)[labels] + generator.standard_normal((count, width))
    part = dx.data.Dataset(
        jnp.asarray(inputs, jnp.float32), jnp.asarray(labels, jnp.int32), classes=10
    )
    return dx.data.Split(part, part)


@pytest.mark.slow
def test_peers_own_their_classes_and_liars_copies_with_turned_labels():
    data = features()
    own = task.lane(data, 4, "labels", seed=1, steps=2, batch=3)
    labels = np.asarray(own.source.data.labels)
    lists = own.source.partition.as_lists()
    train, test = task.drawn(np.asarray(data.labels), 4, 1)
    for peer, rows in enumerate(lists):
        kept = np.unique(rows)
        classes = np.arange(10) if task.IS_HOSTILE[peer] else np.arange(peer, peer + 4) % 10
        assert set(labels[kept]) == set(classes)
        np.testing.assert_array_equal(
            np.bincount(labels[rows], minlength=10)[classes], 200 // len(classes)
        )
        original = kept - 400 * task.IS_HOSTILE[peer]
        np.testing.assert_array_equal(np.sort(train[peer]), original)
        assert not set(train[peer]) & set(test[peer])
        turned = (np.asarray(data.labels)[original] + task.IS_HOSTILE[peer]) % 10
        np.testing.assert_array_equal(labels[kept], turned)
    np.testing.assert_array_equal(own.tests.mask.sum(1), np.where(task.IS_HOSTILE, 100, 40))
    assert own.tests.common[0, 3] == 1
    assert own.tests.common[0, 12] == 4


@pytest.mark.parametrize("attacked", [True, False])
def test_liars_hear_nobody_and_are_heard_where_they_attack(attacked):
    weights = task.hearing(attacked)
    heard = np.zeros((task.PEERS, task.PEERS))
    np.put_along_axis(heard, task.others(), weights, 1)
    assert (heard[10:] == 0).all()
    assert ((heard[:10, 10:] > 0) == attacked).all()
    np.testing.assert_allclose(heard[:10].sum(1), 14 / 15 if attacked else 9 / 10)


@pytest.mark.slow
def test_a_run_is_the_algorithms_own():
    own = task.lane(features(), 4, "noise", seed=2, steps=2, batch=3)
    make = bristle.methods(bristle.Config())["Bristle"]
    curve, told = jax.jit(lambda own: task.accuracies(own, make(own), 3))(own)
    method = make(own)
    state = method.init(own.key, {"kernel": jnp.zeros((8, 10))})
    roll = jax.jit(lambda state, source: dx.rollout(method, state, source, own.key, 3))
    state, metrics = roll(state, own.source)
    measure = dx.evaluation.on(task.LOSS, own.test)
    benign = jax.tree.map(lambda leaf: leaf[:10], state.clients.params)
    expected = jax.vmap(measure)(benign)["accuracy"].mean()
    np.testing.assert_allclose(curve[-1], expected, atol=1e-6)
    np.testing.assert_array_equal(metrics["models_sent"], [0, 140, 140])
    assert told["models sent"] == 280
    assert 0 < told["hostile drawn"] < 1


@pytest.mark.slow
@pytest.mark.some(2)
@pytest.mark.parametrize("place", range(len(task.LIES)))
def test_what_hostile_peers_send_is_the_lanes_lie(place):
    own = task.lane(
        features(), 4, task.LIES[place] if place else "labels", seed=2, steps=2, batch=3
    )
    assert own.sends == place
    liars = np.arange(10, 15)
    expected = (
        dx.channel.perfect(),
        attacks.one_sided(liars),
        attacks.against_krum(liars),
        attacks.against_trimmed_mean(liars),
    )[place]
    models = {"kernel": jax.random.normal(jax.random.key(1), (task.PEERS, 8, 10))}
    given = models, jnp.ones(task.PEERS), (), dx.channel.Sending(own.key, 0, jnp.arange(task.PEERS))
    found = jax.jit(lambda own: task.lying(own).apply(*given)[0])(own)["kernel"]
    sent = expected.apply(*given)[0]["kernel"]
    np.testing.assert_allclose(found, sent, rtol=1e-6)
    assert (np.abs(found - models["kernel"]).max((1, 2)) > 0).tolist() == [
        place > 0 and peer >= 10 for peer in range(task.PEERS)
    ]


def numbers(good):
    """What a study may find, in which everything holds, or nothing."""

    def curve(level):
        return np.full((3, 7, 4), level)

    ours = np.full((3, 7, 4), 0.9)
    ours[:, [1, 3, 4]] -= 0.01 if good else 0.1
    ours[:, 5], ours[:, 6] = (0.9, 0.7) if good else (0.8, 0.9)
    weights = np.zeros((3, 7)) if good else np.full((3, 7), 0.2)
    weights[:, 6] = 5.0 if good else 0.2
    medians = curve(0.35 if good else 0.6)
    medians[:, 6] = 0.72 if good else 0.6
    found = {
        "none": {"accuracy": curve(0.3)},
        "mean": {"accuracy": curve(0.05 if good else 0.5)},
        "median": {"accuracy": medians},
        "trimmed mean (BRIDGE)": {"accuracy": curve(0.05 if good else 0.6)},
        "Krum": {"accuracy": curve(0.4 if good else 0.85)},
        "MOZI": {"accuracy": curve(0.38)},
        "Bristle": {
            "accuracy": ours,
            "hostile foreign": weights,
            "hostile foreign in the end": weights,
        },
    }
    return found | {"Bristle, random draw": {"accuracy": ours[:, [3]] - (0.0 if good else 0.2)}}


@pytest.mark.parametrize("good", [True, False])
def test_the_claims_follow_from_the_numbers(good):
    claims = bristle.claims(numbers(good))
    assert [claim.holds for claim in claims] == [good] * len(claims)


def test_the_message_is_counted_from_shapes():
    (claim,) = bristle.on_bytes(bristle.Config()).claims
    assert claim.holds
    assert claim.ours[:2] == [4 * 8000, 4 * (260 + 12550 + 8000)]


@pytest.mark.slow
def test_every_baseline_runs_on_digits():
    config = bristle.Config(rounds=3, seeds=1, width=16)
    summary = bristle.on_digits(config)
    assert len(summary.methods) == 7 * len(bristle.SHOWN) + 1
    assert all(0 <= row["accuracy"] <= 1 for row in summary.methods.values())
