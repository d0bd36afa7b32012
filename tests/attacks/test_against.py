"""Attacks on one rule, against their definitions in NumPy, float64."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import dflax as dx
from dflax import aggregation, attacks
from dflax.aggregation import Combining
from dflax.channel import Sending

KEY = jax.random.key(0)
M = 8
# Of twelve clients eight are in the cohort; 1 and 9 are hostile, and 4 does not report.
SENDERS = jnp.asarray([0, 2, 9, 4, 5, 1, 7, 11])
HOSTILE, HONEST, LIARS = np.array([2, 5]), np.array([0, 1, 4, 6, 7]), (1, 9)
THERE = jnp.ones(M).at[3].set(0)


def messages():
    rng = np.random.default_rng(0)
    tree = {"b": rng.standard_normal(M), "w": 1 + rng.standard_normal((M, 2, 3))}
    tree["w"][3] = np.nan
    return tree


def flat(tree):
    return np.concatenate([np.reshape(leaf, (M, -1)) for leaf in jax.tree.leaves(tree)], axis=1)


def sent(channel, tree, senders=SENDERS, weights=THERE):
    tree = jax.tree.map(jnp.asarray, tree)
    return channel.apply(tree, weights, (), Sending(KEY, 0, senders))[0]


def scores(rows, faulty, fewer):
    distances = ((rows[:, None] - rows[None]) ** 2).sum(-1)
    others = max(len(rows) - faulty - fewer, 1)
    return np.sort(distances, axis=1)[:, 1 : 1 + others].sum(1)


def longest(known, liars, fewer):
    """The paper's search: halve until Krum chooses a forged message."""
    size = known.shape[1]
    near = scores(known, 0, fewer).min()
    count = len(known) + liars
    length = np.sqrt(near / max(count - 2 * liars - 1, 1) / size)
    length += np.linalg.norm(known, axis=1).max() / np.sqrt(size)
    while length >= 1e-5:
        forged = np.tile(-length * np.sign(known.mean(0)), (liars, 1))
        if scores(np.concatenate([known, forged]), liars, fewer).argmin() >= len(known):
            break
        length /= 2
    return length


@pytest.mark.some(2)
@pytest.mark.parametrize("others", ["m-f-2", "m-f-1"])
@pytest.mark.parametrize("knows", ["all", "own"])
def test_krum_chooses_what_is_as_far_back_as_it_can_be(others, knows):
    tree = messages()
    channel = attacks.against_krum(LIARS, others=others, knows=knows)
    with jax.enable_x64(True):
        out = flat(jax.jit(functools.partial(sent, channel))(tree))
        rows = flat(tree)
        known = rows[HONEST if knows == "all" else HOSTILE]
        length = longest(known, 2, 2 if others == "m-f-2" else 1)
        expected = -length * np.sign(known.mean(0))
        np.testing.assert_allclose(out[HOSTILE], [expected] * 2, rtol=1e-9)
        left = np.setdiff1d(np.arange(M), HOSTILE)
        np.testing.assert_array_equal(out[left], rows[left])
        if knows == "all":
            rule = aggregation.krum(2, others="m-f-1")
            chosen, _, _ = rule.apply(jnp.asarray(out), THERE, (), Combining(KEY))
            assert others == "m-f-2" or np.allclose(chosen, expected)


@pytest.mark.parametrize("knows", ["all", "own"])
def test_values_beyond_all_known_ones(knows):
    tree = messages()
    tree["w"][:, 0] -= 4
    tree["w"][:, 1] += 4
    with jax.enable_x64(True):
        channel = attacks.against_trimmed_mean(LIARS, 3.0, knows=knows)
        out = flat(jax.jit(functools.partial(sent, channel))(tree))
    rows = flat(tree)
    known = rows[HONEST if knows == "all" else HOSTILE]
    low, high = known.min(0), known.max(0)
    down = known.mean(0) >= 0
    near = np.where(down, low, high)
    far = np.where(down == (near < 0), 3 * near, near / 3)
    for row in out[HOSTILE]:
        share = (row - near) / (far - near)
        assert ((share >= -1e-9) & (share <= 1 + 1e-9)).all()
        assert (np.where(down, row <= low, row >= high)).all()
    assert np.abs(out[HOSTILE[0]] - out[HOSTILE[1]]).min() > 0
    assert {bool(one) for one in down} == {True, False}
    assert {bool(one) for one in near > 0} == {True, False}
    left = np.setdiff1d(np.arange(M), HOSTILE)
    np.testing.assert_array_equal(out[left], rows[left])


@pytest.mark.parametrize("make", [attacks.against_krum, attacks.against_trimmed_mean])
def test_who_knows_nobody_sends_nothing_and_who_is_not_sampled_does_not_lie(make):
    tree = messages()
    alone = jnp.zeros(M).at[HOSTILE].set(1)
    run = jax.jit(lambda who, weights: sent(make(who), tree, weights=weights))
    assert not flat(run(jnp.asarray(LIARS), alone))[HOSTILE].any()
    absent = flat(run(jnp.asarray([3, 6]), THERE))
    np.testing.assert_array_equal(absent, flat(tree).astype(np.float32))


@pytest.mark.slow
def test_each_attack_hurts_its_rule_most():
    split = dx.data.digits()
    part = dx.data.iid(len(split.train), clients=15, seed=0)
    source = dx.Federation(split.train, part, local_steps=1, batch_size=16)
    start = {"w": jnp.zeros((64, 10)), "b": jnp.zeros(10)}
    loss = dx.losses.classification(
        lambda params, inputs: inputs.reshape(len(inputs), -1) @ params["w"] + params["b"]
    )
    measure = dx.evaluation.server_model(dx.evaluation.on(loss, split.test))

    def accuracy(rule, channel):
        algorithm = dx.server.fedavg(loss, optax.sgd(0.2), aggregator=rule, channel=channel)
        rounds = jax.jit(functools.partial(dx.rollout, algorithm, rounds=40))
        state, _ = rounds(algorithm.init(KEY, start), source, KEY)
        return float(measure(state)["accuracy"])

    krum, trimmed = aggregation.krum(3), aggregation.trimmed_mean(3)
    one, other = attacks.against_krum((1, 5, 9)), attacks.against_trimmed_mean((1, 5, 9))
    assert accuracy(krum, None) > 0.8
    assert accuracy(krum, one) < 0.2
    assert accuracy(krum, other) > 0.75
    assert accuracy(trimmed, other) < min(accuracy(trimmed, None), accuracy(trimmed, one)) - 0.01


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: attacks.against_krum(1, others="m"), "others must be one of"),
        (lambda: attacks.against_krum(1, least=0.0), "least must be a finite number"),
        (lambda: attacks.against_krum(1, knows="some"), "knows must be one of"),
        (lambda: attacks.against_trimmed_mean(1, 1.0), "factor must be a finite number"),
        (
            lambda: sent(attacks.against_krum(1), messages(), senders=None),
            "senders must be the clients' numbers",
        ),
    ],
)
def test_refusals(make, message):
    with pytest.raises((TypeError, ValueError), match=message):
        make()
