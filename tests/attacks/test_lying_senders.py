"""Clients that lie in what they send, against their definitions in NumPy, float64."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import NamedSharding, PartitionSpec
from tasks import assert_trees_close

import dflax as dx
from dflax import aggregation, attacks
from dflax.channel import Sending

KEY = jax.random.key(0)
M = 8
# Of twelve clients eight are in the cohort; 1 and 9 are hostile, and 4 does not report.
SENDERS = jnp.asarray([0, 2, 9, 4, 5, 1, 7, 11])
HOSTILE = np.array([2, 5])
HONEST = np.array([0, 1, 4, 6, 7])
WEIGHTS = jnp.ones(M).at[3].set(0)
LIARS = (1, 9)


def messages(seed=0):
    rng = np.random.default_rng(seed)
    tree = {"b": rng.standard_normal(M), "w": 1 + rng.standard_normal((M, 2, 3))}
    tree["w"][3] = np.nan
    return tree


def flat(tree):
    return np.concatenate([np.reshape(leaf, (M, -1)) for leaf in jax.tree.leaves(tree)], axis=1)


def sent(channel, tree, senders=SENDERS, weights=WEIGHTS, key=KEY):
    tree = jax.tree.map(jnp.asarray, tree)
    out, after, _, _ = channel.apply(tree, weights, (), Sending(key, 0, senders))
    np.testing.assert_array_equal(after, weights)
    return out


def little(rows, z):
    return rows.mean(0) + z * rows.std(0, ddof=1)


def toward(rows, direction):
    mean = rows.mean(0)
    return {
        "deviation": -rows.std(0, ddof=1),
        "sign": -np.sign(mean),
        "mean": -mean / np.linalg.norm(mean),
    }[direction]


def bisected(rows, direction, fits):
    """The largest step with `fits(message)`, by trying."""
    low, high = 0.0, 1e3
    for _ in range(100):
        middle = (low + high) / 2
        good = fits(rows.mean(0) + middle * toward(rows, direction))
        low, high = (middle, high) if good else (low, middle)
    return rows.mean(0) + low * toward(rows, direction)


def min_max(rows, direction):
    most = ((rows[:, None] - rows) ** 2).sum(-1).max()
    return bisected(rows, direction, lambda b: ((b - rows) ** 2).sum(1).max() <= most)


def min_sum(rows, direction):
    most = ((rows[:, None] - rows) ** 2).sum((1, 2)).max()
    return bisected(rows, direction, lambda b: ((b - rows) ** 2).sum() <= most)


TOGETHER = {
    "inner product": (
        functools.partial(attacks.inner_product, factor=3.0),
        lambda rows: -3 * rows.mean(0),
    ),
    "a little": (
        functools.partial(attacks.little_is_enough, deviations=0.7),
        lambda rows: little(rows, 0.7),
    ),
    **{
        f"min-max, {one}": (
            functools.partial(attacks.min_max, direction=one),
            functools.partial(min_max, direction=one),
        )
        for one in ("deviation", "sign", "mean")
    },
    **{
        f"min-sum, {one}": (
            functools.partial(attacks.min_sum, direction=one),
            functools.partial(min_sum, direction=one),
        )
        for one in ("deviation", "sign", "mean")
    },
}


@pytest.mark.some(2)
@pytest.mark.parametrize("name", TOGETHER)
@pytest.mark.parametrize("knows", ["all", "own"])
def test_hostile_clients_send_one_message_made_of_those_that_they_know(name, knows):
    make, exact = TOGETHER[name]
    with jax.enable_x64(True):
        tree = messages()
        out = flat(jax.jit(functools.partial(sent, make(LIARS, knows=knows)))(tree))
        rows = flat(tree)
        expected = exact(rows[HONEST if knows == "all" else HOSTILE])
        np.testing.assert_allclose(out[HOSTILE], [expected] * 2, rtol=1e-9, atol=1e-9)
        others = np.setdiff1d(np.arange(M), HOSTILE)
        np.testing.assert_array_equal(out[others], rows[others])


@pytest.mark.some(1)
@pytest.mark.parametrize("name", TOGETHER)
def test_who_knows_nobody_sends_nothing_and_who_is_not_sampled_does_not_lie(name):
    make, _ = TOGETHER[name]
    tree = messages()
    alone = jnp.zeros(M).at[HOSTILE].set(1)
    out = flat(sent(make(LIARS), tree, weights=alone))
    assert not out[HOSTILE].any()
    np.testing.assert_array_equal(flat(sent(make(3), tree)), flat(tree).astype(np.float32))


@pytest.mark.parametrize(
    ("channel", "expected"),
    [
        (attacks.sign_flipping(LIARS), lambda x: -x),
        (attacks.sign_flipping(LIARS, 10.0), lambda x: -10 * x),
        (attacks.constant(LIARS, 0.0), np.zeros_like),
        (attacks.constant(LIARS, float("nan")), lambda x: x * np.nan),
        (attacks.constant(LIARS, float("inf")), lambda x: np.full_like(x, np.inf)),
        (attacks.mimic(LIARS, 7), lambda x: np.stack([flat(messages())[6]] * 2)),
        (attacks.mimic(LIARS, 4), lambda x: x),
        (attacks.mimic(LIARS, 3), lambda x: x),
        (attacks.inner_product(np.isin(np.arange(12), LIARS)), lambda x: [-2 * HONEST_MEAN] * 2),
    ],
)
def test_lies_of_a_line(channel, expected):
    rows = flat(messages())
    out = flat(sent(channel, messages()))
    np.testing.assert_allclose(out[HOSTILE], expected(rows[HOSTILE]), rtol=1e-5)
    others = np.setdiff1d(np.arange(M), HOSTILE)
    np.testing.assert_array_equal(out[others], rows[others].astype(np.float32))


HONEST_MEAN = flat(messages())[HONEST].mean(0)


def test_numbers_of_one_sign_are_alike_and_a_share_is_lost():
    many = {"w": 1 + jnp.arange(M * 20_000.0).reshape(M, -1)}
    out = sent(attacks.uniform(LIARS), many)["w"]
    rows = np.asarray(out)[HOSTILE]
    assert 0 <= rows.min() < 1e-3 < 0.999 < rows.max() <= 1
    cosine = rows[0] @ rows[1] / np.linalg.norm(rows[0]) / np.linalg.norm(rows[1])
    assert cosine == pytest.approx(0.75, abs=0.01)
    np.testing.assert_array_equal(
        np.delete(out, HOSTILE, axis=0), np.delete(many["w"], HOSTILE, axis=0)
    )
    out = np.asarray(sent(attacks.zeroed(LIARS, 0.3), many)["w"])
    lost = out[HOSTILE] == 0
    np.testing.assert_allclose(lost.mean(1), 0.3, atol=0.02)
    np.testing.assert_array_equal(out[HOSTILE][~lost], np.asarray(many["w"])[HOSTILE][~lost])


def test_noise_is_each_liars_own():
    many = {"w": jnp.zeros((M, 20_000))}
    out = sent(attacks.gaussian(LIARS, 3.0), many)["w"]
    np.testing.assert_allclose(np.std(out[HOSTILE], axis=1), 3, rtol=0.05)
    assert abs(np.corrcoef(out[HOSTILE])[0, 1]) < 0.05
    assert not np.any(np.delete(out, HOSTILE, axis=0))


@pytest.mark.some(1)
@pytest.mark.parametrize("family", ["inner_product", "little_is_enough"])
def test_the_search_is_the_one_of_the_sheet(family):
    evaluations, step, ratio = 12, 4.0, 0.8
    rule = aggregation.krum(2, others="m-f-1")
    with jax.enable_x64(True):
        tree = messages(1)
        rows = flat(tree)
        honest = rows[HONEST]
        mean = honest.mean(0)

        def forged(t):
            return -t * mean if family == "inner_product" else little(honest, t)

        def harm(t):
            x = rows.copy()
            x[HOSTILE] = forged(t)
            x = np.delete(x, 3, axis=0)
            near = np.sort(((x[:, None] - x) ** 2).sum(-1), axis=1)[:, 1:5].sum(1)
            return ((x[near.argmin()] - mean) ** 2).sum()

        best, most, expands = 0.0, harm(0.0), True
        for _ in range(evaluations - 1):
            found = harm(best + step)
            better = found > most
            if better:
                best, most = best + step, found
            expands = expands and better
            step = 2 * step if expands else ratio * step
        channel = attacks.line_searched(
            family, rule, LIARS, evaluations=evaluations, step=4.0, ratio=ratio
        )
        out = flat(jax.jit(functools.partial(sent, channel))(tree))
    np.testing.assert_allclose(out[HOSTILE], [forged(best)] * 2, rtol=1e-5, atol=1e-6)


@pytest.mark.slow
def test_known_values():
    def of(channel, honest):
        given = jnp.concatenate([jnp.zeros_like(jnp.asarray(honest[:1])), jnp.asarray(honest)])
        sending = Sending(KEY, 0, jnp.arange(len(given)))
        return channel.apply(given, jnp.ones(len(given)), (), sending)[0][0]

    pairs = [[0.0, 0], [2, 0], [4, 6]]
    np.testing.assert_allclose(of(attacks.little_is_enough(0), pairs), [5, 7.19615], rtol=1e-5)
    assert of(attacks.inner_product(0), [1.0, 2, 3]) == -4
    for channel in (
        attacks.min_max(0),
        attacks.min_max(0, "sign"),
        attacks.min_sum(0),
    ):
        np.testing.assert_allclose(of(channel, [0.0, 2, 4]), 0, atol=1e-6)
    for n, f, z in (
        (100, 20, 0.2858),
        (50, 10, 0.2533),
        (26, 5, 0.18),
        (25, 11, 1.0676),
        (10, 2, 0),
    ):
        assert attacks.hidden_deviations(n, f) == pytest.approx(z, abs=1e-4)


@pytest.mark.slow
def test_on_eight_devices():
    channel = attacks.min_max(LIARS)
    tree = jax.tree.map(lambda leaf: leaf.astype(np.float32), messages())
    apply = jax.jit(functools.partial(sent, channel))
    expected = apply(tree)
    mesh = dx.client_mesh()
    with jax.set_mesh(mesh):
        dealt = jax.device_put(tree, NamedSharding(mesh, PartitionSpec("clients")))
        found = apply(dealt)
    assert_trees_close(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_an_attack_ruins_the_mean_and_not_the_median_of_neighbours_means():
    split = dx.data.digits()
    part = dx.data.iid(len(split.train), clients=10, seed=0)
    source = dx.Federation(split.train, part, local_steps=5, batch_size=16)

    def logits(params, inputs):
        return inputs.reshape(len(inputs), -1).astype(jnp.float32) @ params["w"] + params["b"]

    start = {"w": jnp.zeros((64, 10)), "b": jnp.zeros(10)}
    loss = dx.losses.classification(logits)

    def accuracy(rule):
        algorithm = dx.server.fedavg(
            loss,
            optax.sgd(0.5),
            aggregator=rule,
            channel=attacks.inner_product((2, 5, 7), 3.0),
        )
        rounds = jax.jit(functools.partial(dx.rollout, algorithm, rounds=15))
        state, _ = rounds(algorithm.init(KEY, start), source, KEY)
        measure = dx.evaluation.server_model(dx.evaluation.on(loss, split.test))
        return float(measure(state)["accuracy"])

    assert accuracy(aggregation.mean()) < 0.5
    assert accuracy(aggregation.nnm(aggregation.median(), 3)) > 0.85


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: attacks.sign_flipping([]), "clients must be one axis"),
        (lambda: attacks.sign_flipping(1, 0.0), "factor must be a finite number"),
        (lambda: attacks.inner_product(1, knows="some"), "knows must be one of"),
        (lambda: attacks.uniform(1, 1.0, 0.5), "high must be above low, got 0.5 and 1.0"),
        (lambda: attacks.zeroed(1, 1.5), "share must be a finite number"),
        (lambda: attacks.min_max(1, "up"), "direction must be one of"),
        (lambda: attacks.hidden_deviations(10, 5), r"hostile must be an integer in \[1, 4\]"),
        (
            lambda: attacks.line_searched("inner_product", aggregation.mean(), 1, ratio=0.5),
            "ratio must be a finite number",
        ),
        (
            lambda: sent(attacks.min_max(1), messages(), senders=None),
            "senders must be the clients' numbers",
        ),
    ],
)
def test_refusals(make, message):
    with pytest.raises((TypeError, ValueError), match=message):
        make()


def test_one_sided_noise_has_a_sign_for_each_half_of_the_columns():
    tree = {"w": np.ones((M, 300, 5))}
    out = np.asarray(sent(attacks.one_sided(LIARS, size=0.25), tree)["w"])
    np.testing.assert_array_equal(out[HONEST], 1)
    for half, low in ((out[HOSTILE, :, :2], -0.25), (out[HOSTILE, :, 2:], 0.0)):
        assert half.min() >= low
        assert half.max() <= low + 0.25
        np.testing.assert_allclose(half.mean(), low + 0.125, atol=0.01)
        np.testing.assert_allclose(half.std(), 0.25 / np.sqrt(12), atol=0.01)
    assert (out[2] != out[5]).all()
    again = sent(attacks.one_sided(LIARS), tree, key=jax.random.key(1))["w"]
    assert (np.asarray(again)[2] != out[2]).all()


def observed(rounds, warmup, first):
    """The learned victim by NumPy, of honest rows in every round: who is copied, and z."""
    mean, z, victim, copied = 0.0, first, None, []
    for t, rows in enumerate(rounds):
        if t < warmup:
            mean = (t * mean + rows.mean(0)) / (t + 1)
            pull = sum(((x - mean) @ z) * (x - mean) for x in rows)
            z = (t * z if t else 0) + pull / np.linalg.norm(pull)
            z = z / np.linalg.norm(z)
            victim = np.abs(rows @ z).argmax()
        copied.append(victim)
    return copied, z


def test_mimics_learn_whom_to_copy_and_stay_with_it():
    channel, warmup = attacks.learned_mimic(LIARS, warmup=4), 4
    with jax.enable_x64(True):
        trees = [messages(seed) for seed in range(7)]
        state = jax.vmap(channel.init)(jax.tree.map(jnp.asarray, trees[0]))
        keys = jax.random.split(jax.random.key(5), len(trees))
        apply = jax.jit(channel.apply)
        found = []
        for number, tree in enumerate(trees):
            sending = dx.channel.Sending(keys[number], jnp.int32(number), SENDERS)
            out, _, state, _ = apply(tree, WEIGHTS, state, sending)
            found.append(flat(out))
        shape = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape[1:]), trees[0])
        drawn = optax.tree.random_like(keys[0], shape)
        first = np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(drawn)])
        rows = [flat(tree) for tree in trees]
        copied, z = observed([own[HONEST] for own in rows], warmup, first)
        for own, sent_rows, victim in zip(rows, found, copied, strict=True):
            np.testing.assert_allclose(sent_rows[HOSTILE], own[HONEST][[victim] * 2], rtol=1e-12)
            others = np.setdiff1d(np.arange(M), HOSTILE)
            np.testing.assert_array_equal(sent_rows[others], own[others])
        learnt = flat(state.direction)[HOSTILE]
        np.testing.assert_allclose(learnt, [z, z], rtol=1e-9, atol=1e-12)
        assert len(set(copied)) > 1
        # Who is copied is not there: they send what they should, and learn no more.
        absent = WEIGHTS.at[HONEST[copied[-1]]].set(0)
        sending = dx.channel.Sending(keys[0], jnp.int32(7), SENDERS)
        out, _, after, _ = apply(trees[0], absent, state, sending)
        np.testing.assert_array_equal(flat(out)[HOSTILE], rows[0][HOSTILE])
        jax.tree.map(np.testing.assert_array_equal, after, state)


def test_mimics_find_the_direction_in_which_the_honest_differ():
    generator = np.random.default_rng(0)
    far = np.zeros(40)
    far[3] = 1.0
    channel = attacks.learned_mimic([0, 1], warmup=20)
    state = jax.vmap(channel.init)({"w": jnp.zeros((12, 40))})
    places = np.linspace(-4, 4, 12)
    apply = jax.jit(channel.apply)
    for number in range(20):
        rows = places[:, None] * far + 0.3 * generator.standard_normal((12, 40))
        sending = dx.channel.Sending(jax.random.key(number), jnp.int32(number), jnp.arange(12))
        out, _, state, _ = apply(
            {"w": jnp.asarray(rows, jnp.float32)}, jnp.ones(12), state, sending
        )
    assert abs(float(state.direction["w"][0] @ far)) > 0.95
    assert int(state.victim[0]) in (2, 11)
    np.testing.assert_allclose(out["w"][:2], rows[[int(state.victim[0])] * 2], rtol=1e-6)
