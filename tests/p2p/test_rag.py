"""Sources with scores: importance, updates, ledgers, and what is learnt in a polluted world."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import dflax as dx
from dflax import p2p

KEY = jax.random.key(4)
READ = p2p.vote_reader((1.0, 1.2, 1.4))
WORLD = p2p.polluted_world()


def phi(rule, claims, present=None):
    claims = jnp.asarray(claims)
    present = jnp.ones(len(claims), bool) if present is None else jnp.asarray(present)
    answer = READ(claims, present, KEY)
    subsets = rule.subsets(len(claims), KEY)
    same = jnp.array([READ(claims, present & subset, KEY) == answer for subset in subsets])
    return np.asarray(rule.values(subsets, same.astype(jnp.float32), present))


def test_the_reader_weighs_the_last_most():
    for claims, answer in (
        ((0, 0, 3), 0),
        ((0, 3, 3), 3),
        ((0, 1, 2), 2),
        ((5, -1, -1), 5),
        ((-1, -1, -1), -1),
    ):
        assert int(READ(jnp.array(claims), jnp.ones(3, bool), KEY)) == answer
    assert int(READ(jnp.array([0, 1, 2]), jnp.array([True, True, False]), KEY)) == 1


def test_shapleys_value_by_hand_and_by_permutations():
    np.testing.assert_allclose(phi(p2p.shapley(), (0, 0, 3)), [2 / 3, 2 / 3, -1 / 3], atol=1e-6)
    np.testing.assert_allclose(phi(p2p.shapley(), (3, 0, 0)), [0, 0.5, 0.5], atol=1e-6)
    for claims in itertools.product((-1, 0, 1), repeat=3):
        answer = READ(jnp.array(claims), jnp.ones(3, bool), KEY)

        def value(kept, claims=claims, answer=answer):
            mask = jnp.isin(jnp.arange(3), jnp.array([*kept, 9]))
            return float(READ(jnp.array(claims), mask, KEY) == answer)

        gains = np.zeros(3)
        for order in itertools.permutations(range(3)):
            for place, j in enumerate(order):
                gains[j] += value(list(order[: place + 1])) - value(list(order[:place]))
        np.testing.assert_allclose(phi(p2p.shapley(), claims), gains / 6, atol=1e-6)


@pytest.mark.slow
def test_leaving_one_out_is_its_closed_form():
    np.testing.assert_allclose(phi(p2p.leave_one_out(), (0, 0, 3)), [0.5, 0.5, 0], atol=1e-6)
    np.testing.assert_allclose(phi(p2p.leave_one_out(), (3, 0, 0)), [1 / 3] * 3, atol=1e-6)
    # Two contexts alone: the third is not there.
    half = phi(p2p.leave_one_out(), (0, 0, 3), (True, True, False))
    np.testing.assert_allclose(half, [0.5, 0.5, 0], atol=1e-6)
    rule = p2p.leave_one_out()
    rng = np.random.default_rng(0)
    for m in (3, 5, 22):
        s = rng.random(m).astype(np.float32)
        found = rule.values(rule.subsets(m, KEY), jnp.asarray(s), jnp.ones(m, bool))
        np.testing.assert_allclose(found, (s.max() - s) / (m * s.max() - s.sum()), rtol=1e-4)
        even = rule.values(rule.subsets(m, KEY), jnp.full(m, 0.7), jnp.ones(m, bool))
        np.testing.assert_allclose(even, 1 / m, rtol=1e-5)
        assert round(100 / 22) == 5
    more = p2p.leave_one_out(extra=50)
    assert more.subsets(3, KEY).shape == (53, 3)


def offer(claims, scores, answer=0):
    """One document of each source."""
    columns = np.asarray(scores, np.float32)[:, None]
    nothing = np.zeros_like(columns)
    return p2p.Candidates(
        jnp.asarray(columns),
        nothing,
        nothing,
        jnp.asarray(claims)[:, None],
        jnp.ones(columns.shape, bool),
        jnp.int32(answer),
    )


def asked(candidates, **options):
    algorithm = p2p.drag(
        candidates.claim.shape[0], **({"text_weight": 0.0, "prior_weight": 0.0} | options)
    )
    state = algorithm.init(KEY)
    return algorithm.step(state, (candidates, KEY))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("claims", "answer", "reliability", "usefulness"),
    [
        # All three claim the right answer; nothing changes it: 33 each.
        ([0, 0, 0], 0, [33, 33, 33], [33, 33, 33]),
        # All three claim a wrong one.
        ([4, 4, 4], 0, [-33, -33, -33], [33, 33, 33]),
        # The first two, worst first, are outvoted... by no one: 0 + 0 beats 3.
        ([0, 0, 3], 0, [50, 50, 0], [50, 50, 0]),
        # Nobody claims anything: unknown, which grounds nothing and is wrong.
        ([-1, -1, -1], 0, [0, 0, 0], [-33, -33, -33]),
        # No answer is known: nothing changes.
        ([0, 0, 3], -1, [0, 0, 0], [0, 0, 0]),
    ],
)
def test_scores_change_by_what_was_claimed_and_right(claims, answer, reliability, usefulness):
    # Source 2 is best, which is read last.
    state, metrics = asked(offer(claims, [0.1, 0.2, 0.3], answer), weight=0.0)
    np.testing.assert_array_equal(state.ledger.reliability - 10_000, reliability)
    np.testing.assert_array_equal(state.ledger.usefulness - 10_000, usefulness)
    np.testing.assert_array_equal(metrics["used"], [1, 1, 1])
    assert float(metrics["right"]) == (answer == 0 and 0 in claims)


@pytest.mark.slow
def test_ranks_are_those_of_the_formula():
    claims, scores = [1, 2, 3, 4], [0.4, 0.3, 0.2, 0.1]
    for weight, reliability, answer in (
        (0.0, [0, 0, 0, 9], 1),
        (1.0, [0, 5, 0, 9], 4),
        (0.5, [7, 7, 7, 7], 1),
        # f is 1, 2/3, 1/3, 0 and trust 0, 1, 0, .2.
        (0.5, [0, 5, 0, 1], 2),
    ):
        algorithm = p2p.drag(4, kept=1, weight=weight, text_weight=0.0, prior_weight=0.0)
        state = algorithm.init(KEY)
        state = state._replace(ledger=state.ledger._replace(reliability=jnp.array(reliability)))
        _, metrics = algorithm.step(state, (offer(claims, scores), KEY))
        assert int(metrics["answer"]) == answer, (weight, reliability)
    trust = p2p.softmax_trust(2.0)(jnp.array([4, 2, 9]), jnp.array([True, True, False]))
    np.testing.assert_allclose(trust, [1.0, np.exp(-1.0), 0.0], rtol=1e-6)


def test_sources_are_asked_by_their_usefulness():
    algorithm = p2p.drag(4, asked=1, kept=1)
    state = algorithm.init(KEY)
    scores = jnp.array([3, 1, 0, -5])
    state = state._replace(ledger=state.ledger._replace(usefulness=scores))
    round = offer([1, 2, 3, 4], [0.1, 0.2, 0.3, 0.4], -1)
    keys = jax.random.split(KEY, 2000)
    used = jax.jit(jax.vmap(lambda key: algorithm.step(state, (round, key))[1]["used"]))(keys)
    np.testing.assert_allclose(used.mean(0), [0.75, 0.25, 0, 0], atol=0.04)


def test_gas_is_affine_and_a_batch_saves_almost_half():
    start = p2p.ledger(20)
    spent = []
    for n in (0, 1, 2, 5, 10, 15, 20):
        who = jnp.arange(20) < n
        after = p2p.written(start, jnp.full(20, 3), jnp.full(20, -2), who, p2p.gas())
        spent.append(float(after.gas))
        np.testing.assert_array_equal(after.reliability, np.where(who, 10_003, 10_000))
        np.testing.assert_array_equal(after.stamp, np.where(who, 1, -1))
        assert int(after.block) == (n > 0)
    # Measured with a contract: within .2 %.
    np.testing.assert_allclose(spent, [0, 49335, 74072, 148331, 272064, 395821, 519554], rtol=2e-3)
    assert 1 - spent[4] / 10 / spent[1] > 0.4


def test_a_transaction_with_a_wrong_signature_is_refused_whole():
    start = p2p.ledger(3)
    who, change = jnp.array([True, True, False]), jnp.array([5, 6, 7])

    def after(kept, signed):
        return p2p.written(kept, change, change, who, p2p.gas(), jnp.array(signed))

    once = after(start, [0, 0, -1])
    np.testing.assert_array_equal(once.reliability, [10_005, 10_006, 10_000])
    np.testing.assert_array_equal(once.nonce, [1, 1, 0])
    for signed in ([0, 0, -1], [1, -1, 0], [1, 0, 0]):
        refused = after(once, signed)
        np.testing.assert_array_equal(refused.reliability, once.reliability)
        assert int(refused.refused) == 1
        assert int(refused.block) == int(once.block)
    assert int(after(once, [1, 1, 0]).refused) == 0


@pytest.mark.slow
def test_a_contract_keeps_the_same_scores_and_refuses_what_is_not_signed():
    pytest.importorskip("eth_tester")
    pytest.importorskip("vyper")
    pytest.importorskip("web3")
    from dflax.p2p.rag.contract import ScoreContract

    chain, query = ScoreContract(3), bytes(32)
    kept = p2p.ledger(3)
    for who, reliability, usefulness in (([0, 2], [5, -7], [5, 7]), ([1, 2], [-3, 1], [3, 1])):
        receipt = chain.update(query, who, reliability, usefulness)
        mask = jnp.isin(jnp.arange(3), jnp.array(who))
        full = [
            jnp.zeros(3, jnp.int32).at[jnp.array(who)].set(jnp.array(x))
            for x in (reliability, usefulness)
        ]
        kept = p2p.written(kept, *full, mask, p2p.gas())
        assert len(receipt.events) == 2
    np.testing.assert_array_equal(chain.scores(), [kept.reliability, kept.usefulness])
    signatures = chain.signed(query, [0])
    chain.update(query, [0], [1], [1], signatures)
    before = np.array(chain.scores())
    for sources, given in (
        ([0], signatures),
        ([0, 1], chain.signed(query, [0, 0])),
        ([1, 0], chain.signed(bytes(31) + b"1", [1, 0])),
    ):
        many = [1] * len(sources)
        with pytest.raises(ValueError, match=r"refuses the transaction: .*not signed"):
            chain.update(query, sources, many, many, given)
    np.testing.assert_array_equal(chain.scores(), before)


@jax.jit
def learnt(weight, every_two):
    def run(every):
        algorithm = p2p.drag(6, weight=weight, text_weight=0.0, prior_weight=0.0, write_every=every)
        return dx.rollout(algorithm, algorithm.init(KEY), WORLD, KEY, 400)

    return run(1), run(4)


@pytest.mark.slow
def test_the_clean_source_is_found_and_batches_lose_nothing():
    (state, metrics), (later, batched) = learnt(0.25, True)
    assert int(jnp.argmax(state.ledger.reliability)) == 0
    assert (np.asarray(state.ledger.reliability[4:]) < 10_000).all()
    (_, central), _ = learnt(0.0, True)
    assert float(metrics["right"].mean()) > float(central["right"].mean()) + 0.15
    # At weight 0 scores do not matter, so both write the same sums.
    (now, _), (then, _) = learnt(0.0, True)
    np.testing.assert_array_equal(now.ledger.reliability, then.ledger.reliability)
    np.testing.assert_array_equal(now.ledger.usefulness, then.ledger.usefulness)
    assert float(then.ledger.gas) < 0.6 * float(now.ledger.gas)
    assert int(later.ledger.block) == 100
    assert (np.asarray(batched["gas"])[:3] == 0).all()


@pytest.mark.slow
@pytest.mark.parametrize("devices", [1, 8])
def test_weights_are_swept(devices):
    swept = dx.sweep(
        lambda weight: p2p.drag(6, weight=weight, text_weight=0.0, prior_weight=0.0),
        lambda algorithm, key: algorithm.init(key),
        WORLD,
        grid={"weight": [0.0, 0.25, 0.5, 1.0]},
        seeds=2,
        key=KEY,
        rounds=20,
        devices=jax.devices()[:devices],
        progress=False,
    )
    own = jax.random.fold_in(KEY, 1)
    algorithm = p2p.drag(6, weight=0.25, text_weight=0.0, prior_weight=0.0)
    _, alone = jax.jit(lambda s: dx.rollout(algorithm, s, WORLD, own, 20))(algorithm.init(own))
    np.testing.assert_array_equal(swept.metrics["answer"][1, 1], alone["answer"])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: p2p.drag(6, asked=7), "asked must be"),
        (lambda: p2p.drag(6, weight=1.5), "weight must be"),
        (lambda: p2p.drag(6, kept=0), "kept must be"),
        (lambda: asked(offer([0, 0], [0.1, 0.2])), "kept must be at most the 2 documents"),
        (lambda: p2p.polluted_world((0.0, 2.0)), "pollution must be"),
        (lambda: p2p.vote_reader(()), "weights must be"),
        (lambda: p2p.ledger(0), "sources must be"),
        (lambda: p2p.softmax_trust(0.0), "temperature must be"),
    ],
)
def test_wrong_arguments_are_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
