import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from tasks import assert_trees_close, half_square, quadratics

import dflax as dx
from dflax import aggregation, channel, participation
from dflax.channel import Sending, error_feedback, largest

KEY = jax.random.key(0)
ONES = jnp.ones(4)
GENERATOR = np.random.default_rng(0)
MESSAGES = {
    "a": jnp.asarray(GENERATOR.normal(size=(4, 6, 5)), jnp.float32),
    "b": jnp.asarray(GENERATOR.normal(size=(4, 7)), jnp.float32),
}
D = 37
BIASED = {
    "top_k": (channel.top_k(0.2), 7 * (32 + 6)),
    "random_k": (channel.random_k(0.2, unbiased=False), 7 * 32 + 32),
    "sign": (channel.sign(), D + 64),
    "qsgd": (channel.qsgd(4, contracting=True), 4 * D + 64),
    "powersgd": (channel.powersgd(1), 32 * (6 + 5 + 7)),
}


def state_of(rule, messages=MESSAGES):
    one = jax.tree.map(lambda leaf: leaf[0], messages)
    return dx.replicate(rule.init(one), jax.tree.leaves(messages)[0].shape[0])


def rows(messages):
    leaves = [np.asarray(leaf).reshape(leaf.shape[0], -1) for leaf in jax.tree.leaves(messages)]
    return np.concatenate(leaves, 1).astype(np.float64)


@pytest.mark.parametrize(("size", "count"), [(37, 7), (37, 1), (37, 37), (1000, 3), (1000, 400)])
def test_the_largest_entries_are_those_of_a_sort(size, count):
    values = GENERATOR.normal(size=size).astype(np.float32)
    values[: size // 2] = np.round(values[: size // 2])
    expected = np.zeros(size, bool)
    expected[np.argsort(-np.abs(values), kind="stable")[:count]] = True
    found = jax.jit(largest, static_argnums=1)(jnp.asarray(values), count)
    np.testing.assert_array_equal(found, expected)


def test_the_largest_of_zeros_and_of_integers_are_exactly_as_many():
    zeros = jax.jit(largest, static_argnums=1)(jnp.zeros(50), 20)
    np.testing.assert_array_equal(zeros, np.arange(50) < 20)
    words = jnp.asarray([5, 2**32 - 1, 5, 0, 7], jnp.uint32)
    np.testing.assert_array_equal(largest(words, 3), [True, True, False, False, True])


@pytest.mark.some(2)
@pytest.mark.parametrize("name", list(BIASED))
def test_compressors_are_contractions_and_count_their_bytes(name):
    """E |x - C(x)|^2 <= (1 - delta) |x|^2 with the delta that each states."""
    rule, bits = BIASED[name]
    weights = jnp.asarray([1.0, 2.0, 0.0, 1.0])

    @jax.jit
    @jax.vmap
    def apply(key):
        return rule.apply(MESSAGES, weights, state_of(rule), Sending(key))

    out, arrived, _, metrics = apply(jax.random.split(KEY, 200))
    x = rows(MESSAGES)
    squares = np.sum(x**2, 1)
    sent = np.stack([rows(jax.tree.map(lambda leaf, r=r: leaf[r], out)) for r in range(200)])
    errors = np.sum((sent - x) ** 2, 2).mean(0) / squares
    if name == "top_k":
        expected = 1 - np.sort(x**2, 1)[:, -7:].sum(1) / squares
        assert ((sent[0] != 0).sum(1) == 7).all()
    elif name == "random_k":
        expected = np.full(4, 1 - 7 / D)
        assert ((sent[0] != 0).sum(1) == 7).all()
    elif name == "sign":
        parts = (x[:, :30], x[:, 30:])
        expected = 1 - sum(np.abs(p).sum(1) ** 2 / p.shape[1] for p in parts) / squares
    elif name == "qsgd":
        omega = max(min(d / 16, d**0.5 / 4) for d in (30, 7))
        expected = np.full(4, omega / (1 + omega))
        assert (errors <= expected * 1.05).all()
        expected = errors
    else:
        expected = 1 - np.sum(sent[0] ** 2, 1) / squares  # a projection
        assert np.linalg.matrix_rank(sent[0][0, :30].reshape(6, 5), tol=1e-5) == 1
        np.testing.assert_array_equal(sent[0][:, 30:], x[:, 30:])
    np.testing.assert_allclose(errors, expected, rtol=0.05)
    assert (errors < 1).all()
    np.testing.assert_array_equal(arrived[0], weights)
    assert metrics["bytes_sent"][0] == 3 * bits / 8
    assert metrics["bytes_uncompressed"][0] == 3 * 4 * D


@pytest.mark.parametrize("rule", [channel.random_k(0.3), channel.qsgd(2)], ids=["random_k", "qsgd"])
def test_unbiased_compressors_have_the_message_for_their_mean(rule):
    @jax.jit
    def mean(key):
        def one(key):
            return rule.apply(MESSAGES, jnp.ones(4), (), Sending(key))[0]

        return jax.tree.map(lambda leaf: leaf.mean(0), jax.vmap(one)(jax.random.split(key, 1000)))

    assert np.abs(rows(mean(KEY)) - rows(MESSAGES)).max() < 0.3


def test_the_power_iteration_converges_to_the_best_approximation():
    """Warm starts: after some messages of the same matrix, the rank-2 truncated SVD."""
    left = GENERATOR.normal(size=(1, 8, 6))
    u, _, vt = np.linalg.svd(left[0])
    matrix = (u[:, :6] * np.array([5, 4, 1, 0.5, 0.2, 0.1])) @ vt
    message = {"m": jnp.asarray(matrix[None], jnp.float32)}
    rule = channel.powersgd(2)
    state = state_of(rule, message)
    step = jax.jit(rule.apply)
    for _ in range(8):
        out, _, state, _ = step(message, jnp.ones(1), state, Sending(KEY))
    best = (u[:, :2] * [5, 4]) @ vt[:2]
    np.testing.assert_allclose(out["m"][0], best, atol=1e-3)
    zero, *_ = step({"m": jnp.zeros((1, 8, 6))}, jnp.ones(1), state, Sending(KEY))
    np.testing.assert_array_equal(zero["m"], 0.0)


@pytest.mark.parametrize("name", ["top_k", "sign", "powersgd"])
def test_what_was_sent_and_what_is_remembered_add_up_to_all_messages(name):
    rule = error_feedback(BIASED[name][0])
    step = jax.jit(rule.apply)
    state = state_of(rule)
    sent = total = jax.tree.map(jnp.zeros_like, MESSAGES)
    for t in range(5):
        messages = jax.tree.map(lambda leaf, t=t: leaf * (1 + t), MESSAGES)
        out, _, state, _ = step(messages, jnp.ones(4), state, Sending(jax.random.fold_in(KEY, t)))
        sent, total = (jax.tree.map(jnp.add, a, b) for a, b in ((sent, out), (total, messages)))
    remembered = jax.tree.map(jnp.add, sent, state[0])
    assert_trees_close(remembered, total, rtol=1e-4, atol=1e-4)
    assert np.abs(rows(state[0])).max() > 0.1


TASK = quadratics(clients=6, dimension=4)


def test_memories_stay_with_their_clients_when_some_are_absent():
    rule = participation.dropout(participation.uniform(3), 0.4)
    federation = TASK.federation(participation=rule)
    algorithm = dx.server.fedavg(
        half_square, optax.sgd(0.5), channel=error_feedback(channel.top_k(0.25)), clients=6
    )
    state = algorithm.init(KEY, ONES)
    step = jax.jit(algorithm.step)
    memory, absent = np.zeros((6, 4), np.float64), 0
    for t in range(8):
        drawn = federation.draw(KEY, t)
        ids = np.asarray(drawn.cohort)[np.asarray(drawn.weights) > 0]
        before = np.asarray(state.server.params, np.float64)
        state, metrics = step(state, drawn)
        owed = 0.5 * (TASK.centers[ids] - before) + memory[ids]
        sent = np.where(np.abs(owed) == np.abs(owed).max(1, keepdims=True, initial=0), owed, 0)
        memory[ids] = owed - sent
        if len(ids):
            np.testing.assert_allclose(
                state.server.params, before + sent.mean(0), rtol=1e-4, atol=1e-5
            )
        np.testing.assert_allclose(state.clients.channel[0], memory, rtol=1e-4, atol=1e-5)
        assert metrics["bytes_sent"] == len(ids) * (32 + 2) / 8
        absent += 3 - len(ids)
    assert absent > 0


def end(rule, federation, rounds, rate, **options):
    algorithm = dx.server.fedavg(half_square, optax.sgd(rate), channel=rule, clients=6, **options)
    state = algorithm.init(KEY, jnp.ones(4))
    return dx.rollout(algorithm, state, federation, KEY, rounds)[0].server.params


def test_error_feedback_converges_where_the_compressor_alone_stalls():
    """Clients pull apart in the largest coordinate, which is all that top-1 ever sends."""
    federation = TASK.federation()
    optimum = TASK.centers.mean(0)
    gaps = {
        name: float(jnp.linalg.norm(end(rule, federation, 400, 0.02) - optimum))
        for name, rule in {
            "plain": channel.top_k(0.25),
            "feedback": error_feedback(channel.top_k(0.25)),
            "differences": channel.differences(channel.top_k(0.25)),
            "sign": error_feedback(channel.sign()),
        }.items()
    }
    assert gaps["plain"] > 0.2
    for name in ("feedback", "differences", "sign"):
        assert gaps[name] < 0.05 < gaps["plain"], (name, gaps)


def test_the_majority_decides_number_by_number():
    votes = jnp.asarray([[3.0, -1.0, 0.1], [-0.1, -9.0, -0.1], [0.2, 8.0, 0.0]])
    rule = aggregation.majority_vote()
    out, *_ = rule.apply(votes, jnp.asarray([1.0, 1.0, 1.0]), (), Sending(KEY))
    np.testing.assert_array_equal(out, [1.0, -1.0, 0.0])
    out, *_ = rule.apply(votes, jnp.asarray([1.0, 0.0, 0.0]), (), Sending(KEY))
    np.testing.assert_array_equal(out, [1.0, -1.0, 1.0])
    federation = TASK.federation()
    rounds = 200
    decay = end(
        channel.sign(scaled=False),
        federation,
        rounds,
        0.1,
        server_optimizer=lambda t: optax.sgd(0.05 * 0.97**t),
        aggregator=rule,
    )
    # The vote's fixed point: the clients' median of every coordinate.
    low, high = np.sort(TASK.centers, 0)[2:4]
    assert (np.asarray(decay) > low - 0.05).all()
    assert (np.asarray(decay) < high + 0.05).all()


def test_models_in_gossip_are_sent_as_differences():
    """On a ring with contracting differences clients reach their consensus near the optimum."""
    rule = channel.differences(channel.top_k(0.5), known_start=True)
    algorithm = dx.decentralized.dfedavg(
        half_square, optax.sgd(0.02), dx.gossip.ring(6), channel=rule
    )
    federation = TASK.federation()
    state = algorithm.init(KEY, ONES)
    np.testing.assert_array_equal(state.clients.channel[0], np.ones((6, 4)))
    state, metrics = dx.rollout(algorithm, state, federation, KEY, 300)
    np.testing.assert_array_equal(metrics["bytes_sent"], 6 * 2 * (32 + 2) / 8)
    gaps = np.linalg.norm(np.asarray(state.clients.params) - TASK.centers.mean(0), axis=1)
    assert gaps.max() < 0.35 * np.linalg.norm(TASK.centers - TASK.centers.mean(0), axis=1).mean()


@pytest.mark.slow
def test_compressed_clients_are_dealt_over_devices():
    rule = error_feedback(channel.top_k(0.25))
    federation = TASK.federation(participation=participation.uniform(4))
    algorithm = dx.server.fedavg(half_square, optax.sgd(0.5), channel=rule, clients=6)
    start = algorithm.init(KEY, ONES)
    plain, _ = dx.run(algorithm, start, federation, rounds=4, key=KEY)
    dealt, _ = dx.run(algorithm, start, federation, rounds=4, key=KEY, mesh=dx.client_mesh())
    assert_trees_close(plain, dealt, rtol=1e-5, atol=1e-6)


def test_rates_can_be_swept_through_a_compressed_channel():
    rule = error_feedback(channel.qsgd(2, contracting=True))
    swept = functools.partial(end, rule, TASK.federation(), 3)
    rates = jnp.asarray([0.1, 0.5])
    found = jax.jit(jax.vmap(swept))(rates)
    alone = jax.jit(swept)
    for rate, params in zip(rates, found, strict=True):
        np.testing.assert_allclose(params, alone(rate), rtol=1e-5, atol=1e-6)


@pytest.mark.slow
def test_digits_are_learnt_from_a_hundredth_of_the_numbers():
    data = dx.data.digits()
    partition = dx.data.dirichlet(np.asarray(data.labels), 10, 0.5, seed=0)
    federation = dx.Federation(data, partition, local_steps=5, batch_size=32)
    model = dx.models.Linear(10)
    loss = dx.losses.classification(model.apply)
    rule = error_feedback(channel.top_k(0.02))
    algorithm = dx.server.fedavg(loss, optax.sgd(0.2), channel=rule, clients=10)
    state = algorithm.init(KEY, model.init(KEY, data.example)["params"])
    state, metrics = dx.rollout(algorithm, state, federation, KEY, 150)
    measure = dx.evaluation.on(loss, data.test)
    assert measure(state.server.params)["accuracy"] > 0.88
    assert 30 * metrics["bytes_sent"].sum() < metrics["bytes_uncompressed"].sum()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: channel.top_k(0.0), "share must be a finite number"),
        (lambda: channel.random_k(1.5), "share must be a finite number"),
        (lambda: channel.random_k(0.5, unbiased=1), "unbiased must be True or False"),
        (lambda: channel.qsgd(0), "levels must be an integer >= 1"),
        (lambda: channel.powersgd(0), "rank must be an integer >= 1"),
        (lambda: error_feedback(channel.top_k), "channel must be of type Channel"),
        (lambda: channel.differences(None), "channel must be of type Channel"),
        (lambda: jax.jit(lambda s: channel.top_k(s) and s)(0.5), "share must be known"),
    ],
)
def test_bad_arguments_are_refused(make, message):
    with pytest.raises((ValueError, TypeError), match=message):
        make()
