"""Closed forms of entering a swarm, and how reputation moves."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import binom

from dflax import inference
from dflax.inference.swarm.economics import earned
from dflax.inference.swarm.ledger import Signals, moved, opened, slashed, standing


def test_who_passes_is_binomial():
    p = np.array([0.3, 0.5, 0.6, 0.8])
    found = inference.pass_probability(20, 0.6, p)
    np.testing.assert_allclose(found, [0.0051, 0.2517, 0.5956, 0.9900], atol=6e-5)
    for questions, threshold in ((1, 1.0), (7, 0.5), (20, 0.6), (50, 0.9), (10, 0.0)):
        tail = binom.sf(np.ceil(threshold * questions - 1e-9) - 1, questions, p)
        ours = inference.pass_probability(questions, threshold, p)
        np.testing.assert_allclose(ours, tail, rtol=2e-4, atol=1e-6)
    cost = inference.entry_cost(20, 0.6, p, cost=2.0, stake=0.5)
    np.testing.assert_allclose(cost, 40 / binom.sf(11, 20, p) + 0.5, rtol=2e-4)
    assert inference.entry_cost(20, 0.6, 0.0) == np.inf


def test_reputation_is_earned_as_slowly_as_the_closed_form_says():
    np.testing.assert_allclose(inference.rounds_to_reputation(0.8, 0.5), 6.04, atol=5e-3)
    assert inference.rounds_to_reputation(0.5, 0.5) == np.inf
    assert inference.rounds_to_reputation(0.2, 0.5, start=0.6) == 0
    track = inference.dual_track(0.0, start=0.1)
    signals = Signals(np.full(3, 0.8), np.zeros(3), np.zeros(3, bool))
    there = np.array([True, True, False])

    @jax.jit
    def rounds(ledger):
        def one(ledger, _):
            after = moved(ledger, track, signals, there, jnp.int32(0))
            return after, (standing(after, track), after.uncertainty, after.by_domain[:, 0])

        return jax.lax.scan(one, ledger, length=60)

    ledger, (reputation, uncertainty, domain) = rounds(opened(3, track, admitted=True))
    t = np.arange(1, 61)
    np.testing.assert_allclose(reputation[:, 0], 0.8 - 0.7 * 0.85**t, rtol=1e-5)
    np.testing.assert_allclose(reputation[:, 2], 0.1 * 0.98**t, rtol=1e-5)
    np.testing.assert_allclose(uncertainty[:, 1], np.maximum(0.05, 0.4 * 0.95**t), rtol=1e-5)
    np.testing.assert_array_equal(uncertainty[:, 2], np.float32(0.4))
    np.testing.assert_array_equal(ledger.idle, [0, 0, 60])
    # Who judged nothing keeps its track as a judge; of one domain the track is the whole one.
    np.testing.assert_allclose(ledger.ranking[:2], 0.1)
    np.testing.assert_array_equal(domain, reputation)
    wanted = inference.rounds_to_reputation(0.8, 0.5, start=0.1)
    assert np.argmax(reputation[:, 0] >= 0.5) + 1 == np.ceil(wanted)


def test_domains_have_tracks_of_their_own():
    track = inference.dual_track(0.3, domains=2)
    signals = Signals(np.array([1.0, 0.0]), np.array([0.9, 0.9]), np.ones(2, bool))
    ledger = opened(2, track, admitted=True)
    after = jax.jit(lambda own, d: moved(own, track, signals, np.ones(2, bool), d))(ledger, 1)
    np.testing.assert_allclose(after.by_domain, [[0.5, 0.575], [0.5, 0.425]], rtol=1e-6)
    np.testing.assert_allclose(after.generation, [0.575, 0.425], rtol=1e-6)
    np.testing.assert_allclose(after.ranking, 0.56, rtol=1e-6)
    np.testing.assert_allclose(standing(after, track)[0], 0.3 * 0.56 + 0.7 * 0.575, rtol=1e-6)


def test_who_is_slashed_loses_everything():
    ledger = opened(3, inference.dual_track(), admitted=True)._replace(stake=np.ones(3))
    after = slashed(ledger, np.array([False, True, False]))
    for values in (after.generation, after.ranking, after.by_domain[:, 0], after.stake):
        assert values[1] == 0
        assert (np.asarray(values)[[0, 2]] > 0).all()
    np.testing.assert_array_equal(after.active, ~np.asarray(after.barred))


def test_the_pool_is_paid_whole():
    pay = inference.round_rewards(10.0, winner=0.6, cost=1.5)
    there = np.array([True, True, False, True])
    for reputation in (np.array([0.1, 0.2, 0.9, 0.7]), np.zeros(4)):
        gains = np.asarray(earned(pay, 3, reputation, there))
        np.testing.assert_allclose(gains.sum(), 10 - 3 * 1.5, rtol=1e-5)
        assert gains[2] == 0
    np.testing.assert_allclose(gains[0], 4 / 3 - 1.5, rtol=1e-5)
    gains = np.asarray(earned(pay, 0, np.array([0.1, 0.2, 0.9, 0.7]), there))
    np.testing.assert_allclose(gains, [6.4 - 1.5, 0.8 - 1.5, 0, 2.8 - 1.5], rtol=1e-5, atol=1e-6)


def test_many_identities_pay_up_to_the_boundary():
    entry = inference.entry_cost(20, 0.6, 0.5)
    # (r - 1) / 0.05 = entry.
    boundary = 1 + 0.05 * float(entry)
    for reward, sign in ((0.99 * boundary, -1), (1.01 * boundary, 1)):
        profit = inference.sybil_profit(8, reward, entry, discount=0.95)
        assert np.sign(profit) == sign
        rounds = 0.95 ** np.arange(2000)
        summed = 8 * (np.sum(rounds * (reward - 1)) - float(entry))
        np.testing.assert_allclose(profit, summed, rtol=2e-3, atol=1e-2)
    later = inference.sybil_profit(8, boundary, entry, discount=0.95, warm_up=6.0)
    np.testing.assert_allclose(
        later, 8 * ((0.95**6 * boundary - 1) / 0.05 - float(entry)), rtol=1e-4
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: inference.pass_probability(0, 0.6, 0.5), "questions must be"),
        (lambda: inference.pass_probability(20, 1.6, 0.5), "threshold must be"),
        (lambda: inference.entry_cost(20, 0.6, 0.5, cost=-1.0), "cost must be"),
        (lambda: inference.rounds_to_reputation(0.8, 0.5, rate=1.0), "rate must be"),
        (lambda: inference.sybil_profit(1, 1.0, 1.0, discount=1.0), "discount must be"),
        (lambda: inference.dual_track(1.4), "share must be"),
        (lambda: inference.dual_track(domains=0), "domains must be"),
        (lambda: inference.capability_test(2.0), "threshold must be"),
        (lambda: inference.round_rewards(-1.0), "pool must be"),
    ],
)
def test_refusals(make, message):
    with pytest.raises(ValueError, match=message):
        make()
