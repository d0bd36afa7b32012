import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from tasks import assert_trees_close

import dflax as dx
from dflax import aggregation, profile
from dflax.aggregation import Combining
from dflax.channel import Channel

KEY = jax.random.key(0)
CLIENTS = 12
RULES = {
    "median": lambda: aggregation.median(),
    "trimmed mean": lambda: aggregation.trimmed_mean(2),
    "geometric median": lambda: aggregation.geometric_median(),
}


def models(clients=CLIENTS, seed=0):
    generator = np.random.default_rng(seed)
    return {
        "b": jnp.asarray(generator.normal(size=(clients, 4)), jnp.float32),
        "w": jnp.asarray(generator.normal(size=(clients, 6, 5)), jnp.float32),
    }


def flat(tree):
    return np.concatenate(
        [np.asarray(tree[name], np.float64).reshape(len(tree[name]), -1) for name in ("b", "w")], 1
    )


def alone(tree):
    return flat(jax.tree.map(lambda leaf: leaf[None], tree))[0]


def combine(rule, messages, weights=None):
    first = jax.tree.leaves(messages)[0]
    weights = jnp.ones(len(first)) if weights is None else jnp.asarray(weights)
    state = rule.init(jax.tree.map(lambda leaf: leaf[0], messages))
    out, after, metrics = jax.jit(rule.apply)(messages, weights, state, Combining(KEY))
    assert after == state == ()
    return out, metrics


def weiszfeld(values, weights, steps=3, smoothing=0.1, start=None):
    center = np.zeros(values.shape[1]) if start is None else start
    for _ in range(steps):
        near = weights / np.maximum(np.linalg.norm(center - values, axis=1), smoothing)
        center = near @ values / near.sum()
    return center


def test_coordinate_wise_rules_equal_numpy_over_those_that_reported():
    tree, weights = models(), np.arange(CLIENTS) % 4.0
    tree = jax.tree.map(lambda leaf: leaf.at[0].set(jnp.nan), tree)
    those = flat(tree)[weights > 0]
    out, metrics = combine(aggregation.median(), tree, weights)
    np.testing.assert_allclose(alone(out), np.median(those, 0), rtol=1e-6)
    assert metrics == {}
    out, metrics = combine(aggregation.trimmed_mean(2), tree, weights)
    np.testing.assert_allclose(alone(out), np.sort(those, 0)[2:-2].mean(0), rtol=1e-5, atol=1e-6)
    assert metrics == {"trimmed": 2}


def test_where_too_few_report_the_trimmed_mean_is_the_median_and_says_so():
    tree, weights = models(), np.arange(CLIENTS) < 4.0
    out, metrics = combine(aggregation.trimmed_mean(2), tree, weights)
    np.testing.assert_allclose(alone(out), np.median(flat(tree)[:4], 0), rtol=1e-6)
    assert metrics == {"trimmed": 1}


@pytest.mark.some(1)
@pytest.mark.parametrize("start", ["zero", "mean"])
def test_the_geometric_median_equals_weiszfeld_on_the_vectors(start):
    tree, weights = models(), np.arange(CLIENTS) % 4.0
    values = flat(tree)
    first = None if start == "zero" else weights @ values / weights.sum()
    for steps, smoothing in ((1, 0.1), (3, 0.1), (8, 5.0)):
        rule = aggregation.geometric_median(steps, smoothing, start=start)
        out, _ = combine(rule, tree, weights)
        expected = weiszfeld(values, weights, steps, smoothing, first)
        np.testing.assert_allclose(alone(out), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_worked_examples():
    rows = jnp.array([[1.0, 2, 3], [4, 5, 6], [7, 8, 9]])
    column = jnp.array([[1.0], [2], [3], [4], [100]])
    np.testing.assert_array_equal(combine(aggregation.median(), rows)[0], [4, 5, 6])
    np.testing.assert_array_equal(combine(aggregation.trimmed_mean(1), rows)[0], [4, 5, 6])
    np.testing.assert_allclose(combine(aggregation.trimmed_mean(1), column)[0], [3], rtol=1e-6)
    geometric = combine(aggregation.geometric_median(), rows)[0]
    np.testing.assert_allclose(geometric, [3.78788764, 4.78788764, 5.78788764], rtol=1e-5)
    centred = aggregation.geometric_median(start="mean")
    np.testing.assert_allclose(combine(centred, rows)[0], [4, 5, 6], rtol=1e-5)
    np.testing.assert_allclose(
        combine(aggregation.geometric_median(), column)[0], [2.7528], rtol=1e-4
    )
    many = aggregation.geometric_median(steps=100)
    np.testing.assert_allclose(combine(many, column)[0], [3.0], rtol=1e-4)


def test_krum_scores_follow_from_the_distances():
    """n = 5, f = 1: the two nearest others."""
    distances = aggregation.squared_distances(jnp.array([[1.0], [2], [3], [4], [100]]))
    scores = np.sort(distances, 1)[:, 1:3].sum(1)
    np.testing.assert_allclose(scores, [5, 2, 2, 5, 18625], rtol=1e-5)


def pairwise(values):
    return ((values[:, None] - values) ** 2).sum(-1)


def test_distances_keep_their_digits_far_from_the_origin_and_beside_an_outlier():
    near = np.random.default_rng(0).normal(size=(9, 40))
    values = jnp.asarray(1000 + near, jnp.float32).at[4].set(3e7)
    honest = np.delete(np.arange(9), 4)
    out = np.asarray(jax.jit(aggregation.squared_distances)(values))
    exact = pairwise(np.asarray(values, np.float64))
    np.testing.assert_allclose(
        out[np.ix_(honest, honest)], exact[np.ix_(honest, honest)], rtol=1e-5
    )
    np.testing.assert_allclose(out, exact, rtol=1e-4)
    np.testing.assert_array_equal(out, out.T)


def test_models_that_are_absent_or_not_finite_are_infinitely_far():
    tree = jax.tree.map(lambda leaf: leaf.at[1].set(jnp.nan).at[2].set(jnp.inf), models())
    weights = np.arange(CLIENTS) != 5.0
    out = np.asarray(jax.jit(aggregation.squared_distances)(tree, jnp.asarray(weights * 1.0)))
    far = np.isin(np.arange(CLIENTS), [1, 2, 5])
    expected = pairwise(np.where(far[:, None], 0, flat(tree)))
    np.testing.assert_allclose(out[np.ix_(~far, ~far)], expected[np.ix_(~far, ~far)], rtol=1e-5)
    away = (far[:, None] | far) & ~np.eye(CLIENTS, dtype=bool)
    assert np.isinf(out[away]).all()
    np.testing.assert_array_equal(np.diagonal(out), 0)


def test_the_geometric_median_drops_messages_that_are_not_finite():
    tree = jax.tree.map(lambda leaf: leaf.at[1].set(jnp.nan).at[2].set(3e38), models())
    weights = np.ones(CLIENTS)
    weights[0] = 0
    out, metrics = combine(aggregation.geometric_median(), tree, weights)
    weights[[1, 2]] = 0
    np.testing.assert_allclose(alone(out), weiszfeld(flat(models()), weights), rtol=1e-4, atol=1e-5)
    assert metrics == {"messages_dropped": 2}


@pytest.mark.parametrize("name", RULES)
def test_a_rule_says_nothing_when_nobody_reports(name):
    tree = jax.tree.map(lambda leaf: jnp.full_like(leaf, jnp.nan), models())
    out, _ = combine(RULES[name](), tree, np.zeros(CLIENTS))
    np.testing.assert_array_equal(alone(out), 0)


@pytest.mark.parametrize("name", RULES)
def test_a_rule_is_permutation_invariant_agrees_and_bounded(name):
    rule, tree = RULES[name](), models()
    out, _ = combine(rule, tree)
    again, _ = combine(rule, jax.tree.map(lambda leaf: leaf[::-1], tree))
    assert_trees_close(out, again, rtol=1e-4, atol=1e-6)
    same = jax.tree.map(lambda leaf: jnp.broadcast_to(leaf[:1], leaf.shape), tree)
    agreed, _ = combine(rule, same)
    np.testing.assert_allclose(alone(agreed), flat(same)[0], rtol=1e-5, atol=1e-6)
    for size in (1e3, 1e12):
        attacked = jax.tree.map(lambda leaf, size=size: leaf.at[:2].set(size), tree)
        out, _ = combine(rule, attacked)
        assert np.linalg.norm(alone(out)) < 3 * np.linalg.norm(flat(tree), axis=1).max()


@pytest.mark.slow
@pytest.mark.some(2)
@pytest.mark.parametrize("name", [*RULES, "distances"])
@pytest.mark.parametrize("clients", [16, 12])
def test_over_eight_devices_models_are_dealt_by_coordinates_once(name, clients):
    mesh, tree = dx.client_mesh(), models(clients)
    weights = jnp.ones(clients).at[3].set(0)
    if name == "distances":
        apply = aggregation.squared_distances
    else:
        rule = RULES[name]()

        def apply(tree, weights):
            return rule.apply(tree, weights, (), Combining(KEY))[0]

    def program(tree, weights):
        # Laid out by clients first, as an algorithm's messages are.
        return apply(dx.map_clients(lambda row: row, tree), weights)

    expected = jax.jit(program)(tree, weights)
    with jax.set_mesh(mesh):
        compiled = jax.jit(program).lower(tree, weights).compile()
        out = compiled(tree, weights)
    assert_trees_close(out, expected, rtol=1e-4, atol=1e-5)
    own, width, origin = -(-clients // 8), 40, clients + 1
    found = sorted((one.kind, one.bytes) for one in profile.collectives(compiled))
    dealt = ("all-to-all", 4 * own * width)
    # Sums over coordinates take large leaves by themselves.
    parts = [size for kind, size in found if kind == "all-to-all"]
    if name == "distances":
        # And which models are finite, a byte each.
        assert sum(parts) == dealt[1]
        large = [one for one in found if one[1] > 8 * own and one[0] != "all-to-all"]
        assert large == [("all-reduce", 4 * clients**2)], found
    elif name == "geometric median":
        # The products, a mean at the end in each of two branches, masks and scalars.
        assert sum(parts) == dealt[1]
        rest = [one for one in found if one[0] != "all-to-all"]
        assert ("all-reduce", 4 * origin**2) in rest, found
        assert sum(size for _, size in rest) <= 4 * (origin**2 + 2 * 34 + 12 * clients), found
    else:
        assert found == [("all-gather", 4 * width), dealt]


def byzantine(message):
    """Client 0 of the cohort sends a message of its own; the others' arrive as they are."""

    def apply(messages, weights, state, sending):
        return jax.tree.map(lambda leaf: leaf.at[0].set(message), messages), weights, state, {}

    return Channel(lambda message: (), apply)


@pytest.mark.slow
def test_rules_train_on_digits_where_one_byzantine_client_ruins_the_mean():
    split = dx.data.digits()
    part = dx.data.dirichlet(split.train.labels, clients=10, alpha=1.0, seed=0)
    source = dx.Federation(split.train, part, local_steps=10, batch_size=16)

    def logits(params, inputs):
        return inputs.reshape(len(inputs), -1).astype(jnp.float32) @ params["w"] + params["b"]

    start = {"w": jnp.zeros((64, 10)), "b": jnp.zeros(10)}
    loss = dx.losses.classification(logits)

    def accuracy(rule, message):
        algorithm = dx.server.fedavg(
            loss, optax.sgd(0.5), aggregator=rule, channel=byzantine(message)
        )
        rounds = jax.jit(functools.partial(dx.rollout, algorithm, rounds=20))
        state, _ = rounds(algorithm.init(KEY, start), source, KEY)
        measure = dx.evaluation.server_model(dx.evaluation.on(loss, split.test))
        return float(measure(state)["accuracy"])

    attack = jnp.where(jnp.arange(10) % 3 == 0, 5.0, -5.0)
    ruined = accuracy(aggregation.mean(), attack)
    reached = {name: accuracy(make(), attack) for name, make in RULES.items()}
    assert ruined < 0.5, ruined
    assert min(reached.values()) > 0.8, reached


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: aggregation.trimmed_mean(-1), "trim must be an integer >= 0, got -1"),
        (
            lambda: combine(aggregation.trimmed_mean(6), models()),
            r"trim must be an integer in \[0, 5\], got 6. Each side of 12 rows",
        ),
        (lambda: aggregation.geometric_median(0), "steps must be an integer >= 1, got 0"),
        (lambda: aggregation.geometric_median(smoothing=0.0), "smoothing must be a finite number"),
        (lambda: aggregation.geometric_median(start="median"), "start must be one of"),
        (
            lambda: aggregation.squared_distances(jnp.ones((3, 2)), jnp.ones(2)),
            r"weights must be one number per model, shape \(3,\), got \(2,\)",
        ),
        (
            lambda: aggregation.squared_distances(jnp.ones((3, 2)), -jnp.ones(3)),
            r"weights must be a finite number in \[0, inf\)",
        ),
        (lambda: aggregation.sum_coordinates(1, jnp.ones((3, 2))), "function must be a function"),
    ],
)
def test_bad_arguments_are_refused(call, message):
    with pytest.raises((TypeError, ValueError), match=message):
        call()
