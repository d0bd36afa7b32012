"""Delegated tasks against the closed forms of polling, staleness and discovery."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import dflax as dx
from dflax import p2p
from dflax.p2p.delegation.discovery import Asked

KEY = jax.random.key(6)
CERTAIN = {"input_chance": 0.0, "failure": 0.0}


def asked(agents, holders, keys, registry=True):
    have = jnp.arange(agents) < holders
    owner = jnp.int32(agents - 1)
    met = jnp.zeros(agents, bool)
    return [Asked(have, owner, met, jnp.bool_(registry), key) for key in keys], Asked(
        have, owner, met, jnp.bool_(registry), keys
    )


def found(discovery, agents=200, holders=10, registry=True):
    keys = jax.random.split(KEY, 3000)
    _, many = asked(agents, holders, keys, registry)
    axes = Asked(None, None, None, None, 0)
    return jax.jit(jax.vmap(discovery, in_axes=(axes,)))(many)


def test_a_crawl_takes_the_expected_probes():
    one = found(p2p.crawl())
    # The owner does not probe itself: (n - 1 + 1) / (m + 1) probes of two messages.
    np.testing.assert_allclose(one.messages.mean(), 2 * 200 / 11, rtol=0.04)
    assert (one.worker < 10).all()
    assert len(np.unique(one.worker)) == 10
    none = found(p2p.crawl(), agents=20, holders=0)
    assert not none.some.any()


@pytest.mark.parametrize(
    ("discovery", "messages"),
    [
        (p2p.configured(), 5.0),
        (p2p.registry(), 2.0),
        (p2p.distributed_index(), np.log2(200) + 4),
        (p2p.flooding(), 400.0),
    ],
)
def test_other_ways_to_discover_cost_what_they_say(discovery, messages):
    one = found(discovery)
    np.testing.assert_allclose(one.messages, messages, rtol=1e-6)
    assert (one.worker < 10).all()
    np.testing.assert_allclose(np.bincount(one.worker, minlength=10) / 3000, 0.1, atol=0.03)


def test_a_registry_that_is_down_finds_nobody():
    assert not found(p2p.registry(), registry=False).some.any()
    assert found(p2p.distributed_index(), registry=False).some.all()


def test_polling_has_its_closed_form():
    durations = jax.random.exponential(KEY, (40_000,)) / 0.5
    learnt = jax.vmap(lambda d: p2p.polling(1.0)(d, 0.05, KEY))(durations)
    np.testing.assert_allclose(learnt.delay.mean(), 0.5415 + 0.1, atol=0.01)
    np.testing.assert_allclose(learnt.messages.mean() / 2, 2.5415, rtol=0.02)
    one = p2p.polling(1.0)(jnp.float32(2.25), 0.0, KEY)
    np.testing.assert_allclose([one.delay, one.messages], [0.75, 6.0])


def test_other_ways_to_learn_cost_what_they_say():
    one = p2p.stream(5)(jnp.float32(3.0), 0.05, KEY)
    np.testing.assert_allclose([one.delay, one.messages], [0.05, 7.0])
    late = p2p.reply(2.0)(jnp.float32(3.0), 0.05, KEY)
    assert bool(late.failed)
    assert not bool(p2p.reply()(jnp.float32(3.0), 0.05, KEY).failed)
    lost = p2p.push(1.0, fallback=10.0)(jnp.float32(3.0), 0.0, KEY)
    np.testing.assert_allclose([lost.delay, lost.messages], [7.0, 5.0])
    kept = p2p.push(0.0)(jnp.float32(3.0), 0.05, KEY)
    np.testing.assert_allclose([kept.delay, kept.messages], [0.05, 3.0])


@jax.jit
def measured(lifetime, change_rate, downtime, key):
    algorithm = p2p.delegation(
        p2p.registry(),
        p2p.stream(),
        share=1.0,
        lifetime=lifetime,
        change_rate=change_rate,
        downtime=downtime,
        **CERTAIN,
    )
    source = p2p.task_stream(10, 1, rate=2.0, speed=1e6)
    return dx.rollout(algorithm, algorithm.init(key, (10, 1)), source, key, 30_000)


@pytest.mark.slow
def test_staleness_has_its_closed_form():
    _, metrics = measured(5.0, 0.1, 0.0, KEY)
    np.testing.assert_allclose(metrics["stale"].mean(), 0.1937, atol=0.02)
    np.testing.assert_allclose(metrics["refetched"].mean(), 1 / 11, atol=0.01)
    _, always = measured(0.0, 0.1, 0.0, KEY)
    assert not np.asarray(always["stale"]).any()
    assert np.asarray(always["refetched"]).all()


@pytest.mark.slow
def test_a_certain_task_takes_its_latency_and_its_work():
    state, metrics = measured(5.0, 0.0, 0.0, KEY)
    np.testing.assert_allclose(metrics["time"], 0.05, atol=2e-3)
    np.testing.assert_allclose(metrics["results"], 7.0)
    np.testing.assert_allclose(metrics["submissions"], 2.0)
    whole = sum(metrics[name] for name in ("discovery", "cards", "submissions", "results"))
    np.testing.assert_allclose(metrics["messages"], whole)
    # Each agent looks once; after that it reads cards.
    assert int((metrics["discovery"] > 0).sum()) == 10
    assert int(state.version.sum()) == 0


def test_who_is_rejected_looks_anew():
    algorithm = p2p.delegation(
        p2p.crawl(), p2p.reply(), share=0.5, change_rate=5.0, lifetime=100.0, **CERTAIN
    )
    source = p2p.task_stream(10, 3, rate=2.0, speed=1e6)
    _, metrics = jax.jit(
        lambda key: dx.rollout(algorithm, algorithm.init(key, (10, 3)), source, key, 1000)
    )(KEY)
    rejected = np.asarray(metrics["rejected"]) > 0
    assert 0.2 < rejected.mean() < 0.6
    done = ~np.asarray(metrics["failed"])
    assert done[rejected].mean() > 0.95
    np.testing.assert_allclose(
        metrics["submissions"][done], 2.0 * (1 + np.asarray(metrics["rejected"])[done])
    )
    assert (np.asarray(metrics["discovery"])[rejected & done] > 0).all()


@pytest.mark.slow
@pytest.mark.parametrize("devices", [1, 8])
def test_periods_are_swept(devices):
    swept = dx.sweep(
        lambda period: p2p.delegation(p2p.registry(), p2p.polling(period), share=1.0, **CERTAIN),
        lambda algorithm, key: algorithm.init(key, (6, 2)),
        p2p.task_stream(6, 2, rate=0.01),
        grid={"period": [0.5, 1.0, 2.0, 8.0]},
        seeds=2,
        key=KEY,
        rounds=100,
        devices=jax.devices()[:devices],
        progress=False,
    )
    delays = np.nanmean(swept.metrics["delay"], axis=-1)
    assert (np.diff(delays, axis=0) > 0).all()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: p2p.polling(0.0), "period must be"),
        (lambda: p2p.stream(-1), "events must be"),
        (lambda: p2p.push(1.5), "loss must be"),
        (lambda: p2p.task_stream(1, 1), "agents must be"),
        (lambda: p2p.delegation(p2p.registry(), p2p.reply(), share=0.0), "share must be"),
    ],
)
def test_wrong_arguments_are_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
