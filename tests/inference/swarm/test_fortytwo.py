"""Whole rounds: oracles without noise, weights, audits, tests, absence, devices and sweeps."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import binom, kendalltau
from tasks import assert_trees_close

import dflax as dx
from dflax import inference, participation
from dflax import verified_inference as vi

KEY = jax.random.key(5)
N = 8
ASK = inference.latent_questions()
SOURCE = inference.Questions(N, ASK)
TRACK = {"share": 0.5, "decay": 0.0}


@functools.cache
def program(rounds=60, nodes=N, exam=0, soft=False, **static):
    """A compiled run of real hyper-parameters, shared by tests."""

    @jax.jit
    def simulate(liars, absent, real, track, key):
        swarm = inference.latent_swarm(
            nodes, liars=liars, sharpness=real["sharpness"], noise=real["noise"]
        )
        algorithm = inference.fortytwo(
            swarm,
            pairs=2 * nodes,
            gamma=real["gamma"],
            audit=real["audit"],
            track=inference.dual_track(**track),
            beside={"unweighted": inference.by_strength(weighted=False)},
            soft=soft,
            **static,
        )
        source = inference.Questions(
            nodes, ASK, participation=participation.dropout(participation.everyone(), absent),
            exam=exam,
        )  # fmt: skip
        return dx.rollout(algorithm, algorithm.init(key), source, key, rounds)

    def run(liars=0, absent=0.0, key=KEY, track=TRACK, **real):
        named = {"sharpness": 1.0, "noise": 0.3, "gamma": 1.0, "audit": 0.0} | real
        made = simulate(jnp.arange(nodes) >= nodes - liars, absent, named, track, key)
        return jax.tree.map(np.asarray, made)

    return run


@pytest.mark.slow
def test_sharp_judges_find_a_right_answer_wherever_there_is_one():
    """However many answer the attractor: without noise of quality nothing is missed."""
    _, metrics = program()(sharpness=1e4, noise=0.0)
    some = metrics["right"].any(1)
    assert 20 < some.sum() < 60
    np.testing.assert_array_equal(metrics["correct"], some)
    assert (metrics["right"].sum(1) == 1).any()
    # Liars without weight change nothing: three of eight, whose reputation begins at 0.
    own, liars = vi.never_removed(), np.arange(N) >= N - 3
    swarm = inference.latent_swarm(N, sharpness=1e4, noise=0.0, liars=liars)
    algorithm = inference.fortytwo(swarm, hidden_test=own, audit=0.0)
    state = jax.jit(algorithm.init)(KEY)
    ledger = state.clients.ledger
    ledger = ledger._replace(
        **{
            name: jnp.where(liars if value.ndim == 1 else liars[:, None], 0.0, value)
            for name, value in ledger._asdict().items()
            if name in ("generation", "ranking", "by_domain")
        }
    )
    state = state._replace(clients=state.clients._replace(ledger=ledger))
    # Reputations are frozen: queries side by side.
    ask = jax.jit(jax.vmap(lambda t: algorithm.step(state, SOURCE.draw(KEY, t))[1]))
    metrics = ask(jnp.arange(100))
    np.testing.assert_array_equal(metrics["correct"], metrics["right"].any(1))
    np.testing.assert_array_equal(metrics["liar_share"], 0)


@pytest.mark.slow
def test_without_weights_or_with_equal_ones_the_ranking_is_the_unweighted_one():
    _, metrics = program()(liars=3, gamma=0.0)
    np.testing.assert_array_equal(metrics["correct"], metrics["unweighted"])
    frozen = {**TRACK, "answering": 0.0, "judging": 0.0}
    state, metrics = program()(liars=3, track=frozen)
    np.testing.assert_array_equal(metrics["correct"], metrics["unweighted"])
    np.testing.assert_array_equal(state.clients.ledger.ranking, 0.5)


def test_audits_tell_liars_from_the_honest():
    for audit, sign in ((0.0, -1), (1.0, 1)):
        _, metrics = program()(liars=4, audit=audit)
        gap = metrics["honest_reputation"][-1] - metrics["liar_reputation"][-1]
        assert np.sign(gap) == sign, audit
        assert metrics["audited"].mean() == audit
    _, metrics = program()(audit=0.3)
    assert abs(metrics["audited"].mean() - 0.3) < 4 * np.sqrt(0.21 / 60)
    assert np.isnan(metrics["liar_reputation"]).all()


def test_who_is_absent_decays_and_does_not_count():
    state, metrics = program()(absent=0.4, track={**TRACK, "decay": 0.02})
    ledger = state.clients.ledger
    np.testing.assert_array_equal(metrics["present"].sum(), N * 60 - ledger.idle.sum())
    assert abs(ledger.idle.mean() - 24) < 6
    np.testing.assert_allclose(
        ledger.balance.sum(), 30 * (metrics["present"] > 0).sum() - metrics["present"].sum(),
        rtol=1e-4,
    )  # fmt: skip
    # Nobody at all: no answer, and no NaN.
    state, metrics = program()(absent=1.0, track={**TRACK, "decay": 0.02})
    assert not metrics["correct"].any()
    np.testing.assert_allclose(state.clients.ledger.generation, 0.5 * 0.98**60, rtol=1e-4)
    np.testing.assert_array_equal(metrics["confidence"], 0)
    np.testing.assert_array_equal(state.clients.ledger.balance, 0)


@pytest.mark.slow
def test_candidates_pass_as_often_as_the_binomial_tail_and_pay():
    """All nodes alike, and no difficulty: each is admitted with one probability in each round."""
    nodes, rounds, p = 60, 5, 0.55
    skill = float(np.log(p / (1 - p)))
    swarm = inference.latent_swarm(nodes, skill=skill, skill_deviation=0.0)
    test = inference.capability_test(0.6, stake=0.25)
    algorithm = inference.fortytwo(
        swarm, pairs=2, test=test, track=inference.dual_track(least=0.0),
        pay=inference.round_rewards(0.0, cost=0.0),
    )  # fmt: skip
    source = inference.Questions(nodes, inference.latent_questions(deviation=0.0), exam=20)
    state, metrics = jax.jit(
        lambda key: dx.rollout(algorithm, algorithm.init(key), source, key, rounds)
    )(KEY)
    tail = binom.sf(11, 20, p)
    waiting = nodes - np.append(0, metrics["active"][:-1])
    share = metrics["active"][-1] / waiting.sum()
    assert abs(share - tail) < 4 * np.sqrt(tail * (1 - tail) / waiting.sum())
    ledger = state.clients.ledger
    np.testing.assert_allclose(ledger.stake, 0.25 * ledger.active)
    np.testing.assert_allclose(ledger.balance, -ledger.stake)
    np.testing.assert_array_equal(metrics["present"], metrics["active"])


@pytest.mark.slow
def test_costs_of_candidates_and_of_being_tested_again():
    pay, test = inference.round_rewards(12.0, cost=2.0), inference.capability_test(0.2, stake=0.5)
    run = program.__wrapped__(40, exam=5, test=test, pay=pay)
    state, metrics = run(liars=3, audit=1.0, track={**TRACK, "least": 0.25})
    ledger = state.clients.ledger
    tested = N - np.append(0, metrics["active"][:-1])
    paid = 12 * (metrics["present"] > 0).sum() - 2 * metrics["present"].sum()
    spent = 2 * 5 * tested.sum()
    np.testing.assert_allclose(ledger.balance.sum() + ledger.stake.sum(), paid - spent, rtol=1e-4)
    # Liars fall below the least reputation, and are tested again, though their stake stays.
    assert tested[10:].sum() > 0
    assert set(np.unique(ledger.stake)) <= {np.float32(0), np.float32(0.5)}


@pytest.mark.slow
def test_who_fails_the_hidden_test_is_barred():
    hidden = vi.sequential_test(0.6, 0.97)
    run = program.__wrapped__(60, hidden_test=hidden)
    state, metrics = run(liars=3, audit=1.0)
    ledger = state.clients.ledger
    assert ledger.barred[N - 3 :].all()
    np.testing.assert_array_equal(ledger.active, ~ledger.barred)
    np.testing.assert_array_equal(ledger.generation[N - 3 :], 0)
    assert metrics["slashed"][-1] == ledger.barred.sum()
    needed = int(np.ceil(float(hidden.upper / hidden.failure)))
    assert metrics["slashed"][needed - 2] == 0
    assert metrics["slashed"][needed - 1] >= 3
    assert metrics["present"][-1] == N - ledger.barred.sum()


def toy(params, x):
    return params["scale"] * x


def classifiers(**options):
    swarm = inference.classifier_swarm(toy, 4, **options)
    inputs = np.float32([[1, 0, 0.2], [0, 1, 0.5], [0.9, 0.1, 1.0]])
    ask = inference.example_questions(inputs, np.array([0, 1, 0]), classes=3)
    return swarm, ask, inputs


@pytest.mark.slow
def test_classifiers_judge_by_their_own_probabilities():
    swarm, ask, inputs = classifiers(sharpness=2.0, liars=np.arange(4) == 3)
    params = {"scale": np.float32([1.0, 2.0, -1.0, 1.0])}
    algorithm = inference.fortytwo(swarm, soft=True)
    source = inference.Questions(4, ask)
    state = algorithm.init(KEY, params)
    draw, step = jax.jit(source.draw), jax.jit(algorithm.step)
    for t in range(3):
        round = draw(KEY, t)
        asked = round.asked
        assert (inputs == np.asarray(asked.content)).all(1).any()
        assert asked.attractor != asked.truth
        logits = params["scale"][:, None] * np.asarray(asked.content)
        own = logits - np.log(np.exp(logits).sum(1, keepdims=True))
        chosen = swarm.answer(KEY, state.clients.members, asked)
        np.testing.assert_array_equal(chosen, own.argmax(1))
        choices, pairs = np.array([0, 2, 1, 0]), np.asarray(inference.all_pairs(4))
        preferred = swarm.judge(state.clients.members, asked, choices, np.zeros(4), pairs)
        for k, p in np.ndindex(4, 3):
            i, j = choices[pairs[k, p]]
            wanted = 1 / (1 + np.exp(-2 * (own[k, i] - own[k, j])))
            np.testing.assert_allclose(preferred[k, p], wanted, rtol=1e-5)
        state, metrics = step(state, round)
        right = own.argmax(1) == np.asarray(asked.truth)
        np.testing.assert_array_equal(metrics["right"], right & (np.arange(4) < 3))


def test_liars_prefer_the_attractor():
    from dflax.inference.swarm.nodes import answers_of, preferences_of

    swarm, _, inputs = classifiers(liars=np.array([True, False, False, True]))
    asked = inference.Asked(np.int32(0), np.int32(2), inputs[0])
    members = {"scale": jnp.ones(4)}
    choices = answers_of(swarm, KEY, members, asked)
    np.testing.assert_array_equal(choices, [2, 0, 0, 2])
    pairs = np.tile(np.array([[0, 1], [1, 3], [0, 3], [1, 2]]), (4, 1, 1))
    told = preferences_of(swarm, members, asked, choices, swarm.quality(KEY, asked, choices), pairs)
    np.testing.assert_array_equal(told[0], [1.0, 0.0, 0.5, 0.5])
    np.testing.assert_array_equal(told[3], told[0])
    assert told[1, 0] < 0.5 < told[1, 1]


@pytest.mark.slow
def test_nodes_dealt_over_devices_are_nodes_on_one():
    swarm = inference.latent_swarm(N, liars=np.arange(N) > 5, sharpness=1.0)
    algorithm = inference.fortytwo(swarm, pairs=12, rule=inference.by_strength(iterations=20))
    state = algorithm.init(KEY)
    alone, history = dx.run(algorithm, state, SOURCE, rounds=20, key=KEY)
    dealt, there = dx.run(algorithm, state, SOURCE, rounds=20, key=KEY, mesh=dx.client_mesh())
    assert_trees_close(dealt.clients, alone.clients, rtol=1e-5)
    assert_trees_close(there.metrics, history.metrics, rtol=1e-5)
    assert dealt.clients.ledger.ranking.sharding.spec[0] == "clients"
    assert history.metrics["correct"].mean() > 0.4


@pytest.mark.slow
def test_sharpness_weights_audits_and_seeds_are_one_program():
    def make(sharpness, gamma, audit, liars):
        swarm = inference.latent_swarm(N, sharpness=sharpness, liars=jnp.arange(N) < liars)
        rule = inference.by_strength(iterations=20)
        return inference.fortytwo(swarm, pairs=8, rule=rule, gamma=gamma, audit=audit)

    grid = {"sharpness": [0.2, 2.0], "gamma": [0.0, 1.0], "audit": [0.2], "liars": [0.0, 3.0]}
    swept = dx.sweep(
        make, lambda algorithm, key: algorithm.init(key), SOURCE, grid=grid, seeds=2, key=KEY,
        rounds=20,
    )  # fmt: skip
    correct = swept.metrics["correct"].mean(-1)
    assert correct.shape == (2, 2, 1, 2, 2)
    means = correct.mean((1, 2, 4))
    assert means[1, 0] > means[0, 0]
    assert (means[:, 0] > means[:, 1]).all()
    one = make(2.0, 1.0, 0.2, 3.0)
    own = jax.random.fold_in(KEY, 1)
    _, alone = jax.jit(lambda: dx.rollout(one, one.init(own), SOURCE, own, 20))()
    np.testing.assert_array_equal(swept.metrics["correct"][1, 1, 0, 1, 1], alone["correct"])


def test_tau_is_kendalls():
    from dflax.inference.swarm.measures import kendall

    rng = np.random.default_rng(8)
    score, quality, there = rng.random(9), rng.random(9), rng.random(9) < 0.8
    ours = jax.jit(kendall)(score, quality, there)
    np.testing.assert_allclose(ours, kendalltau(score[there], quality[there])[0], rtol=1e-5)


@pytest.mark.slow
def test_soft_verdicts_and_pairs_of_unlike_answers():
    for options in ({"soft": True}, {"distinct": True}):
        _, metrics = program.__wrapped__(200, 15, **options)(liars=4, sharpness=0.6)
        assert metrics["correct"].mean() > metrics["single"].mean() + 0.2


def test_metrics_have_names_of_their_own():
    """What may not be a name in `beside` is what the step itself measures."""
    from dflax.inference.swarm.settings import OWN_METRICS

    _, metrics = program()()
    assert set(metrics) == OWN_METRICS | {"unweighted"}


@pytest.mark.parametrize(
    ("change", "kind", "message"),
    [
        ({"swarm": 3}, TypeError, "swarm must be"),
        ({"pairs": 0}, ValueError, "pairs must be"),
        ({"beside": {"tau": inference.by_elo()}}, ValueError, "beside must have names of its own"),
        ({"beside": {"elo": 3}}, TypeError, r"beside\['elo'\] must be"),
        ({"gamma": -1.0}, ValueError, "gamma must be"),
        ({"audit": 1.5}, ValueError, "audit must be"),
        ({"test": 0.6}, TypeError, "test must be"),
        ({"soft": 1}, TypeError, "soft must be"),
    ],
)
def test_refusals(change, kind, message):
    with pytest.raises(kind, match=message):
        inference.fortytwo(**({"swarm": inference.latent_swarm(N)} | change))


def test_rounds_and_sources_are_refused_by_name():
    swarm = inference.latent_swarm(N)
    algorithm = inference.fortytwo(swarm)
    state = algorithm.init(KEY)
    with pytest.raises(TypeError, match="round must be"):
        algorithm.step(state, dx.Population(N).draw(KEY, 0))
    with pytest.raises(ValueError, match="round must be of the swarm's 8 nodes, got one of 5"):
        algorithm.step(state, inference.Questions(5, ASK).draw(KEY, 0))
    tested = inference.fortytwo(swarm, test=inference.capability_test())
    with pytest.raises(ValueError, match="round must have calibration questions"):
        tested.step(state, SOURCE.draw(KEY, 0))
    with pytest.raises(TypeError, match="what ask returns must be"):
        inference.Questions(N, lambda key: key)
    with pytest.raises(ValueError, match="labels must be"):
        inference.example_questions(np.ones((2, 3)), np.array([0, 5]), classes=3)
    with pytest.raises(ValueError, match="params must have a leading axis of length 4"):
        classifiers()[0].init(KEY, {"scale": np.ones(3)})
    with pytest.raises(ValueError, match="liars must be"):
        inference.latent_swarm(N, liars=np.ones(3, bool))
    with pytest.raises(ValueError, match="options must be"):
        inference.latent_questions(options=1)
