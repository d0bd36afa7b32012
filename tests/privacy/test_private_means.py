"""Private means, noise and its shares: formulas, scales, and what one client can do."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from tasks import assert_trees_close, half_square, quadratics

import dflax as dx
from dflax.aggregation.aggregator import Combining
from dflax.channel import Sending

KEY = jax.random.key(0)
GENERATOR = np.random.default_rng(0)
ROWS = {"a": GENERATOR.normal(size=(6, 3)), "b": GENERATOR.normal(size=(6, 2, 2))}
WEIGHTS = np.array([1.0, 5.0, 0.0, 2.0, 1.0, 1.0])


def lengths(rows):
    return np.sqrt(sum((leaf.reshape(6, -1) ** 2).sum(1) for leaf in rows.values()))


@functools.cache
def program(rule):
    return jax.jit(
        lambda rows, weights, state, key: rule.apply(rows, weights, state, Combining(key))
    )


def combined(rule, rows=ROWS, weights=WEIGHTS, key=KEY, state=None):
    state = rule.init(jax.tree.map(lambda leaf: leaf[0], rows)) if state is None else state
    return program(rule)(jax.tree.map(jnp.asarray, rows), jnp.asarray(weights), state, key)


def noises(make, count=400):
    """Deviations of the result of `make(key)` over many keys, from its mean: `[count, numbers]`."""
    out = jax.jit(jax.vmap(make))(jax.random.split(KEY, count))
    flat = np.concatenate([np.asarray(leaf).reshape(count, -1) for leaf in jax.tree.leaves(out)], 1)
    return flat


def test_a_private_mean_is_its_formula_and_weights_do_not_count():
    with jax.enable_x64(True):
        out, _, metrics = combined(dx.privacy.private_mean(2.0, 0.0, 4.0))
    factors = np.minimum(1, 2.0 / lengths(ROWS)) * (WEIGHTS > 0)
    for name, leaf in ROWS.items():
        np.testing.assert_allclose(out[name], np.tensordot(factors, leaf, 1) / 4, atol=1e-14)
    there = WEIGHTS > 0
    np.testing.assert_allclose(metrics["clipped"], (lengths(ROWS) > 2)[there].mean(), rtol=1e-6)


def test_noise_has_its_scale_everywhere():
    rule = dx.privacy.private_mean(2.0, 1.5, 4.0)
    rows = jax.tree.map(jnp.asarray, ROWS)
    found = noises(lambda key: rule.apply(rows, WEIGHTS, (), Combining(key))[0])
    still, _, _ = combined(dx.privacy.private_mean(2.0, 0.0, 4.0))
    flat = np.concatenate([np.asarray(still[name]).reshape(-1) for name in "ab"])
    noise = (found - flat) / (1.5 * 2.0 / 4)
    # 2800 normal numbers: their mean square is 1 up to 0.027.
    assert abs(np.mean(noise**2) - 1) < 0.11
    assert np.abs(np.mean(noise, 0)).max() < 5 / 20
    correlation = noise.T @ noise / 400
    assert np.abs(correlation - np.eye(7)).max() < 5 * np.sqrt(2 / 400)


@pytest.mark.slow
def test_jax_privacy_adds_noise_of_the_same_scale():
    noise_addition = pytest.importorskip("jax_privacy.noise_addition")
    like = {"a": jnp.zeros((100, 50)), "b": jnp.zeros(500)}
    theirs = noise_addition.gaussian_privatizer(stddev=0.7, prng_key=KEY)
    noisy, _ = theirs.update(like, theirs.init(like))
    ours = dx.privacy.noisy(dx.aggregation.mean(), 0.7)
    rows = jax.tree.map(lambda leaf: leaf[None], like)
    found, _, _ = ours.apply(rows, jnp.ones(1), (), Combining(KEY))
    for name in "ab":
        np.testing.assert_allclose(jnp.std(found[name]), jnp.std(noisy[name]), rtol=0.1)
        np.testing.assert_allclose(jnp.std(found[name]), 0.7, rtol=0.1)


def test_one_client_moves_the_sum_by_the_norm_at_most_whatever_it_sends():
    rule = dx.privacy.private_mean(0.5, 1.0, 3.0)
    out, _, _ = combined(rule)
    for wild in (1e20, np.nan, np.inf, 1e-3):
        rows = {name: leaf.copy() for name, leaf in ROWS.items()}
        rows["a"][4] = wild
        for weights in (WEIGHTS, np.where(np.arange(6) == 4, 0, WEIGHTS)):
            other, _, metrics = combined(rule, rows, weights)
            moved = np.sqrt(sum(np.sum((out[n] - np.asarray(other[n])) ** 2) for n in "ab"))
            assert moved <= 2 * 0.5 / 3 * (1 + 1e-5)
            assert metrics["messages_dropped"] == (not np.isfinite(wild)) * (weights[4] > 0)


def test_the_adaptive_clip_is_its_formula_and_finds_the_quantile():
    rule = dx.privacy.adaptive_private_mean(
        0.5, 0.0, 5.0, count_deviation=1e-9, start=0.1, rate=0.3
    )
    out, clip, metrics = combined(rule)
    share = 0.5 + (np.where(lengths(ROWS) <= 0.1, 0.5, -0.5) * (WEIGHTS > 0)).sum() / 5
    np.testing.assert_allclose(clip, 0.1 * np.exp(-0.3 * (share - 0.5)), rtol=1e-6)
    np.testing.assert_allclose(metrics["clip"], 0.1)
    factors = np.minimum(1, 0.1 / lengths(ROWS)) * (WEIGHTS > 0)
    np.testing.assert_allclose(out["a"], factors @ ROWS["a"] / 5, atol=1e-6)
    noisy = dx.privacy.adaptive_private_mean(0.5, 0.4, 5.0, count_deviation=0.5, start=0.1)
    rows = jax.tree.map(jnp.asarray, ROWS)

    def body(state, key):
        return noisy.apply(rows, WEIGHTS, state, Combining(key))[1], state

    _, clips = jax.jit(lambda: jax.lax.scan(body, noisy.init(ROWS), jax.random.split(KEY, 300)))()
    median = np.median(lengths(ROWS)[WEIGHTS > 0])
    assert abs(np.median(clips[100:]) / median - 1) < 0.25


def test_the_count_and_the_sum_are_together_one_release():
    """The noises' deviations: z'^-2 + (2 s)^-2 = z^-2."""
    rule = dx.privacy.adaptive_private_mean(0.5, 0.8, 1.0, count_deviation=0.6, start=2.0, rate=1.0)
    zero = jax.tree.map(jnp.zeros_like, jax.tree.map(jnp.asarray, ROWS))

    def one(key):
        out, clip, _ = rule.apply(zero, WEIGHTS, jnp.float32(2.0), Combining(key))
        return out["b"], jnp.log(clip)

    found = noises(one, 2000)
    total, count = found[:, :4].std() / 2.0, found[:, 4].std()
    np.testing.assert_allclose(count, 0.6, rtol=0.08)
    np.testing.assert_allclose(total**-2 + (2 * count) ** -2, 0.8**-2, rtol=0.1)
    with pytest.raises(ValueError, match="count_deviation must be above"):
        dx.privacy.adaptive_private_mean(0.5, 1.3, 1.0, count_deviation=0.6)


def test_shares_of_noise_add_up():
    rows = jax.tree.map(jnp.asarray, ROWS)
    weights = jnp.asarray(WEIGHTS)
    sending = Sending(KEY, 0, jnp.arange(6), 6)

    def total(channel):
        def one(key):
            sent, _, _, metrics = channel.apply(rows, weights, (), sending._replace(key=key))
            noise = jax.tree.map(lambda s, r: (s - r)[WEIGHTS > 0].sum(0), sent, rows)
            return noise, metrics["noise_short"]

        return one

    exact = noises(total(dx.privacy.joint_noise(1.2, tolerated=1)), 600)
    np.testing.assert_allclose(exact[:, :-1].std(), 1.2, rtol=0.05)
    assert not exact[:, -1].any()
    short = noises(total(dx.privacy.joint_noise(1.2)), 600)
    np.testing.assert_allclose(short[:, :-1].std(), 1.2 * np.sqrt(5 / 6), rtol=0.05)
    assert short[:, -1].all()


@pytest.mark.slow
def test_clients_cut_their_own_messages():
    rows = {name: leaf.copy() for name, leaf in ROWS.items()}
    rows["b"][0] = np.nan
    channel = dx.privacy.clipped_updates(1.0)
    sent, weights, _, metrics = channel.apply(
        jax.tree.map(jnp.asarray, rows), jnp.asarray(WEIGHTS), (), Sending(KEY)
    )
    norms = lengths({name: np.asarray(leaf, float) for name, leaf in sent.items()})
    wanted = np.minimum(lengths(ROWS), 1.0) * (WEIGHTS > 0)
    np.testing.assert_allclose(norms, np.where(np.arange(6) == 0, 0, wanted), rtol=1e-5)
    np.testing.assert_array_equal(weights, WEIGHTS)
    assert metrics["not_finite"] == 1


def test_noise_on_a_rule_and_on_gradients():
    rows = jax.tree.map(jnp.asarray, ROWS)
    rule = dx.privacy.noisy(dx.aggregation.median(), 0.3)
    still, _, _ = combined(dx.aggregation.median())
    found = noises(lambda key: rule.apply(rows, WEIGHTS, (), Combining(key))[0])
    flat = np.concatenate([np.asarray(still[name]).reshape(-1) for name in "ab"])
    np.testing.assert_allclose((found - flat).std(), 0.3, rtol=0.06)
    from dflax.data.dataset import Batch

    batch = Batch(jnp.zeros((2, 5)), jnp.zeros(2))
    oracle = dx.privacy.noisy_gradient(half_square, 0.3)
    seen = noises(lambda key: oracle(jnp.ones(5), batch, key)[0], 600)
    np.testing.assert_allclose(seen.std(), 0.3, rtol=0.06)
    np.testing.assert_allclose(seen.mean(), 1.0, atol=0.03)


def test_dp_fedavg_follows_its_pseudo_code():
    task = quadratics(clients=8)
    source = task.federation(2, participation=dx.participation.bernoulli(0.5))
    algorithm = dx.recipes.dp_fedavg(half_square, optax.sgd(0.5), 0.7, 0.0, 4.0)
    start = algorithm.init(KEY, jnp.zeros(3))
    state, _ = dx.run(algorithm, start, source, rounds=5, key=KEY)
    x = np.zeros(3)
    for t in range(5):
        there = np.asarray(source.draw(KEY, t).reports) > 0
        change = (1 - 0.5**2) * (task.centers - x)
        length = np.linalg.norm(change, axis=1)
        x = x + (there * np.minimum(1, 0.7 / length)) @ change / 4
    np.testing.assert_allclose(state.server.params, x, atol=1e-5)


@pytest.mark.slow
def test_dp_fedavg_on_devices_is_the_same():
    source = quadratics(clients=8).federation(2, participation=dx.participation.bernoulli(0.5))
    noisy = dx.recipes.dp_fedavg(half_square, optax.sgd(0.5), 0.7, 0.5, 4.0, 0.5)
    start = noisy.init(KEY, jnp.zeros(3))
    alone, told = dx.run(noisy, start, source, rounds=3, key=KEY)
    dealt, again = dx.run(noisy, start, source, rounds=3, key=KEY, mesh=dx.client_mesh())
    assert_trees_close(dealt.server, alone.server, rtol=1e-4, atol=1e-5)
    assert_trees_close(again.metrics, told.metrics, rtol=1e-4, atol=1e-5)
