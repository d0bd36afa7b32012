"""Bristle's parts against hand values, and the whole rule against NumPy, client by client."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec
from sklearn.metrics import f1_score
from tasks import assert_trees_close, assert_trees_equal

import dflax as dx
from dflax import gossip, topology
from dflax.data import Dataset
from dflax.gossip import Mixing
from dflax.gossip.rules.bristle import class_tests, draws, trust
from dflax.gossip.rules.bristle.rule import centred, integrated

KEY = jax.random.key(0)
N, H, C, T = 8, 6, 5, 12
OWNED = [np.arange(i, i + (5 if i == 6 else 2)) % C for i in range(N)]
GRAPH = topology.complete(N)


def head(params, inputs):
    return inputs @ params["kernel"]


def everybody(distances, present, key):
    """Looks at all who are there."""
    return jnp.arange(len(present)), present


@functools.cache
def problem():
    """Features near class centres, each client's own test set, and models of several qualities."""
    generator = np.random.default_rng(0)
    centres = 2 * generator.standard_normal((C, H))
    labels = np.tile(np.arange(C), 40)
    inputs = centres[labels] + generator.standard_normal((len(labels), H))
    data = Dataset(jnp.asarray(inputs), jnp.asarray(labels, jnp.int32), classes=C)
    lists = []
    for i, owned in enumerate(OWNED):
        rows = [np.flatnonzero(labels == c) for c in owned]
        count = (T - i % 3) // len(owned)
        lists.append(np.concatenate([generator.choice(own, count, replace=False) for own in rows]))
    partition = dx.data.from_indices(lists)
    blur = generator.uniform(0.2, 3, size=(N, 1, C))
    kernels = centres.T + blur * generator.standard_normal((N, H, C))
    return data, partition, kernels


def graded(dtype):
    data, partition, kernels = problem()
    data = Dataset(data.inputs.astype(dtype), data.labels, classes=C)
    return gossip.class_tests(data, partition), {"kernel": jnp.asarray(kernels, dtype)}


@functools.partial(jax.jit, static_argnames="draw")
def mixed(tests, models, active=None, draw=everybody, scoring=trust.Scoring()):  # noqa: B008
    rule = gossip.bristle(head, tests, draw=draw, **scoring._asdict())
    mixer = gossip.by_rule(GRAPH, rule)
    after, state, metrics = mixer.apply(
        models, mixer.init(models), Mixing(KEY, jnp.int32(0), active)
    )
    return after["kernel"], state.memory.rows, metrics


# The sheet's own F1, peer's F1, score and weight.
WEIGHTS = [
    (0.5, 0.5, 0.0, 1.0),
    (0.5, 0.6, 1.0, 1.0250),
    (0.5, 0.7, 11.3137, 1.28254),
    (0.5, 0.8, 46.765, 2.14828),
    (0.5, 0.9, 128.0, 3.82450),
    (0.5, 0.4, -1.0, 0.97500),
    (0.5, 0.3, -22.627, 0.43672),
    (0.5, 0.25, -61.76, 0.0),
    (0.9, 0.7, -29.857, 0.25907),
    (0.0, 0.6, 216.0, 4.96600),
]


def test_scores_and_weights_by_hand():
    own, theirs, scores, weights = np.array(WEIGHTS).T
    found = trust.score(jnp.asarray(own), jnp.asarray(theirs), trust.Scoring())
    np.testing.assert_allclose(found, scores, rtol=1e-4)
    np.testing.assert_allclose(trust.weight(found), weights, atol=1e-5)
    edge = 100 * np.log(2 / 3)
    seen = trust.weight(jnp.array([edge - 1e-3, edge + 1e-3, 1e9, -1e9, -1e30]))
    assert seen[0] == 0 < seen[1]
    np.testing.assert_allclose(seen[2:], [6, 0, 0])


def test_how_many_of_each_third():
    expected = {0.4: (4, 5, 2), 0.0: (10, 0, 0), 1.0: (0, 0, 10), 0.2: (6, 3, 0), 0.5: (3, 5, 3)}
    for explore, counts in expected.items():
        assert draws.counts_by_third(explore, 10) == counts
    with pytest.raises(ValueError, match="models must be so many"):
        gossip.prioritised(0.4, 1)
    with pytest.raises(TypeError, match=r"explore must be a number in .* got a traced value"):
        jax.vmap(lambda a: gossip.prioritised(a) and a)(jnp.ones(2))


def test_thirds_by_distance_the_rest_in_the_middle():
    distances = jnp.array([9.0, 1, 4, 2, 8, 3, 7, 5, 6, 0])
    np.testing.assert_array_equal(
        draws.thirds(distances, jnp.ones(10, bool)), [2, 0, 1, 0, 2, 1, 2, 1, 1, 0]
    )
    present = jnp.arange(10) < 3
    np.testing.assert_array_equal(draws.thirds(distances, present), [2, 0, 1] + [-1] * 7)
    # One neighbour alone is in the middle, and so is one that is infinitely far.
    np.testing.assert_array_equal(draws.thirds(jnp.full(1, jnp.inf), jnp.ones(1, bool)), [1])


@pytest.mark.parametrize("rest", [0, 9])
def test_draws_are_distinct_uniform_within_a_third_and_of_those_who_are_there(rest):
    k = 18
    distances = jnp.arange(k, dtype=jnp.float32)
    present = distances >= rest
    draw = gossip.prioritised(0.4, 10)
    keys = jax.random.split(KEY, 3000)
    places, valid = jax.jit(jax.vmap(lambda key: draw(distances, present, key)))(keys)
    there = k - rest
    third = there // 3
    wanted = [min(count, third) for count in (4, 5, 2)]
    np.testing.assert_array_equal(valid.sum(1), sum(wanted))
    often = np.zeros((len(keys), k))
    np.add.at(often, (np.arange(len(keys))[:, None], places), valid)
    assert often.max() == 1
    expected = np.repeat(np.array(wanted) / third, third)
    np.testing.assert_allclose(often.mean(0), np.concatenate([np.zeros(rest), expected]), atol=0.05)


def test_a_random_draw_takes_everyone_alike():
    draw = gossip.at_random(3)
    present = jnp.arange(8) != 2
    keys = jax.random.split(KEY, 3000)
    places, valid = jax.jit(jax.vmap(lambda key: draw(jnp.arange(8.0), present, key)))(keys)
    assert valid.all()
    often = np.bincount(places.reshape(-1), minlength=8) / len(keys)
    np.testing.assert_allclose(often, np.where(present, 3 / 7, 0), atol=0.04)
    _, few = gossip.at_random(9)(jnp.arange(4.0), jnp.arange(4) < 2, KEY)
    assert few.sum() == 2


def test_f1_is_that_of_scikit_learn():
    generator = np.random.default_rng(1)
    labels, said = generator.integers(0, 4, (2, 40))
    mask = generator.integers(0, 2, 40)
    expected = f1_score(
        labels[mask > 0], said[mask > 0], average=None, labels=range(6), zero_division=0
    )
    found = class_tests.f1_by_class(
        jnp.asarray(said), jnp.asarray(labels), jnp.asarray(mask, jnp.float32), 6
    )
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    assert expected[4] == 0 == found[5]


@pytest.mark.slow
def test_what_test_sets_know():
    tests, _ = graded(np.float32)
    data, partition, _ = problem()
    for i, rows in enumerate(partition.as_lists()):
        there = np.asarray(tests.mask[i]) > 0
        assert there.sum() == len(rows)
        np.testing.assert_array_equal(tests.labels[i][there], np.asarray(data.labels)[rows])
        np.testing.assert_allclose(tests.inputs[i][there], data.inputs[rows], rtol=1e-6)
        assert set(np.flatnonzero(tests.familiar[i])) == set(OWNED[i])
        for j in range(N):
            assert tests.common[i, j] == len(set(OWNED[i]) & set(OWNED[j]))


def f1_of(kernel, tests, i):
    there = np.asarray(tests.mask[i]) > 0
    said = (np.asarray(tests.inputs[i])[there] @ kernel).argmax(1)
    right = np.asarray(tests.labels[i])[there]
    return f1_score(right, said, average=None, labels=range(C), zero_division=0)


def weight_of(score, scale):
    return max(0.0, 10 / (1 + np.exp(-min(max(score / scale, -50), 50))) - 4)


def by_hand(kernels, tests, i, heard, scoring):
    """What client i makes of it, and the weights in foreign columns of those that it hears."""
    own = f1_of(kernels[i], tests, i)
    familiar = sorted(OWNED[i])
    sums, totals, foreign = kernels[i].copy(), np.ones(C), {}
    for j in heard:
        theirs = f1_of(kernels[j], tests, i)
        best = sorted(familiar, key=lambda c: -theirs[c])[: len({*OWNED[i]} & {*OWNED[j]})]
        foreign[j] = 0.0
        if not best:
            continue
        sure = max(0.0, theirs[best].mean() - theirs[best].std())
        scores = {}
        for c in best:
            d = 10 * abs(own[c] - theirs[c])
            better = theirs[c] > own[c]
            power = scoring.better if better else scoring.worse
            scores[c] = (1 if better else -1) * d ** (power + own[c])
        shares = np.zeros(C)
        for c in best:
            shares[c] = sure * weight_of(max(-scoring.bound, scores[c]), scoring.scale)
        foreign[j] = sure * weight_of(sum(scores.values()), scoring.scale)
        shares[[c for c in range(C) if c not in familiar]] = foreign[j]
        sums, totals = sums + shares * kernels[j], totals + shares
    after = sums / totals
    return after - after.mean(0), foreign


@pytest.mark.parametrize(
    "scoring", [trust.Scoring(), trust.Scoring(1.0, 2.0, 3.0, 8.0)], ids=["published", "others"]
)
def test_the_rule_is_its_equations(scoring):
    active = np.arange(N) != 4
    with jax.enable_x64(True):
        tests, models = graded(np.float64)
        tests = tests._replace(mask=tests.mask.astype(jnp.float64))
        kernels = np.array(models["kernel"])
        models["kernel"] = models["kernel"].at[4].set(jnp.nan)
        outcome = mixed(tests, models, jnp.asarray(active), scoring=scoring)
        found, seen, metrics = jax.device_get(outcome)
    weights, levels = [], []
    for i in np.flatnonzero(active):
        heard = [j for j in range(N) if j not in (i, 4)]
        expected, foreign = by_hand(kernels, tests, i, heard, scoring)
        np.testing.assert_allclose(found[i], expected, atol=1e-10)
        by_number = dict(zip(seen.neighbours[i].tolist(), seen.foreign[i].tolist(), strict=True))
        for j in heard:
            assert by_number[j] == pytest.approx(foreign[j], abs=1e-6)
        weights += foreign.values()
        levels.append(f1_of(kernels[i], tests, i)[OWNED[i]].mean())
    # The weights of the problem are of all kinds.
    assert min(weights) == 0 < max(weights)
    assert len({round(w, 3) for w in weights}) > 5
    assert metrics["foreign_weight"] == pytest.approx(np.mean(weights), rel=1e-5)
    assert metrics["own_f1"] == pytest.approx(np.mean(levels), rel=1e-5)
    assert metrics["drawn"] == pytest.approx(1)
    np.testing.assert_array_equal(np.isnan(found).any((1, 2)), ~active)


def test_of_identical_models_the_centred_model_is_left():
    tests, models = graded(np.float32)
    same = {"kernel": jnp.broadcast_to(models["kernel"][0], (N, H, C))}
    found, _, _ = mixed(tests, same, draw=gossip.prioritised(0.4, 5))
    expected = centred({"kernel": models["kernel"][0]})["kernel"]
    np.testing.assert_allclose(found, np.broadcast_to(expected, found.shape), atol=1e-5)


def test_who_knows_nothing_of_the_selected_classes_has_no_influence():
    """A model that says class 0 to everyone, whose owner shares classes 2 and 3 with client 2."""
    tests, models = graded(np.float32)
    liar = models["kernel"].at[6].set(jnp.zeros((H, C)))
    silent = jnp.arange(N) != 6
    found, seen, _ = mixed(tests, {"kernel": liar})
    without, _, _ = mixed(tests, {"kernel": liar}, silent)
    np.testing.assert_allclose(found[2], without[2], atol=1e-6)
    slot = seen.neighbours[2].tolist().index(6)
    assert tests.common[2, 6] == 2
    assert seen.drawn[2, slot] == 1
    assert seen.foreign[2, slot] == 0 == seen.familiar[2, slot]


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_model_that_is_not_finite_is_as_good_as_absent(bad):
    tests, models = graded(np.float32)
    broken = {"kernel": models["kernel"].at[5, 0, 0].set(bad)}
    others = np.arange(N) != 5
    found, _, _ = mixed(tests, broken)
    expected, _, _ = mixed(tests, models, jnp.asarray(others))
    np.testing.assert_allclose(found[others], expected[others], atol=1e-6)


def test_columns_are_convex_combinations_that_keep_a_share_of_the_own():
    generator = np.random.default_rng(3)
    # Coefficients, read off models that are unit vectors.
    units = jnp.asarray(np.eye(5)[:, :, None] * np.ones(C))

    @jax.jit
    def coefficients(own, theirs, familiar, common):
        weights = trust.trust(own, theirs, familiar, common, trust.Scoring())
        return weights.familiar, integrated(units[0], units[1:], weights, familiar)

    for _ in range(20):
        own, theirs = generator.uniform(0, 1, C), generator.uniform(0, 1, (4, C))
        familiar, common = generator.uniform(size=C) < 0.6, generator.integers(0, 4, 4)
        weights, found = map(np.asarray, coefficients(own, theirs, familiar, common))
        assert weights.max() <= 6
        assert (weights[:, ~familiar] == 0).all()
        np.testing.assert_allclose(found.sum(0), 1, rtol=1e-5)
        assert found.min() >= 0
        assert found[0].min() >= 1 / (1 + 6 * 4) - 1e-6


def test_centring():
    _, models = graded(np.float32)
    kernel = models["kernel"][1]
    once = centred({"kernel": kernel})["kernel"]
    np.testing.assert_allclose(once.mean(0), 0, atol=1e-6)
    np.testing.assert_allclose(centred({"kernel": once})["kernel"], once, atol=1e-6)
    inputs = jax.random.normal(KEY, (7, H))
    moved = inputs @ kernel - inputs @ once
    np.testing.assert_allclose(moved, inputs.sum(1)[:, None] * kernel.mean(0), atol=1e-4)


def test_classes_are_selected_by_f1_and_number():
    theirs = jnp.array([[0.5, 0.9, 0.5, 1.0]] * 4)
    familiar = jnp.array([True, True, True, False])
    chosen = trust.selected(theirs, familiar, jnp.array([0, 1, 2, 9]))
    np.testing.assert_array_equal(
        chosen, np.array([[0, 0, 0, 0], [0, 1, 0, 0], [1, 1, 0, 0], [1, 1, 1, 0]], bool)
    )
    sure = trust.certainty(theirs, chosen)
    np.testing.assert_allclose(
        sure, [0, 0.9, 0.5, np.mean([0.5, 0.9, 0.5]) - np.std([0.5, 0.9, 0.5])], rtol=1e-6
    )


@pytest.mark.parametrize("at_once", [pytest.param(1, marks=pytest.mark.slow), None])
def test_on_eight_devices_the_result_is_the_same(at_once):
    tests, models = graded(np.float32)
    draw = gossip.prioritised(0.4, 5)

    def once(tests, models):
        mixer = gossip.by_rule(GRAPH, gossip.bristle(head, tests, draw=draw), at_once=at_once)
        return mixer.apply(models, mixer.init(models), Mixing(KEY, jnp.int32(0)))

    expected, _, known = jax.jit(once)(tests, models)
    mesh = dx.client_mesh()
    with jax.set_mesh(mesh):
        spec = NamedSharding(mesh, PartitionSpec("clients"))
        dealt = jax.device_put(models, spec)
        found, state, metrics = jax.jit(once)(tests, dealt)
    assert_trees_close(found, expected, rtol=1e-5, atol=1e-5)
    assert_trees_close(metrics, known, rtol=1e-5)
    assert_trees_equal(state.private.rows.familiar, tests.familiar)


def test_real_hyper_parameters_are_swept_as_one_program():
    tests, models = graded(np.float32)
    grid = trust.Scoring(*(jnp.array([x, y]) for x, y in ((3, 1), (4, 2), (100, 3), (100, 8))))
    swept = jax.vmap(lambda scoring: mixed(tests, models, scoring=scoring)[0])(grid)
    for place in range(2):
        one = jax.tree.map(lambda values, place=place: values[place], grid)
        alone, _, _ = mixed(tests, models, scoring=one)
        np.testing.assert_allclose(swept[place], alone, atol=1e-5)
    assert np.abs(swept[0] - swept[1]).max() > 1e-3


def test_refusals():
    tests, models = graded(np.float32)
    data, partition, _ = problem()
    rule = gossip.bristle(head, tests)
    mixer = gossip.by_rule(GRAPH, rule)
    with pytest.raises(ValueError, match=r"models\['bias'\] must be .* no bias, got shape"):
        mixer.init({**models, "bias": jnp.zeros((N, C))})
    with pytest.raises(ValueError, match="a column for each of the 5 classes"):
        mixer.init({"kernel": jnp.zeros((N, H, C + 1))})
    with pytest.raises(ValueError, match=r"rule.private must have a leading axis of length 6"):
        gossip.by_rule(topology.ring(6), rule).init({"kernel": jnp.zeros((6, H, C))})
    with pytest.raises(ValueError, match="data must have class numbers"):
        gossip.class_tests(Dataset(data.inputs, data.labels), partition)
    with pytest.raises(ValueError, match="partition must hold numbers of data's 3 examples"):
        gossip.class_tests(Dataset(data.inputs[:3], data.labels[:3], classes=C), partition)
