import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from admm_tasks import (
    KEY,
    TASK,
    D,
    G,
    H,
    N,
    federation,
    inverses,
    objectives,
    textbook_admm,
    trajectory,
)

import dflax as dx
from dflax import channel, participation

FAMILY = [dx.server.rerce_fed, dx.server.rerce_fed_continual, dx.server.consensus_admm]
PARTIAL = participation.dropout(participation.uniform(5), 0.2)
RHO = 0.7


@pytest.fixture
def float64():
    with jax.enable_x64(True):
        yield


@pytest.mark.parametrize("make", FAMILY)
def test_everyone_without_noise_is_textbook_admm_in_every_round(float64, make):
    z = np.random.default_rng(5).normal(size=D)
    algorithm = make(RHO)
    state = algorithm.init(KEY, jnp.asarray(z), objectives(np.float64))
    states = trajectory(algorithm, state, federation(), 30)
    models, means = textbook_admm(RHO, 30, z)
    np.testing.assert_allclose(states.clients.params, models, rtol=0, atol=1e-11)
    if make is not dx.server.rerce_fed_continual:
        np.testing.assert_allclose(states.server.params, means, rtol=0, atol=1e-11)


def test_the_invariant_holds_and_the_limit_is_the_best_linear_unbiased_estimate(float64):
    """Q = sum_k B_k^-1 x_k(t) - rho n z(t-1) stays sum_k c h_k, here for c = 2."""
    scale = 2.0
    algorithm = dx.server.rerce_fed(RHO)
    state = algorithm.init(KEY, jnp.zeros(D), objectives(np.float64, scale))
    states = trajectory(algorithm, state, federation(scale=scale), 1500)
    models = np.asarray(states.clients.params)
    before = np.concatenate([np.zeros((1, D)), np.asarray(states.server.params)[:-1]])
    inverse_of_b = scale * G + RHO * np.eye(D)
    invariant = np.einsum("kij,tkj->ti", inverse_of_b, models) - RHO * N * before
    np.testing.assert_allclose(invariant, np.tile(scale * H.sum(0), (1500, 1)), atol=1e-10)
    assert not np.allclose(models[5], TASK.optimum, atol=1e-2)
    np.testing.assert_allclose(models[-1], np.tile(TASK.optimum, (N, 1)), atol=1e-10)


@pytest.mark.parametrize("make", FAMILY[:2])
def test_the_scalar_example_by_hand(make):
    one = jnp.ones((2, 1))
    quadratics = dx.local.Quadratic(
        one[:, None], jnp.array([[1.0], [3.0]]), jnp.array([[1.0], [-3]])
    )
    algorithm = make(1.0)
    state = algorithm.init(KEY, jnp.zeros(1), quadratics)
    np.testing.assert_allclose(state.clients.params[:, 0], [0.5, -0.75])
    states = trajectory(algorithm, state, dx.local.quadratic_federation(quadratics), 2)
    if make is dx.server.rerce_fed:
        np.testing.assert_allclose(states.server.params[:, 0], [-0.125, -0.25])
        np.testing.assert_allclose(states.server.memory.broadcast[:, 0], [-0.25, -0.375])
    else:
        np.testing.assert_allclose(states.server.params[:, 0], [-0.25, -0.375])
    np.testing.assert_allclose(states.clients.params[1, :, 0], [0.125, -0.625])


def cohorts(rule, rounds):
    """Who reports in every round."""
    source = federation(rule)

    @jax.jit
    @jax.vmap
    def draw(t):
        drawn = source.draw(KEY, t)
        return drawn.cohort, drawn.weights > 0

    clients, reports = map(np.asarray, draw(jnp.arange(rounds, dtype=jnp.int32)))
    return [ids[there] for ids, there in zip(clients, reports, strict=True)]


def test_some_clients_a_round_follow_the_recursion(float64):
    algorithm = dx.server.rerce_fed(RHO)
    state = algorithm.init(KEY, jnp.zeros(D), objectives(np.float64))
    states = trajectory(algorithm, state, federation(PARTIAL), 12)
    B = inverses(RHO)
    x, z, s = np.einsum("kij,kj->ki", B, H), np.zeros(D), np.zeros(D)
    for t, ids in enumerate(cohorts(PARTIAL, 12)):
        if t:
            x[ids] += RHO * np.einsum("kij,kj->ki", B[ids], s - x[ids])
        if len(ids):
            mean = x[ids].mean(0)
            z, s = mean, 2 * mean - z
        np.testing.assert_allclose(states.clients.params[t], x, atol=1e-12)
        np.testing.assert_allclose(states.server.params[t], z, atol=1e-12)


def test_continual_clients_move_between_their_turns(float64):
    algorithm = dx.server.rerce_fed_continual(RHO)
    state = algorithm.init(KEY, jnp.zeros(D), objectives(np.float64))
    states = trajectory(algorithm, state, federation(PARTIAL), 12)
    B = inverses(RHO)
    x = np.einsum("kij,kj->ki", B, H)
    sent, heard = 2 * x, np.full((N, D), np.nan)
    # In the first round all answer but those who are known to be absent.
    drawn = federation(PARTIAL).draw(KEY, 0)
    sent[np.setdiff1d(drawn.cohort, cohorts(PARTIAL, 1)[0])] = 0.0
    np.testing.assert_allclose(states.clients.memory.sent[0], sent, atol=1e-12)
    for t, ids in enumerate(cohorts(PARTIAL, 12)):
        if t:
            heard[ids] = sent.mean(0)
            old, moves = x.copy(), ~np.isnan(heard[:, 0])
            steps = RHO * np.einsum("kij,kj->ki", B, heard - x)
            x[moves] += steps[moves]
            sent[ids] = (2 * x - old)[ids]
        np.testing.assert_allclose(states.clients.params[t], x, atol=1e-12)
        np.testing.assert_allclose(states.server.params[t], sent.mean(0), atol=1e-12)


def test_conventional_admm_with_some_clients_a_round(float64):
    algorithm = dx.server.consensus_admm(RHO)
    state = algorithm.init(KEY, jnp.zeros(D), objectives(np.float64))
    states = trajectory(algorithm, state, federation(PARTIAL), 12)
    B, phi, z = inverses(RHO), np.zeros((N, D)), np.zeros(D)
    x = np.einsum("kij,kj->ki", B, H)
    for t, ids in enumerate(cohorts(PARTIAL, 12)):
        x[ids] = np.einsum("kij,kj->ki", B[ids], H[ids] - phi[ids] + RHO * z)
        z = (x[ids] + phi[ids] / RHO).mean(0) if len(ids) else z
        phi[ids] += RHO * (x[ids] - z)
        np.testing.assert_allclose(states.clients.params[t], x, atol=1e-12)
        np.testing.assert_allclose(states.clients.memory.dual[t], phi, atol=1e-12)
        np.testing.assert_allclose(states.server.params[t], z, atol=1e-12)


@pytest.mark.parametrize("make", FAMILY[:2])
def test_every_consensual_point_is_a_fixed_point(float64, make):
    """So that a wrong start or one wrong round is never repaired."""
    v = jnp.asarray(np.random.default_rng(9).normal(size=D))
    algorithm = make(RHO)
    state = algorithm.init(KEY, v, objectives(np.float64))
    everywhere = jnp.tile(v, (N, 1))
    memory = state.clients.memory._replace(params=everywhere)
    if make is dx.server.rerce_fed_continual:
        memory = memory._replace(sent=everywhere)
    started = state.server.memory._replace(started=jnp.bool_(True))
    state = dx.FederatedState(
        jnp.int32(1),
        state.server._replace(memory=started),
        state.clients._replace(memory=memory),
    )
    states = trajectory(algorithm, state, federation(PARTIAL), 40)
    np.testing.assert_allclose(states.clients.params[-1], everywhere, atol=1e-13)
    np.testing.assert_allclose(states.server.params[-1], v, atol=1e-13)


@pytest.mark.slow
def test_under_noise_the_consensus_is_a_random_walk_of_the_predicted_slope():
    up, down, rounds, runs = 0.3, 0.2, 100, 1200
    algorithm = dx.server.rerce_fed(
        1.0, uplink=channel.gaussian_noise(up), downlink=channel.gaussian_noise(down)
    )
    start = algorithm.init(KEY, jnp.zeros(D), objectives())
    source = federation()

    def distances(key):
        def one(state, index):
            state, _ = algorithm.step(state, source.draw(key, index))
            gap = state.clients.params.mean(0) - TASK.optimum
            return state, jnp.sum(gap**2)

        return jax.lax.scan(one, start, jnp.arange(rounds, dtype=jnp.int32))[1]

    measured = np.asarray(jax.jit(jax.vmap(distances))(jax.random.split(KEY, runs))).mean(0)
    slope = np.polyfit(np.arange(40, rounds), measured[40:], 1)[0]
    inverse = np.linalg.inv(TASK.information)
    predicted = N * (up**2 + down**2) * np.trace(inverse @ inverse)
    assert slope == pytest.approx(predicted, rel=0.2)


@pytest.mark.slow
def test_continual_updates_lower_the_floor_where_few_clients_talk():
    task = dx.data.weighted_least_squares(KEY, 20, 16, (6, 11))
    quadratics = dx.local.quadratic_objectives(task.data, task.partition)
    source = dx.local.quadratic_federation(quadratics, participation=participation.uniform(2))
    noise = channel.gaussian_noise(0.1)
    floors = []
    for make in FAMILY[:2]:
        algorithm = make(1.0, uplink=noise, downlink=noise)
        state = algorithm.init(KEY, jnp.zeros(16), quadratics)
        assert 10 * np.log10(task.mean_square_deviation(state.clients.params)) > -6
        models = trajectory(algorithm, state, source, 400).clients.params[300:]
        floors.append(10 * np.log10(task.mean_square_deviation(models.reshape(-1, 16))))
    assert floors[1] < floors[0] - 4
    assert floors[0] < -11


@pytest.mark.some(2)
@pytest.mark.parametrize("make", FAMILY)
def test_lost_messages_leave_things_as_they_were(make):
    algorithm = make(RHO, uplink=channel.lossy(1.0), downlink=channel.lossy(1.0))
    start = algorithm.init(KEY, jnp.ones(D), objectives())
    state, metrics = jax.jit(functools.partial(dx.rollout, algorithm, rounds=3))(
        start, federation(participation.uniform(4)), KEY
    )
    np.testing.assert_allclose(state.clients.params, start.clients.params, rtol=1e-6)
    np.testing.assert_allclose(state.server.params, start.server.params, rtol=1e-6)
    np.testing.assert_array_equal(metrics["clients_reporting"], 0.0)
    # Nothing has arrived, so every round is the first again, in which all are asked.
    senders = N if make is dx.server.rerce_fed_continual else 4
    np.testing.assert_array_equal(metrics["numbers_up"], [senders * D] * 3)
    np.testing.assert_array_equal(metrics["numbers_down"], 0.0)
    np.testing.assert_array_equal(metrics["messages_lost"], senders)


@pytest.mark.some(1)
@pytest.mark.parametrize("make", FAMILY)
def test_what_the_links_lose_is_counted_each_way(make):
    """Round 0 is sent up alone; in round 1 half of the copies and half of the messages are lost."""
    algorithm = make(RHO, uplink=channel.lossy(0.5), downlink=channel.lossy(0.5))
    start = algorithm.init(KEY, jnp.ones(D), objectives())
    run = jax.jit(functools.partial(dx.rollout, algorithm, rounds=40))
    _, metrics = run(start, federation(), KEY)
    np.testing.assert_array_equal(metrics["clients_reporting"] + metrics["messages_lost"], N)
    assert 120 < metrics["messages_lost"].sum() < 280
    sent = metrics["numbers_down"] / D
    assert 0.4 < metrics["downlink_messages_lost"].sum() / sent.sum() < 0.6


def test_continual_clients_answer_in_the_first_round_unless_they_are_known_to_be_absent():
    """Three are invited and do not report; the other seven are asked and answer."""
    rule = participation.dropout(participation.uniform(3), 1.0)
    algorithm = dx.server.rerce_fed_continual(RHO)
    start = algorithm.init(KEY, jnp.ones(D), objectives())
    drawn = federation(rule).draw(KEY, 0)
    state, metrics = jax.jit(algorithm.step)(start, drawn)
    assert metrics["clients_reporting"] == N - 3
    still = (state.clients.memory.sent == start.clients.memory.sent).all(1)
    np.testing.assert_array_equal(np.flatnonzero(still), np.sort(drawn.cohort))
    mean = state.clients.memory.sent.mean(0)
    np.testing.assert_allclose(state.server.params, mean, rtol=1e-5, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("make", FAMILY)
def test_on_devices_and_within_a_sweep_it_is_the_same(make):
    source = federation(participation.uniform(8))

    def built(rho, deviation):
        noise = channel.gaussian_noise(deviation)
        algorithm = make(rho, uplink=noise, downlink=noise)
        return algorithm, algorithm.init(KEY, jnp.zeros(D), objectives())

    def end(rho, deviation):
        algorithm, state = built(rho, deviation)
        return dx.rollout(algorithm, state, source, KEY, 5)[0].clients.params

    swept = jax.jit(jax.vmap(end))(jnp.array([0.3, 1.0, 1.0]), jnp.array([0.1, 0.1, 0.0]))
    algorithm, state = built(1.0, 0.1)
    dealt, _ = dx.run(algorithm, state, source, rounds=5, key=KEY, mesh=dx.client_mesh())
    np.testing.assert_allclose(dealt.clients.params, swept[1], rtol=1e-3, atol=1e-4)
    assert not np.allclose(swept[1], swept[2], atol=1e-2)
    assert not np.allclose(swept[0], swept[1], atol=1e-2)


@pytest.mark.parametrize("make", FAMILY)
@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda make: make(0.0), r"penalty must be a finite number in \(0, inf\), got 0.0"),
        (lambda make: make(1.0, uplink=0.1), "uplink must be of type Channel, not float"),
        (
            lambda make: make(1.0, downlink=channel.Channel(lambda m: m, lambda *a: a)),
            "downlink must be a channel without memory",
        ),
        (lambda make: make(1.0, at_once=0), "at_once must be an integer >= 1"),
        (lambda make: make(1.0).init(0, jnp.zeros(D), objectives()), "one typed JAX key"),
        (
            lambda make: make(1.0).init(KEY, jnp.zeros(D), TASK.data),
            "objectives must be of type Quadratic",
        ),
        (
            lambda make: make(1.0).init(KEY, jnp.zeros(D + 1), objectives()),
            r"params must be one array of the objectives' shape \(6,\)",
        ),
        (
            lambda make: make(1.0).step(
                make(1.0).init(KEY, jnp.zeros(D), jax.tree.map(lambda q: q[:7], objectives())),
                federation().draw(KEY, 0),
            ),
            "clients' memory must have a leading axis of length 10, got 7",
        ),
    ],
)
def test_bad_arguments_are_refused(make, call, message):
    with pytest.raises((TypeError, ValueError), match=message):
        call(make)
