"""Density-driven coverage against loops in float64 NumPy and what mass and transport demand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tasks import assert_trees_close

import dflax as dx
from dflax import robots
from dflax.robots.coverage.mass import Ledger, left, newest, take

KEY = jax.random.key(0)
N, SAMPLES, STEPS = 4, 24, 30
INTERVAL, BOUND, SPEED, HORIZON = 0.1, 0.5, 0.3, 5
ALPHA = 1 / (N * STEPS)
COST = 0.01 * ALPHA
POINT = robots.double_integrator(INTERVAL, bound=BOUND, speed=SPEED)
RNG = np.random.default_rng(3)
DENSITY = RNG.random((SAMPLES, 2)).astype(np.float32)
PLACES = RNG.random((N, 2)).astype(np.float32)


def mission(radio=np.inf, sequential=False, agents=N, steps=STEPS, controller=None, **options):
    controller = controller or robots.linear_quadratic(POINT, HORIZON, input_cost=COST)
    return robots.d2oc(
        POINT, controller, agents, steps, radio=radio, sequential=sequential, **options
    )


def flown(algorithm, rounds=STEPS, places=PLACES, samples=DENSITY):
    def run(places, samples):
        state = algorithm.init(KEY, places, samples)
        return dx.rollout(algorithm, state, dx.Population(len(places)), KEY, rounds)

    return jax.tree.map(np.asarray, jax.jit(run)(places, samples))


def taken_in_turn(score, mass, amount):
    taken = np.zeros_like(mass)
    for j in np.argsort(score, kind="stable"):
        taken[j] = min(mass[j], amount)
        amount = amount - taken[j]
    return taken


def kkt(A, B, C, alpha, Q, R, H):
    """The first input's gains from the stationarity of the Lagrangian, all unknowns at once."""
    d, m = B.shape
    up, down = np.eye(H, k=1), np.eye(H, k=-1)
    eye, full = np.eye(H), np.eye(H * d)
    system = np.block(
        [
            [np.kron(eye, alpha * C.T @ C + Q), np.kron(up, A.T) - full, np.zeros((H * d, H * m))],
            [np.kron(down, A) - full, np.zeros((H * d, H * d)), np.kron(eye, B)],
            [np.zeros((H * m, H * d)), np.kron(eye, B.T), R * np.eye(H * m)],
        ]
    )  # fmt: skip

    def first(x, y):
        right = np.concatenate(
            [np.tile(alpha * C.T @ y, H), -A @ x, np.zeros((H - 1) * d), np.zeros(H * m)]
        )
        return np.linalg.solve(system, right)[2 * H * d : 2 * H * d + m]

    of_state = np.stack([first(e, np.zeros(2)) for e in np.eye(d)], 1)
    return of_state, np.stack([first(np.zeros(d), e) for e in np.eye(2)], 1)


def by_hand(radio, sequential, rounds):
    """The sheet's three stages, agent by agent, in float64."""
    A, B = POINT.matrices
    C = np.eye(2, 4)
    Kx, Kg = kkt(A, B, C, ALPHA, np.zeros((4, 4)), COST, HORIZON)
    z = DENSITY.astype(np.float64)
    x = np.concatenate([PLACES.astype(np.float64), np.zeros((N, 2))], 1)
    G, c = np.zeros((N, N, SAMPLES)), np.zeros((N, N), int)

    def believed(i):
        w = np.maximum(1 / SAMPLES - G[i].sum(0), 0)
        return np.where(w > 1e-5 / SAMPLES, w, 0)

    def fly(i, w):
        nonlocal x
        away = ((z - x[i, :2]) ** 2).sum(1)
        score = np.where(w > 0, away / np.where(w > 0, w, 1) ** 2, np.inf)
        ahead = taken_in_turn(score, w, ALPHA)
        y = ahead @ z / ahead.sum()
        u = np.clip(Kx @ x[i] + Kg @ y, -BOUND, BOUND)
        x[i] = A @ x[i] + B @ u
        fast = np.linalg.norm(x[i, 2:])
        x[i, 2:] *= min(1, SPEED / fast)
        away = np.where(w > 0, ((z - x[i, :2]) ** 2).sum(1), np.inf)
        return taken_in_turn(away, w, ALPHA)

    def near(i, q):
        return i == q or np.linalg.norm(x[i, :2] - x[q, :2]) < radio

    def merge(pairs):
        nonlocal G, c
        G0, c0 = G.copy(), c.copy()
        for i, q in pairs:
            for k in range(N):
                if c0[q, k] > c[i, k]:
                    G[i, k], c[i, k] = G0[q, k], c0[q, k]

    everyone = [(i, q) for i in range(N) for q in range(N)]
    for t in range(rounds):
        ws = [believed(i) for i in range(N)]
        for i in range(N):
            taken = fly(i, believed(i) if sequential else ws[i])
            G[i, i] += taken
            c[i, i] = t + 1
            if sequential:
                merge([(i, q) for q in range(N) if near(i, q)])
                merge([(q, i) for q in range(N) if near(i, q)])
        if not sequential:
            merge([(i, q) for i, q in everyone if near(i, q)])
    return x, G, c


@pytest.mark.some(2)
@pytest.mark.parametrize("sequential", [False, True])
@pytest.mark.parametrize("radio", [np.inf, 0.3])
def test_missions_are_the_three_stages_by_hand(radio, sequential):
    with jax.enable_x64(True):
        controller = robots.linear_quadratic(POINT, HORIZON, input_cost=COST)
        state, _ = flown(mission(radio, sequential, controller=controller), 12)
    x, G, c = by_hand(radio, sequential, 12)
    np.testing.assert_allclose(state.clients.states, x, atol=1e-9)
    np.testing.assert_allclose(state.clients.ledger.taken, G, atol=1e-9)
    np.testing.assert_array_equal(state.clients.ledger.clock, c)
    np.testing.assert_allclose(state.clients.visited[:, 11], x[:, :2], atol=1e-9)
    assert np.isnan(state.clients.visited[:, 12:]).all()


def test_mass_is_taken_in_the_order_of_the_scores():
    found = take(jnp.array([1.0, 2, 3]), jnp.array([0.3, 0.2, 0.5]), 0.4)
    np.testing.assert_allclose(found, [0.3, 0.1, 0.0], atol=1e-7)
    rng = np.random.default_rng(0)
    many = jax.jit(jax.vmap(take, (0, 0, 0)))
    scores, mass = rng.random((50, 12)), rng.random((50, 12)) * rng.integers(0, 2, (50, 12))
    amounts = rng.random(50) * 4
    found = many(*(jnp.asarray(a, jnp.float32) for a in (scores, mass, amounts)))
    for row in range(50):
        expected = taken_in_turn(scores[row], mass[row], amounts[row])
        np.testing.assert_allclose(found[row], expected, atol=1e-5)
        assert found[row].sum() == pytest.approx(min(amounts[row], mass[row].sum()), abs=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("model", [POINT, robots.quadrotor()], ids=["point", "quadrotor"])
def test_gains_are_those_of_the_whole_system_of_stationarity(model):
    Q = np.where(model.position.sum(0) > 0, 0, 1e-5)
    with jax.enable_x64(True):
        found = robots.linear_quadratic(model, 8, input_cost=1e-4, state_cost=Q).gains(
            jnp.asarray(2e-3)
        )
        of_state, of_target = kkt(*model.matrices, model.position, 2e-3, np.diag(Q), 1e-4, 8)
        np.testing.assert_allclose(found.of_state, of_state, rtol=1e-8, atol=1e-10)
        np.testing.assert_allclose(found.of_target, of_target, rtol=1e-8, atol=1e-10)


@pytest.mark.slow
def test_one_step_ahead_it_is_the_weighted_way_there():
    # x + T u with C = I: u = alpha T (y - x) / (alpha T^2 + R).
    model = POINT._replace(matrices=(np.eye(2), INTERVAL * np.eye(2)), position=np.eye(2))
    gains = robots.linear_quadratic(model, 1, input_cost=0.02).gains(jnp.float32(0.5))
    factor = 0.5 * INTERVAL / (0.5 * INTERVAL**2 + 0.02)
    np.testing.assert_allclose(gains.of_target, factor * np.eye(2), rtol=1e-5)
    np.testing.assert_allclose(gains.of_state, -factor * np.eye(2), rtol=1e-5)


@pytest.mark.slow
def test_a_sweep_of_the_iterated_law_is_exact_for_a_linear_model():
    model = robots.quadrotor()
    exact = robots.linear_quadratic(model, 8, input_cost=1e-4)
    swept = robots.iterated(model, 8, input_cost=1e-4, sweeps=1)
    with jax.enable_x64(True):
        alpha, x, y = jnp.asarray(2e-3), jnp.asarray(RNG.normal(size=8)), jnp.asarray([0.4, -0.2])
        one, _ = exact.input(exact.gains(alpha), (), x, y, alpha)
        other, plan = swept.input((), swept.start(x), x, y, alpha)
    np.testing.assert_allclose(one, other, rtol=1e-6, atol=1e-9)
    assert plan.shape == (8, 2)


@pytest.mark.slow
def test_a_quadrotor_with_its_own_trigonometry_reaches_its_sample():
    """A far target tilts it steeply: the linear law of the same horizon does not get there."""
    model, T = robots.quadrotor(linear=False), 60
    linear = robots.quadrotor()
    away = {}
    for name, controller in {
        "iterated": robots.iterated(model, 15, input_cost=1e-2 / T, sweeps=2),
        "linear": robots.linear_quadratic(linear, 15, input_cost=1e-2 / T),
    }.items():
        algorithm = robots.d2oc(model, controller, 1, T)
        state, _ = flown(algorithm, T, np.zeros((1, 2)), np.array([[1.0, 0.5]]))
        away[name] = np.linalg.norm(state.clients.visited[0] - [1.0, 0.5], axis=-1)
    assert away["iterated"][30:].max() < 0.01
    assert not np.nanmin(away["linear"][30:]) < 0.01
    with pytest.raises(ValueError, match="dynamics must have matrices"):
        robots.linear_quadratic(model, 8, input_cost=1.0)


def test_in_turn_all_believe_the_same_and_every_sample_is_taken_once():
    with jax.enable_x64(True):
        state, metrics = flown(mission(sequential=True))
    assert_trees_close(metrics["remaining"], 1 - np.arange(1, STEPS + 1) / STEPS, atol=1e-9)
    taken = state.clients.ledger.taken
    np.testing.assert_allclose(taken, np.broadcast_to(taken[0], taken.shape), atol=1e-12)
    np.testing.assert_allclose(taken[0].sum(0), 1 / SAMPLES, atol=1e-9)
    np.testing.assert_allclose(metrics["overlap"], 0, atol=1e-12)
    np.testing.assert_array_equal(metrics["links"], N * (N - 1) / 2)


def test_at_once_what_is_taken_twice_is_what_remains():
    _, metrics = flown(mission())
    assert metrics["overlap"][-1] > 1e-3
    np.testing.assert_allclose(metrics["remaining"][-1], metrics["overlap"][-1], atol=1e-5)


@pytest.mark.slow
def test_without_a_radio_agents_fly_as_if_alone():
    state, _ = flown(mission(1e-6))
    alone = robots.linear_quadratic(POINT, HORIZON, input_cost=COST)
    shares = np.full(N, 1 / N)
    for i in (0, 3):
        # One agent whose points weigh as in the mission: a quarter of the mass is its own.
        one = robots.d2oc(POINT, alone, 1, N * STEPS)
        single, _ = flown(one, STEPS, PLACES[i : i + 1])
        np.testing.assert_allclose(
            single.clients.states[0], state.clients.states[i], rtol=1e-4, atol=1e-5
        )
    weighed, _ = flown(mission(1e-6, shares=shares))
    np.testing.assert_allclose(weighed.clients.states, state.clients.states, rtol=1e-5, atol=1e-6)


def test_permuted_agents_fly_the_same_mission():
    order = np.array([2, 0, 3, 1])
    state, _ = flown(mission(0.4), 12)
    permuted, _ = flown(mission(0.4), 12, PLACES[order])
    np.testing.assert_allclose(permuted.clients.states, state.clients.states[order], atol=1e-5)


@pytest.mark.slow
def test_the_newest_record_wins():
    rng = np.random.default_rng(1)
    clock = rng.integers(0, 5, (N, N)).astype(np.int32)
    # A record is what its agent had taken at that time.
    at = rng.random((N, 6, SAMPLES)).astype(np.float32)
    ledger = Ledger(jnp.asarray(at[np.arange(N)[None], clock]), jnp.asarray(clock))
    links = np.array([[1, 1, 0, 0], [1, 1, 1, 0], [0, 1, 1, 0], [0, 0, 0, 1]], bool)
    merged = newest(ledger, jnp.asarray(links))
    for i in range(N):
        np.testing.assert_array_equal(merged.clock[i], clock[links[i]].max(0))
    np.testing.assert_array_equal(merged.taken, at[np.arange(N)[None], np.asarray(merged.clock)])
    everyone = jnp.ones((N, N), bool)
    once = newest(ledger, everyone)
    for again in (newest(once, everyone), newest(newest(ledger, jnp.asarray(links)), everyone)):
        np.testing.assert_array_equal(again.taken, once.taken)
        np.testing.assert_array_equal(again.clock, once.clock)
    none = left(Ledger(jnp.full((1, 1, 4), 0.3), ()), 4)
    np.testing.assert_array_equal(none, 0)


def test_whom_a_round_leaves_out_flies_unheard():
    algorithm = mission(sequential=True)
    source = dx.Population(N)

    def run(reports):
        state = algorithm.init(KEY, PLACES, DENSITY)

        def one(state, number):
            round = source.draw(KEY, number)
            return algorithm.step(state, round._replace(reports=reports, weights=reports))

        return jax.lax.scan(one, state, jnp.arange(6))

    state, metrics = jax.tree.map(np.asarray, jax.jit(run)(jnp.array([1.0, 0, 1, 1])))
    assert state.clients.ledger.clock[1].tolist() == [0, 6, 0, 0]
    assert state.clients.ledger.clock[0].tolist() == [6, 0, 6, 6]
    np.testing.assert_array_equal(metrics["links"], 3)
    assert not np.isnan(state.clients.visited[1, 5]).any()


@pytest.mark.slow
def test_a_mission_over_is_over():
    state, metrics = flown(mission(sequential=True), STEPS + 3)
    assert metrics["active"][-3:].tolist() == [0, 0, 0]
    assert not np.isnan(state.clients.visited).any()
    stopped, _ = flown(mission(sequential=True), STEPS)
    np.testing.assert_array_equal(state.clients.states, stopped.clients.states)


@pytest.mark.slow
def test_reaches_and_costs_sweep_as_one_program():
    def run(radio, cost):
        controller = robots.linear_quadratic(POINT, HORIZON, input_cost=cost)
        algorithm = mission(radio, controller=controller)
        state = algorithm.init(KEY, jnp.asarray(PLACES), jnp.asarray(DENSITY))
        return dx.rollout(algorithm, state, dx.Population(N), KEY, 8)[0].clients.states

    points = jnp.array([0.2, 1.0]), jnp.array([COST, 100 * COST])
    found = jax.jit(jax.vmap(run))(*points)
    np.testing.assert_allclose(found[1], jax.jit(run)(1.0, 100 * COST), rtol=1e-4, atol=1e-5)
    assert np.abs(found[0] - found[1]).max() > 1e-2


@pytest.mark.slow
def test_a_mesh_gives_what_a_single_device_gives():
    places = RNG.random((8, 2))
    algorithm = mission(0.5, agents=8)
    state = algorithm.init(KEY, places, DENSITY)
    source = dx.Population(8)
    one, _ = dx.run(algorithm, state, source, rounds=10, key=KEY)
    state = algorithm.init(KEY, places, DENSITY)
    eight, _ = dx.run(algorithm, state, source, rounds=10, key=KEY, mesh=dx.client_mesh())
    assert_trees_close(one.clients.states, eight.clients.states, atol=1e-5)
    assert_trees_close(one.clients.ledger.taken, eight.clients.ledger.taken, atol=1e-6)


def test_spectral_coverage_descends_its_modes():
    """One step by hand, and a density of cosines is approached."""
    algorithm = robots.spectral_coverage(N, 200, SPEED, modes=4)
    state, metrics = flown(algorithm, 200)
    assert metrics["ergodicity"][-1] < 0.2 * metrics["ergodicity"][0]
    places = state.clients.visited
    ways = np.linalg.norm(np.diff(places, axis=1), axis=-1)
    assert ways.max() <= 0.1 * SPEED * (1 + 1e-3)
    k = np.stack(np.meshgrid(np.arange(4), np.arange(4), indexing="ij"), -1).reshape(-1, 2)
    norm = np.sqrt(np.where(k == 0, 1, 0.5).prod(1))

    def modes(p):
        return np.cos(np.pi * p[:, None] * k).prod(-1) / norm

    reached = modes(places.reshape(-1, 2).astype(np.float64)).mean(0)
    apart = ((1 + (k**2).sum(1)) ** -1.5 * (reached - modes(DENSITY).mean(0)) ** 2).sum()
    assert metrics["ergodicity"][-1] == pytest.approx(apart, rel=1e-2, abs=1e-7)


def test_strips_cover_the_square_evenly():
    places = np.asarray(robots.lawn_mower(4, 400))
    assert places.shape == (4, 400, 2)
    ways = np.linalg.norm(np.diff(places, axis=1), axis=-1)
    assert np.median(ways) == pytest.approx(12 / 400, rel=1e-3)
    counts, _, _ = np.histogram2d(*places.reshape(-1, 2).T, bins=4, range=[[0, 1], [0, 1]])
    np.testing.assert_allclose(counts, 100, atol=8)


def test_distances_are_those_of_an_assignment():
    pytest.importorskip("ot")
    from scipy.optimize import linear_sum_assignment

    rng = np.random.default_rng(0)
    visited, samples = rng.random((2, 3, 2)), rng.random((6, 2))
    costs = ((visited.reshape(-1, 1, 2) - samples) ** 2).sum(-1)
    rows, columns = linear_sum_assignment(costs)
    expected = np.sqrt(costs[rows, columns].mean())
    assert robots.wasserstein(visited, samples) == pytest.approx(expected, rel=1e-9)
    more = np.concatenate([visited.reshape(-1, 2), [[np.nan, np.nan], [9.0, 9.0]]])
    weights = np.array([1.0] * 7 + [0.0])
    with pytest.raises(ValueError, match="visited must hold a place"):
        robots.wasserstein(more[6:7], samples)
    assert robots.wasserstein(more, samples, weights) == pytest.approx(expected, rel=1e-9)


@pytest.mark.some(2)
@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: mission(radio=0.0), "radio must be"),
        (lambda: mission(steps=0), "steps must be an integer >= 1"),
        (lambda: mission(shares=np.full(N, 0.5)), "shares must be positive and of sum 1"),
        (lambda: robots.quadrotor(angle=-1.0), "angle must be"),
        (lambda: robots.linear_quadratic(POINT, 0, input_cost=1.0), "horizon must be"),
        (lambda: robots.linear_quadratic(POINT, 3, input_cost=0.0), "input_cost must be"),
        (lambda: robots.straight(robots.quadrotor(), 1.0), "dynamics must be a double"),
        (lambda: mission().init(KEY, PLACES[:2], DENSITY), "params must be real numbers of shape"),
        (lambda: mission().init(KEY, PLACES, DENSITY[:0]), "samples must"),
        (
            lambda: jax.eval_shape(
                mission().step,
                mission().init(KEY, PLACES, DENSITY),
                dx.Population(3).draw(KEY, 0),
            ),
            "the source must draw rounds of the mission's 4",
        ),
    ],
)
def test_bad_arguments_are_refused(make, message):
    with pytest.raises((TypeError, ValueError), match=message):
        make()
