"""Correction of variances within the algorithms, against their rounds in NumPy's float64."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn
from tasks import assert_trees_close, half_square, quadratics

import dflax as dx
from dflax import aggregation, gossip, participation, topology
from dflax.aggregation import Aggregator
from dflax.decentralized import (
    dfedadmm,
    dfedavg,
    dispfl,
    dsgt,
    gossip_learning,
    merge,
    modest,
    single_merging,
)
from dflax.decentralized.modest.partial_aggregation import Election, average
from dflax.gossip import Mixing
from dflax.gossip.age_weighted import random_peers

KEY = jax.random.key(0)
N, SHAPE = 8, (4, 5)
TASK = quadratics(N, 20)
CENTERS = np.asarray(TASK.centers, np.float64)
GRAPH = topology.random_regular(N, 4, seed=1)
ALONE = functools.partial(topology.uniform, self_weight=0.0)
A = ALONE(GRAPH).dense()
W = 0.5 * np.eye(N) + 0.5 * A
CORRECTED = gossip.variance_corrected(gossip.mixer(GRAPH, weights=ALONE))


def loss(params, batch, key):
    return half_square(params.reshape(-1), batch, key)


def draw(key):
    return jax.random.normal(key, SHAPE)


def around(plain):
    """The correction of a mixer that counts the client itself."""
    return gossip.variance_corrected(plain, 0.0)


def advance(algorithm, rounds, source=None, start=draw):
    """Models at the start, states and metrics of all rounds, and the rounds as they were drawn."""
    source = TASK.federation() if source is None else source
    state = algorithm.init(KEY, start)

    def one(state, index):
        drawn = source.draw(KEY, index)
        state, metrics = algorithm.step(state, drawn)
        return state, (state, metrics, drawn.key)

    _, found = jax.jit(functools.partial(jax.lax.scan, one))(state, jnp.arange(rounds))
    return np.asarray(state.clients.params, np.float64).reshape(N, -1), *found


def stretched(mixed, wanted):
    """Rows of the wanted variances, with the means they had."""
    mean, deviation = mixed.mean(-1, keepdims=True), mixed.std(-1, keepdims=True)
    return mean + np.sqrt(wanted)[..., None] / deviation * (mixed - mean)


def rows(leaf, place=-1):
    """A leaf of one round's state, a row per client."""
    return np.asarray(leaf, np.float64)[place].reshape(N, -1)


@pytest.mark.slow
def test_dsgt_corrects_the_models_only_mixes_the_trackers_and_ends_at_the_optimum():
    """Equal models are not stretched, so the fixed point of DSGT is one still."""
    x, states, metrics = advance(dsgt(loss, 0.1, CORRECTED), 400)[:3]
    models, (trackers, gradients) = states.clients[:2]
    y = g = np.zeros((N, 20))
    for t in range(6):
        sent = x - 0.1 * y
        x = stretched(W @ sent, A @ sent.var(1))
        y = W @ y + (x - CENTERS) - g
        g = x - CENTERS
        np.testing.assert_allclose(rows(models, t), x, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(rows(trackers, t), y, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(rows(gradients, t), g, rtol=1e-4, atol=1e-5)
    assert metrics["variance_scale"][0] > 1.3
    np.testing.assert_allclose(trackers.mean(1), gradients.mean(1), atol=1e-5)
    np.testing.assert_allclose(rows(models), np.tile(CENTERS.mean(0), (N, 1)), atol=1e-5)


def test_the_mean_tracker_is_still_the_mean_gradient_whoever_takes_part():
    rule = participation.dropout(participation.uniform(6), 0.3)
    algorithm = dsgt(loss, 0.2, gossip.repeat(CORRECTED, 2))
    states = advance(algorithm, 7, TASK.federation(participation=rule))[1]
    tracker, gradient = states.clients.memory
    np.testing.assert_allclose(tracker.mean(1), gradient.mean(1), rtol=1e-4, atol=1e-6)
    assert np.abs(gradient.mean(1)).max() > 1e-2


def test_dfedadmm_corrects_its_messages_and_is_off_at_the_end_by_what_is_documented():
    """On the complete graph the messages' mean, stretched: a decay of negative sign."""
    everyone = gossip.mixer(topology.complete(N), weights=ALONE)
    mixer = gossip.variance_corrected(everyone, 1 / N, target=gossip.Target.ALL)
    x, states, metrics = advance(dfedadmm(loss, optax.sgd(0.1), mixer, penalty=0.3), 300)[:3]
    g = np.zeros((N, 20))
    for t in range(4):
        y = x - 0.1 * (x - CENTERS - g)
        g = g - (y - x) / 0.3
        sent = y - 0.3 * g
        x = stretched(sent.mean(0)[None], sent.var(1).mean()[None]).repeat(N, 0)
        np.testing.assert_allclose(rows(states.clients.params, t), x, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(rows(states.clients.memory, t), g, rtol=1e-4, atol=1e-5)
    x, g = rows(states.clients.params)[0], rows(states.clients.memory)
    np.testing.assert_allclose(g, x - CENTERS, atol=1e-4)
    weight = (1 - 1 / metrics["variance_scale"][-1]) / 0.3
    np.testing.assert_allclose(g.mean(0), weight * (x - x.mean()), atol=1e-4)
    assert weight > 0.1
    about = 0.3 * np.square(g - g.mean(0)).mean() / (2 * x.var())
    np.testing.assert_allclose(weight, about, rtol=0.35)


def test_wandering_models_are_merged_and_stretched_by_age():
    method = gossip_learning(loss, optax.sgd(0.3), N, mixing=around)
    present = np.random.default_rng(0).random((5, N)) < 0.7
    source = TASK.federation(participation=participation.present(jnp.asarray(present)))
    x, states, metrics, keys = advance(method, 5, source)
    age = np.zeros(N)
    for t, there in enumerate(present):
        peers = np.asarray(random_peers(keys[t], N))
        x = np.where(there[:, None], x - 0.3 * (x - CENTERS), x)
        age = age + there
        models, ages = x.copy(), age.copy()
        for i in np.flatnonzero(there):
            group = [i, *(j for j in np.flatnonzero(there) if peers[j] == i)]
            share = age[group] / age[group].sum()
            models[i] = stretched(share @ x[group], share @ x[group].var(1))
            ages[i] = age[group].max()
        x, age = models, ages
    np.testing.assert_allclose(rows(states.clients.params), x, rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(states.clients.memory[-1], age)
    # An age and a variance travel with every model of twenty numbers.
    np.testing.assert_allclose(metrics["models_sent"], present.sum(1) * 22 / 20, rtol=1e-6)


def test_random_gossip_and_the_last_merge_keep_the_variance():
    caught = []
    method = single_merging(
        loss, optax.sgd(0.1), N, 0.7, mixing=lambda plain: caught.append(plain) or around(plain)
    )
    x, states, _, keys = advance(method, 5)
    (plain,), eye = caught, jnp.eye(N)
    matrix = jax.jit(lambda key, t: plain.apply(eye, plain.init(eye), Mixing(key, t))[0])
    for t in range(5):
        x = x - 0.1 * (x - CENTERS)
        heard = np.asarray(matrix(keys[t], t), np.float64)
        x = stretched(heard @ x, heard @ x.var(1))
    np.testing.assert_allclose(rows(states.clients.params), x, rtol=1e-4, atol=1e-5)
    last = jax.tree.map(lambda leaf: leaf[-1], states.clients.params)
    rule = aggregation.variance_corrected()
    merged = jax.jit(functools.partial(merge, aggregator=rule))(last)
    expected = stretched(x.mean(0)[None], x.var(1).mean()[None])[0]
    np.testing.assert_allclose(merged.reshape(-1), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_modest_takes_an_aggregator_of_whole_models():
    rule = aggregation.variance_corrected()
    options = {"clients": N, "sample": 4, "aggregators": 2, "idealised": True}
    method = modest(loss, optax.sgd(0.2), aggregator=rule, **options)
    start = draw(KEY)
    rollout = jax.jit(functools.partial(dx.rollout, method, rounds=3))
    state, metrics = rollout(method.init(KEY, start), TASK.federation(), KEY)
    x = np.asarray(start, np.float64).reshape(-1)
    for sample in np.asarray(metrics["sampled"]):
        y = x - 0.2 * (x - CENTERS[sample])
        x = stretched(y.mean(0)[None], y.var(1).mean()[None])[0]
    np.testing.assert_allclose(state.server.params.reshape(-1), x, rtol=1e-4, atol=1e-5)
    assert (np.asarray(metrics["variance_scale"]) > 1.001).all()


@pytest.mark.parametrize("rule", [aggregation.variance_corrected(), aggregation.median()])
def test_the_first_models_to_arrive_are_aggregated(rule):
    """The third participant is late at node 5, and node 2 hears too few."""
    models = np.random.default_rng(0).normal(size=(4, *SHAPE))
    finish = jnp.asarray([[1.0, 1.0], [9.0, 2.0], [2.0, 3.0], [3.0, 4.0]])
    heard = jnp.asarray([[1, 0], [1, 0], [1, 1], [1, 0]], bool)
    election = Election(jnp.asarray([5, 2]), heard)
    combining = aggregation.Combining(KEY)
    options = {"nodes": N, "needed": 3, "least": None, "rule": rule, "combining": combining}
    made = jax.jit(functools.partial(average, **options))(
        jnp.asarray(models, jnp.float32), finish, election
    )
    flat = models.reshape(4, -1)[[0, 2, 3]]
    expected = np.median(flat, 0)
    if "variance_scale" in made.metrics:
        expected = stretched(flat.mean(0)[None], flat.var(1).mean()[None])[0]
        scale = np.sqrt(flat.var(1).mean() / flat.mean(0).var())
        np.testing.assert_allclose(made.metrics["variance_scale"], scale, rtol=1e-5)
    np.testing.assert_array_equal(made.holders, [5, N])
    np.testing.assert_array_equal(made.counted, [3, 0])
    np.testing.assert_allclose(made.models[0].reshape(-1), expected, rtol=1e-4, atol=1e-6)


def test_pushed_models_can_be_corrected_on_directed_graphs():
    graph = topology.exponential(N)
    mixer = around(gossip.push_sum(graph))
    x, states = advance(dfedavg(loss, optax.sgd(0.1), mixer), 3)[:2]
    matrix = topology.column_stochastic(graph).dense()
    weight = np.ones(N)
    for _ in range(3):
        x = x - 0.1 * (x - CENTERS)
        share = matrix * weight
        weight = share.sum(1)
        share /= weight[:, None]
        x = stretched(share @ x, share @ x.var(1))
    np.testing.assert_allclose(rows(states.clients.params), x, rtol=1e-4, atol=1e-5)


class Deep(nn.Module):
    """Three hidden layers, deep enough for signals to die in."""

    @nn.compact
    def __call__(self, x):
        glorot = nn.initializers.glorot_uniform()
        for _ in range(3):
            x = nn.relu(nn.Dense(32, kernel_init=glorot)(x.reshape(x.shape[0], -1)))
        return nn.Dense(10, kernel_init=glorot)(x)


@pytest.mark.slow
def test_from_starts_of_their_own_digits_are_learnt_with_correction_alone():
    data, model = dx.data.digits(), Deep()
    partition = dx.data.dirichlet(np.asarray(data.labels), N, 100.0, seed=0)
    source = dx.Federation(data, partition, batch_size=32, local_steps=1, replacement=True)
    entropy = dx.losses.classification(model.apply)
    measure = dx.evaluation.client_models(dx.evaluation.on(entropy, data.test))

    def accuracy(strength):
        mixer = gossip.variance_corrected(
            gossip.mixer(GRAPH, weights=ALONE), target=gossip.Target.ALL, strength=strength
        )
        algorithm = dsgt(entropy, 0.3, mixer)
        state = algorithm.init(KEY, lambda key: model.init(key, data.example)["params"])
        return measure(dx.rollout(algorithm, state, source, KEY, 60)[0])["accuracy"]

    plain, corrected = jax.jit(jax.vmap(accuracy))(jnp.asarray([0.0, 1.0]))
    assert plain < 0.4
    assert corrected > 0.55


@pytest.mark.parametrize(
    "make",
    [
        lambda: dispfl(loss, optax.sgd(0.1), CORRECTED, rounds=3),
        lambda: dfedavg(loss, optax.sgd(0.1), gossip.sampled(CORRECTED, 0.5)),
    ],
)
def test_sums_that_are_no_models_are_not_corrected(make):
    with pytest.raises(ValueError, match=r"choose must take at least one .* gossip\.Uncorrected"):
        make().init(KEY, draw)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: single_merging(loss, optax.sgd(0.1), N, mixing=3), "mixing must be a function"),
        (lambda: gossip_learning(loss, optax.sgd(0.1), N, mixing=3), "mixing must be a function"),
        (
            lambda: gossip_learning(loss, optax.sgd(0.1), N, mixing=lambda plain: 3),
            "what mixing returns must be a Mixer",
        ),
        (lambda: merge(jnp.ones((2, 3)), aggregator=3), "aggregator must be of type Aggregator"),
        (
            lambda: modest(loss, optax.sgd(0.1), clients=N, sample=2, aggregator=3),
            "aggregator must be of type Aggregator",
        ),
        (
            lambda: modest(
                loss,
                optax.sgd(0.1),
                clients=N,
                sample=2,
                aggregator=Aggregator(jnp.zeros_like, aggregation.mean().apply),
            ).init(KEY, jnp.ones(3)),
            "aggregator must keep no state",
        ),
        (lambda: dsgt(loss, 0.1, around(gossip.push_sum(GRAPH))), "mixer must keep the mean"),
    ],
)
def test_bad_arguments_are_refused(make, message):
    with pytest.raises((ValueError, TypeError), match=message):
        make()


def test_sampling_inside_the_correction_goes():
    neighbours = gossip.sampled(gossip.mixer(GRAPH, weights=ALONE), 1.0)
    mixer = gossip.variance_corrected(neighbours)
    stacked = jax.vmap(draw)(jax.random.split(KEY, N))
    mixed, _, _ = jax.jit(mixer.apply)(stacked, mixer.init(stacked), Mixing(KEY, 0))
    expected, _, _ = jax.jit(CORRECTED.apply)(stacked, CORRECTED.init(stacked), Mixing(KEY, 0))
    assert_trees_close(mixed, expected, rtol=1e-4, atol=1e-5)
