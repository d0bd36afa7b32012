"""MoNNA and LEARN against their pseudo-code, and what hostile peers do to quadratics."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tasks import half_square, quadratics, regression, softmax_loss

import dflax as dx
from dflax import aggregation, attacks, evaluation, gossip, recipes, topology

KEY = jax.random.key(0)
N, F, ROUNDS = 15, 3, 40
HOSTILE = [12, 13, 14]
HEARD = topology.random_neighbours(N, N - F - 1, first=HOSTILE)
EVERYONE = topology.complete(N)
HONEST = evaluation.models_of(HOSTILE, but=True)


def rolled(method, source, rounds, start):
    state = method.init(KEY, start)
    run = jax.jit(functools.partial(dx.rollout, method, rounds=rounds))
    return run(state, source, KEY)


@pytest.mark.slow
def test_without_hostile_peers_it_is_momentum_on_the_mean_gradient():
    """Consensus after every step; rates in steps of five rounds, and a decay of the weights."""
    task = quadratics(N)
    start, beta, decay = np.array([1.0, -2.0, 0.5]), 0.8, 0.1
    mixer = gossip.by_rule(EVERYONE, gossip.nna(0))
    method = recipes.monna(
        half_square, lambda t: 0.5 / (1 + t // 5), mixer, beta, decay, channel=None
    )
    with jax.enable_x64(True):
        state, _ = rolled(method, task.federation(), 12, jnp.asarray(start))
        x, m = start, 0.0
        for t in range(12):
            m = beta * m + (1 - beta) * (x - task.centers.astype(float).mean(0) + decay * x)
            x = x - 0.5 / (1 + t // 5) * m
        np.testing.assert_allclose(state.clients.params, np.tile(x, (N, 1)), rtol=1e-6)
        assert evaluation.disagreement()(state)["consensus_distance"] < 1e-12


def test_without_momentum_and_others_it_is_descent():
    task = quadratics(N)
    mixer = gossip.by_rule(np.eye(N), gossip.nna(0))
    state, _ = rolled(
        recipes.monna(half_square, 0.1, mixer, 0.0), task.federation(), 7, jnp.ones(3)
    )
    np.testing.assert_allclose(
        state.clients.params, task.centers + 0.9**7 * (1 - task.centers), rtol=1e-5, atol=1e-6
    )


@pytest.mark.slow
def test_a_sign_flip_costs_in_proportion_to_heterogeneity():
    """a_i = 3 + het N(0, 1): the honest end within a distance of their optimum that grows with het."""
    rng = np.random.default_rng(0)
    around = rng.standard_normal((N, 5)).astype(np.float32)
    task = quadratics(N, 5)
    liars = attacks.inner_product(HOSTILE, 1.0)

    def run(heterogeneity, source):
        centers = 3 + heterogeneity * around
        data = dx.data.Dataset(jnp.asarray(centers), jnp.zeros(N, jnp.int32))
        source = source.replace(data=data)
        mixer = gossip.by_rule(HEARD, gossip.nna(F), watched=HOSTILE)
        method = recipes.monna(half_square, 0.05, mixer, 0.9, channel=liars)
        state, metrics = rolled(method, source, 400, jnp.zeros(5))
        away = np.asarray(HONEST(state)) - centers[:12].mean(0)
        return np.linalg.norm(away, axis=1).max(), float(metrics["used_of_watched"][-1])

    (none, _), (some, used), (more, _) = [run(het, task.federation()) for het in (0.0, 0.5, 2.0)]
    assert none < 1e-5
    assert used == 0
    assert 0 < some / 0.5 < 0.3
    np.testing.assert_allclose(more / 2.0, some / 0.5, rtol=0.5)


@pytest.mark.slow
def test_the_mean_is_driven_away_and_monna_is_not():
    """Centres around 4, and messages from the other side of 0."""
    centers = quadratics(N).centers + 4
    data = dx.data.Dataset(jnp.asarray(centers), jnp.zeros(N, jnp.int32))
    source = quadratics(N).federation().replace(data=data)
    liars = attacks.inner_product(HOSTILE, 1.0)
    mixer = gossip.by_rule(HEARD, gossip.nna(F), watched=HOSTILE)
    away = []
    for one in (mixer, gossip.mixer(HEARD)):
        method = recipes.monna(half_square, 0.3, one, 0.5, channel=liars)
        state, _ = rolled(method, source, ROUNDS, 4 * jnp.ones(3))
        away.append(np.linalg.norm(np.asarray(HONEST(state)).mean(0) - centers[:12].mean(0)))
    assert away[0] < 0.2 * away[1]


def test_learn_is_its_pseudo_code():
    """Batches of 1, 2, 3, ... examples, the same ones that the round hands out; then no more."""
    n, pieces, width, rate, steps = 6, 2, 2, 0.3, 6
    task = regression(n)
    source = dx.Federation(
        task.data, task.partition, batch_size=width, local_steps=pieces, replacement=True
    )
    rule = gossip.aggregating(aggregation.trimmed_mean(1))
    method = recipes.learn(softmax_loss, rate, gossip.by_rule(topology.complete(n), rule))
    state, metrics = rolled(method, source, 2 * steps, task.params)
    assert metrics["models_sent"].sum() == 2 * steps * n * (n - 1)
    w, b = np.zeros((n, 5, 3)), np.zeros((n, 3))
    inputs, labels = np.asarray(task.data.inputs, float), np.eye(3)[np.asarray(task.data.labels)]

    def trimmed(rows):
        mean = np.sort(rows, axis=0)[1:-1].mean(0)
        return np.broadcast_to(mean, rows.shape)

    for step in range(steps):
        drawn = np.asarray(source.draw(KEY, 2 * step).assignments.minibatches).reshape(n, -1)
        drawn = drawn[:, : step + 1]
        x, y = inputs[drawn], labels[drawn]
        logits = np.einsum("nbi,nic->nbc", x, w) + b[:, None]
        p = np.exp(logits - logits.max(-1, keepdims=True))
        error = (p / p.sum(-1, keepdims=True) - y) / drawn.shape[1]
        w = trimmed(w - rate * trimmed(np.einsum("nbi,nbc->nic", x, error)))
        b = trimmed(b - rate * trimmed(error.sum(1)))
    np.testing.assert_allclose(state.clients.params["w"], w, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(state.clients.params["b"], b, rtol=1e-4, atol=1e-5)


def test_measures_of_the_honest():
    state = dx.decentralized.dpsgd(half_square, dx.local.polyak(0.1), gossip.ring(N)).init(
        KEY, jnp.zeros(2)
    )
    models = jnp.arange(2.0 * N).reshape(N, 2)
    state = state._replace(clients=state.clients._replace(params=models))
    mask = np.isin(np.arange(N), HOSTILE)
    for chosen in (HONEST, evaluation.models_of(~mask), evaluation.models_of(mask, but=True)):
        np.testing.assert_array_equal(chosen(state), models[:12])
    assert evaluation.models_of(HOSTILE) == evaluation.models_of(tuple(HOSTILE))
    found = evaluation.disagreement(models=HONEST)(state)["consensus_distance"]
    np.testing.assert_allclose(found, 2 * 4 * np.var(np.arange(12)), rtol=1e-6)
    assert evaluation.disagreement()(state) == evaluation.consensus(state)
    with pytest.raises(ValueError, match="clients must be numbers below 15"):
        evaluation.models_of([15])(state)
