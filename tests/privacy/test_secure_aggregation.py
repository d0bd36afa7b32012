"""Secure aggregation: modular sums are exact, masks cancel, and rounds are dropped by rule."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import NamedSharding, PartitionSpec
from tasks import assert_trees_close, assert_trees_equal, half_square, quadratics

import dflax as dx
from dflax import channel, privacy
from dflax.aggregation import Combining
from dflax.channel import Sending
from dflax.clients import sum_clients
from dflax.privacy.secure_aggregation.masks import removable, ring

KEY = jax.random.key(0)
M = 7
WEIGHTS = np.array([1, 2, 0, 3, 1, 1, 2], np.float32)


def messages(seed=0, scale=1.0):
    generator = np.random.default_rng(seed)
    return {
        "w": jnp.asarray(scale * generator.normal(size=(M, 5, 3)), jnp.float32),
        "b": jnp.asarray(scale * generator.normal(size=(M, 4)), jnp.float32),
    }


def ends(literal, options):
    """Both ends and the whole of one round, a program of messages, weights, round and who is lost."""

    @jax.jit
    def both(tree, weights, index, lost):
        pair = privacy.secure_aggregation(
            KEY, M, literal=literal, transport=losing(lost), threshold=1, **dict(options)
        )
        key, invited = KEY, weights > 0
        sending = Sending(key, index, jnp.arange(M), None, invited)
        words, left, _, metrics = pair.channel.apply(tree, weights, (), sending)
        here = Combining(key, index, jnp.arange(M), None, None, invited)
        out, _, _ = pair.aggregator.apply(words, left, (), here)
        whole, _, told = pair.mean.apply(tree, weights, (), here)
        return words, left, out, whole, metrics, told

    return both


def rows(*numbers):
    return np.isin(np.arange(M), numbers)


def losing(gone):
    """Loses the messages of these rows."""

    def apply(tree, weights, state, sending):
        def zero(leaf):
            return jnp.where(gone.reshape(-1, *(1,) * (leaf.ndim - 1)), 0, leaf)

        return jax.tree.map(zero, tree), jnp.where(gone, 0, weights), state, {}

    return channel.Channel(lambda message: (), apply)


def by_hand(tree, weights, scale, largest=None):
    """The mean of rounded integers, in float64 NumPy."""
    share = (weights > 0) * 1.0 if largest is None else np.minimum(weights / largest, 1)
    divisor = share.sum() if largest is None else np.round(share * 2**scale).sum() / 2**scale

    def of(leaf):
        rows = np.asarray(leaf, np.float64).reshape(M, -1) * share[:, None]
        return (np.round(rows * 2**scale).sum(0) / 2**scale / divisor).reshape(leaf.shape[1:])

    return jax.tree.map(of, tree)


ALL = (("bound", 8.0), ("scale_bits", 20))
SOME = (*ALL, ("neighbours", 4), ("largest_weight", 3.0))


@pytest.mark.parametrize(
    ("options", "lost"),
    [
        (SOME, []),
        (SOME, [0, 5]),
        pytest.param(ALL, [], marks=pytest.mark.slow),
        pytest.param(ALL, [1, 3], marks=pytest.mark.slow),
    ],
)
def test_masks_drawn_and_taken_off_leave_the_sum_bit_for_bit(options, lost):
    """The literal mode equals the other one, both the integers' mean; bare words differ from masked."""
    tree, weights, largest = messages(), jnp.asarray(WEIGHTS), dict(options).get("largest_weight")
    bare = ends(False, options)(tree, weights, 4, rows(*lost))
    masked = ends(True, options)(tree, weights, 4, rows(*lost))
    assert_trees_equal(bare[1:], masked[1:])
    assert_trees_equal(masked[2], masked[3])
    there = WEIGHTS.copy()
    there[lost] = 0
    np.testing.assert_array_equal(bare[1], there)
    wanted = by_hand(tree, there, 20, largest)
    # A weight's third is a float32, so a number here and there is rounded the other way.
    assert_trees_close(masked[2], wanted, rtol=0, atol=2.0**-21 if largest is None else 2.0**-20)
    words, hidden = (np.asarray(r[0]["w"])[there > 0] for r in (bare, masked))
    assert (words != hidden).mean() > 0.99
    # Uniform words: their high bits say nothing.
    assert abs((hidden >> 31).mean() - 0.5) < 0.2


def test_another_round_has_other_masks_and_neighbours():
    run = ends(True, SOME)
    first, second = (run(messages(), jnp.asarray(WEIGHTS), t, rows()) for t in (0, 1))
    assert (np.asarray(first[0]["w"]) != np.asarray(second[0]["w"]))[WEIGHTS > 0].mean() > 0.99
    assert_trees_equal(first[2], second[2])


@settings(max_examples=20, deadline=None)
@given(st.lists(st.booleans(), min_size=M, max_size=M), st.integers(0, 1000))
def test_a_narrow_modulus_is_exact_for_every_dropout_pattern(sends, seed):
    """Integers in [-2, 2], m just wide enough; whoever sends, the sum is theirs."""
    whole = np.random.default_rng(seed).integers(-2, 3, (M, 6)).astype(np.float32)
    weights = np.asarray(sends, np.float32)
    out = narrow()(jnp.asarray(whole), jnp.asarray(weights), seed)
    wanted = (weights @ whole) / max(weights.sum(), 1)
    np.testing.assert_allclose(out, wanted, rtol=1e-6)


@functools.cache
def narrow():
    pair = privacy.secure_aggregation(KEY, M, bound=2.0, scale_bits=0, modulus_bits=5, literal=True)

    def run(tree, sends, index):
        here = Sending(KEY, index, None, None, jnp.ones(M, bool))
        words, _, _, _ = pair.channel.apply(tree, jnp.ones(M), (), here)
        # Lost after they were masked, by a channel behind this one.
        words = jnp.where(sends[:, None] > 0, words, 0)
        combining = Combining(KEY, index, invited=jnp.ones(M, bool))
        return pair.aggregator.apply(words, sends, (), combining)[0]

    return jax.jit(run)


@pytest.mark.parametrize(("neighbours", "threshold"), [(None, 4), (None, None), (2, 2), (4, 3)])
def test_a_round_is_dropped_where_too_few_shares_of_a_wanted_secret_answer(neighbours, threshold):
    """Against the rule written as sets, for all 2^6 patterns of who sent, twice with silent ones."""
    participates = np.arange(M) != 2
    around = ring(jax.random.fold_in(KEY, 3), jnp.asarray(participates), neighbours)
    place = np.asarray(around.place)
    count = participates.sum()

    def near(i, j):
        apart = (place[i] - place[j]) % count
        return neighbours is None or min(apart, count - apart) <= neighbours // 2

    rows = np.flatnonzero(participates)
    friends = {i: {j for j in rows if j != i and near(i, j)} for i in rows}
    assert all(
        len(f) == (count - 1 if neighbours is None else neighbours) for f in friends.values()
    )
    found = jax.jit(lambda sent, answer: removable(around, sent, answer, threshold))
    seen = set()
    for pattern in itertools.product([False, True], repeat=len(rows)):
        for silent in (set(), {rows[0], rows[3]}):
            sent = {i for i, yes in zip(rows, pattern, strict=True) if yes}
            answer = sent - silent
            wanted = {i for i in rows if i in sent or friends[i] & sent}
            need = {i: threshold or (len(friends[i]) + 1) // 2 + 1 for i in rows}
            holds = all(len((friends[i] | {i}) & answer) >= need[i] for i in wanted)
            given_sent = jnp.asarray([i in sent for i in range(M)])
            given_answer = jnp.asarray([i in answer for i in range(M)])
            assert bool(found(given_sent, given_answer)) == holds, (sent, answer)
            seen.add(holds)
    assert seen == {True, False}


def test_a_dropped_round_leaves_the_server_bit_for_bit_and_is_counted():
    task = quadratics(6)
    pair = privacy.secure_aggregation(KEY, 6, bound=8.0, threshold=5, transport=channel.lossy(0.25))
    method = dx.server.fedavg(
        half_square,
        optax.sgd(0.1),
        optax.sgd(1.0, momentum=0.9),
        channel=pair.channel,
        aggregator=pair.aggregator,
    )
    state, step = method.init(KEY, jnp.ones(3)), jax.jit(method.step)
    source, dropped = task.federation(), 0
    for t in range(8):
        before = state
        state, metrics = step(state, source.draw(KEY, t))
        reporting = 0 if metrics["rounds_dropped"] else 6 - metrics["messages_lost"]
        assert metrics["clients_reporting"] == reporting
        if metrics["rounds_dropped"]:
            dropped += 1
            assert_trees_equal(state.server, before.server)
        else:
            assert np.abs(state.server.params - before.server.params).max() > 0
    assert 0 < dropped < 8


def test_in_a_federation_it_is_the_weighted_mean_up_to_rounding():
    task = quadratics(6)
    weights = jnp.asarray([1.0, 2.0, 3.0, 4.0, 5.0, 6.0])
    source = task.federation(weights=weights, participation=dx.participation.uniform(4))
    plain = dx.server.fedavg(half_square, optax.sgd(0.1))
    pair = privacy.secure_aggregation(KEY, 4, bound=4.0, scale_bits=24, largest_weight=6.0)
    secure = dx.server.fedavg(
        half_square, optax.sgd(0.1), channel=pair.channel, aggregator=pair.aggregator
    )
    ends = []
    for method in (plain, secure):
        run = jax.jit(functools.partial(dx.rollout, method, rounds=5))
        ends.append(run(method.init(KEY, jnp.ones(3)), source, KEY)[0].server.params)
    np.testing.assert_allclose(*ends, rtol=0, atol=5e-6)
    assert np.abs(ends[0] - 1).max() > 0.1


def test_numbers_and_weights_beyond_the_bounds_are_cut_and_counted_and_nan_is_dropped():
    tree = messages()
    tree["w"] = tree["w"].at[3, 0, 0].set(100.0).at[0, 0, 0].set(jnp.nan)
    run = ends(False, (("bound", 50.0), ("largest_weight", 2.0)))
    _, left, out, whole, metrics, told = run(tree, jnp.asarray(WEIGHTS), 0, rows())
    assert_trees_equal((out, metrics), (whole, told))
    assert metrics["numbers_clipped"] == 1
    assert metrics["weights_clipped"] == 1
    assert metrics["messages_dropped"] == 1
    assert left[0] == 0
    cut = jax.tree.map(lambda leaf: np.clip(np.asarray(leaf), -50, 50), tree)
    cut["w"][0] = 0
    there = WEIGHTS * (np.arange(M) > 0)
    assert_trees_close(out, by_hand(cut, there, 16, 2.0), rtol=1e-5, atol=1e-5)


def test_message_sizes_are_those_that_the_paper_prints():
    """1.73 and 1.98 times the numbers alone, Bonawitz et al., abstract: 16-bit numbers."""
    for exponent, printed in ((10, 1.73), (14, 1.98)):
        n, d = 2**exponent, 2 ** (exponent + 10)
        size = privacy.message_bytes(d, n - 1, modulus_bits=16 + exponent)
        np.testing.assert_allclose(size.total / (2 * d), printed, atol=0.005)
        bits = 2 * n * 256 + (5 * n - 4) * 256 + d * (16 + exponent)
        assert size.total == bits / 8
    run = ends(False, SOME)
    *_, metrics, _ = run(messages(), jnp.asarray(WEIGHTS), 0, rows(0, 5))
    # Nineteen numbers and a weight.
    each = privacy.message_bytes(20, 4, modulus_bits=32)
    # Six participate and send, two of the messages are lost, four answer.
    sent = 6 * (each.keys_sent + each.shares_sent + each.vector) + 4 * each.answer
    assert metrics["bytes_sent"] == sent
    assert metrics["bytes_received"] == 6 * (each.keys_received + each.shares_received)


def test_client_shares_of_noise_add_up_to_the_deviation_that_is_wanted():
    """n shares of N(0, sigma^2 / n) before the encoding: the sum has deviation sigma."""
    d, sigma = 20_000, 3.0
    pair = privacy.secure_aggregation(KEY, M, bound=64.0, scale_bits=16)
    link = channel.chain(privacy.joint_noise(sigma), pair.channel)
    words, weights, _, metrics = jax.jit(link.apply)(
        jnp.zeros((M, d)), jnp.ones(M), ((), ()), Sending(KEY, 0, jnp.arange(M))
    )
    total = M * pair.aggregator.apply(words, weights, (), Combining(KEY))[0]
    assert metrics["numbers_clipped"] == metrics["noise_short"] == 0
    np.testing.assert_allclose(np.std(total), sigma, rtol=3 / np.sqrt(2 * d))
    np.testing.assert_allclose(np.mean(total), 0, atol=4 * sigma / np.sqrt(d))


@pytest.mark.slow
@pytest.mark.parametrize("literal", [False, True])
def test_on_devices_sums_are_the_same_bit_for_bit(literal):
    pair = privacy.secure_aggregation(KEY, 8, bound=8.0, neighbours=4, literal=literal)
    tree = jnp.asarray(np.random.default_rng(1).normal(size=(8, 5)), jnp.float32)

    def run(tree):
        sending = Sending(KEY, 0, jnp.arange(8))
        words, weights, _, told = pair.channel.apply(tree, jnp.ones(8), (), sending)
        here = Combining(KEY)
        return (
            pair.aggregator.apply(words, weights, (), here)[0],
            pair.mean.apply(tree, jnp.ones(8), (), here)[0],
            told,
        )

    alone = jax.jit(run)(tree)
    mesh = dx.client_mesh()
    with jax.set_mesh(mesh):
        dealt = NamedSharding(mesh, PartitionSpec("clients"))
        shared = jax.jit(run)(jax.device_put(tree, dealt))
    assert_trees_equal(alone, shared)


def test_sums_of_clients_are_sums_and_wrap_around():
    x = jnp.asarray(np.random.default_rng(0).normal(size=(5, 3)), jnp.float32)
    square, count = jax.jit(
        lambda x: sum_clients(lambda row, c: (c * row**2, jnp.uint32(2**31)), x, shared=(2.0,))
    )(x)
    np.testing.assert_allclose(square, 2 * (np.asarray(x) ** 2).sum(0), rtol=1e-6)
    assert int(count) == 2**31  # 5 times 2^31, modulo 2^32
    with pytest.raises(ValueError, match="stacked"):
        sum_clients(lambda row: row, jnp.zeros((0, 3)))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"bound": 4.0, "modulus_bits": 20}, r"modulus_bits must be at least 22"),
        ({"bound": 1e4}, r"modulus_bits must be at least 34.*at most 32"),
        ({"bound": 0.1, "largest_weight": 1.0, "modulus_bits": 17}, "at least 19.*weights"),
        ({"bound": -1.0}, "bound must be"),
        ({"bound": 1.0, "neighbours": 3}, "neighbours must be even"),
        ({"bound": 1.0, "threshold": M + 1}, r"threshold must be .*7 holders"),
        ({"bound": 1.0, "neighbours": 2, "threshold": 4}, r"threshold must be .*3 holders"),
        ({"bound": 1.0, "answering": 1.5}, "answering"),
        (
            {"bound": 1.0, "transport": channel.error_feedback(channel.sign())},
            "transport must be a channel without memory",
        ),
    ],
)
def test_what_cannot_be_added_exactly_is_refused_with_the_bits_that_it_needs(arguments, words):
    with pytest.raises(ValueError, match=words):
        privacy.secure_aggregation(KEY, M, **arguments)


def test_the_bits_that_are_asked_for_are_enough_and_one_less_is_not():
    for n, bound, scale in ((1, 1.0, 0), (7, 0.3, 10), (100, 4.0, 16), (3, 2.5, 1)):
        limit = int(np.floor(bound * 2**scale + 0.5))
        bits = next(m for m in range(2, 33) if n * limit < 2 ** (m - 1))
        made = privacy.fixed_point(n, bound=bound, scale_bits=scale, modulus_bits=bits)
        total = made.encode(jnp.full(n, -bound)).sum(dtype=jnp.uint32)
        assert made.decode(made.wrapped(total), jnp.float32) == -n * limit / 2**scale
        if bits > 2:
            with pytest.raises(ValueError, match=f"at least {bits}"):
                privacy.fixed_point(n, bound=bound, scale_bits=scale, modulus_bits=bits - 1)


def test_plain_messages_and_too_many_are_refused():
    pair = privacy.secure_aggregation(KEY, 3, bound=1.0)
    with pytest.raises(TypeError, match="uint32 words"):
        pair.aggregator.apply(jnp.ones((3, 2)), jnp.ones(3), (), Combining(KEY))
    with pytest.raises(ValueError, match="at least the 4 messages"):
        pair.mean.apply(jnp.ones((4, 2)), jnp.ones(4), (), Combining(KEY))
    with pytest.raises(TypeError, match="real numbers, got int32"):
        pair.channel.apply(jnp.ones((3, 2), int), jnp.ones(3), (), Sending(KEY))
    with pytest.raises(TypeError, match="known when the program is traced"):
        jax.jit(lambda b: privacy.fixed_point(3, bound=b).bound)(1.0)
