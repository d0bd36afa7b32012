"""CPTO against its steps by hand in float64, exact quadratic programs and what consensus demands."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tasks import assert_trees_close

import dflax as dx
from dflax import robots
from dflax.robots.planning.barrier import elliptic, outside
from dflax.robots.planning.subproblems import quadratic

KEY = jax.random.key(0)
CURVES = robots.bernstein()
P, P1, P2, P3 = CURVES.values
T, NT, S, M = 4.0, 40, 2, 2
TIMES = np.linspace(0, T, NT)
LIMITS = robots.Limits()


def crossing():
    """Obstacle 1 drives ahead in both hypotheses, obstacle 2 stands in the first alone."""
    centres, axes = np.zeros((S, M, 2, NT)), np.zeros((S, M, 2, NT))
    centres[:, 0, 0], centres[:, 0, 1] = 16 + 2 * TIMES, 0.2
    centres[:, 1, 0], centres[:, 1, 1] = 20, -3
    axes[:, :, 0], axes[:, :, 1] = 4, 2.2
    axes[1, 1] = 0
    start = robots.Start(np.zeros(2), np.array([7.0, 0.0]), np.float64(0), np.float64(0))
    return robots.Scene(start, centres, axes, np.full(S, 7.0), np.array([3.0, -3.0]))


def iterate(count, scene, shared=5, exact=False, **options):
    """State and metrics after so many iterations; one program for all counts and real numbers."""
    guess = robots.straight_guess(CURVES, scene)
    found = program(S, M, shared, jnp.result_type(float), exact)
    options = {"penalty": 5.0, "relaxation": 1.0, "barrier_rate": 0.2, **options}
    return jax.tree.map(np.asarray, found(count, guess, scene, options))


@functools.cache
def program(hypotheses, obstacles, shared, dtype, exact=False):
    @jax.jit
    def run(count, guess, scene, options):
        algorithm = robots.cpto(
            CURVES, hypotheses, obstacles, shared=shared, exact_boxes=exact, **options
        )
        state = algorithm.init(KEY, guess, scene)
        round = dx.Population(hypotheses).draw(KEY, 0)
        state = jax.lax.fori_loop(0, count - 1, lambda _, s: algorithm.step(s, round)[0], state)
        return algorithm.step(state, round)

    return run


def kkt(Q, E):
    k = len(E)
    return np.linalg.inv(np.block([[Q, E.T], [E, np.zeros((k, k))]]))[:11]


def by_hand(scene, count, shared, rho, alpha, gamma, v0=7.0):
    """The sheet's steps in float64: KKT systems, angles, one barrier after another."""
    ws, wp, wv, wy = 100, 150, 50, 100
    Nc, tr = shared, shared + 2
    o, ax = np.moveaxis(scene.centres, 2, 0), np.maximum(np.moveaxis(scene.axes, 2, 0), 1e-6)
    G = [np.concatenate([D, -D]) for D in CURVES.values]
    bounds = [[np.repeat([high, -low], NT) for low, high in box] for box in (LIMITS.x, LIMITS.y)]
    A = np.concatenate([P[:Nc], P1[:Nc], P2[:Nc]])
    C = P[:Nc]
    Q = ws * P2.T @ P2 + rho * (P1.T @ P1 + sum(g.T @ g for g in G) + M * P.T @ P + A.T @ A)
    K = [
        kkt(Q + wv * P1.T @ P1, np.stack([P[0], P1[0]])),
        kkt(Q + wy * P[tr:].T @ P[tr:], np.stack([P[0], P1[0], P[-1]])),
    ]
    Kp = kkt(wp * P2.T @ P2 + rho * (P.T @ P + C.T @ C), np.stack([P[0], P1[0], P[-1], P1[-1]]))
    given = [
        np.tile([0, v0], (S, 1)),
        np.stack([0 * scene.lateral, 0 * scene.lateral, scene.lateral], 1),
    ]
    c = np.stack([np.tile(np.linspace(0, v0 * T, 11), (S, 1)), np.linspace(0, scene.lateral, 11).T])
    v = np.full((S, NT), v0)
    foot, dual_foot = None, np.zeros((2, S, M, NT))
    slack, box = np.zeros((2, 4, S, 2 * NT)), np.zeros((2, S, 11))
    z, z_psi = np.zeros((2, 3 * Nc)), np.zeros(Nc)
    lam_c, lam_cpsi = np.zeros((2, S, 3 * Nc)), np.zeros((S, Nc))
    lam_psi, lam_kin = np.zeros((S, NT)), np.zeros((2, S, NT))
    rates = gamma + (1 - gamma) * np.arange(NT) / (NT - 1)

    def polar(c, bounded):
        d = (c @ P.T)[:, :, None] - o
        angle = np.arctan2(ax[0] * d[1], ax[1] * d[0])
        along = np.stack([np.cos(angle), np.sin(angle)])
        r = (ax * d * along).sum(0) / np.square(ax * along).sum(0)
        r[..., 0] = np.maximum(r[..., 0], 1)
        for k in range(1, NT):
            least = 1 + (1 - rates[k]) * (r[..., k - 1] - 1) if bounded else 1
            r[..., k] = np.maximum(r[..., k], least)
        return d, ax * r * along

    _, foot = polar(c, False)
    for _ in range(count):
        x1, y1 = c @ P1.T
        q = (rho * np.arctan2(y1, x1) + lam_psi) @ P + (rho * z_psi + lam_cpsi) @ C
        psi = np.concatenate([q, np.zeros((S, 4))], 1) @ Kp.T @ P.T
        along = np.stack([np.cos(psi), np.sin(psi)])
        target = [wv * 7.0 * P1.sum(0), wy * np.outer(scene.lateral, P[tr:].sum(0))]
        for i in range(2):
            q = target[i] + box[i] + (rho * v * along[i] + lam_kin[i]) @ P1
            q = q + (rho * (o[i] + foot[i]) + dual_foot[i]).sum(1) @ P
            q = q + sum(rho * (g - s) @ D for g, s, D in zip(bounds[i], slack[i], G, strict=True))
            q = q + (rho * z[i] + lam_c[i]) @ A
            c[i] = np.concatenate([q, given[i]], 1) @ K[i].T
        x1 = c @ P1.T
        v = np.clip(np.hypot(*x1), 0, 10)
        v[:, 0] = v0
        z, z_psi = (c @ A.T).mean(1), psi[:, :Nc].mean(0)
        d, foot = polar(c, True)
        for i, j in itertools.product(range(2), range(4)):
            over, old = c[i] @ G[j].T - bounds[i][j], slack[i, j].copy()
            slack[i, j] = np.maximum(0, -alpha * over + (1 - alpha) * old)
            left = alpha * (over + slack[i, j]) + (1 - alpha) * (slack[i, j] - old)
            box[i] -= rho * left @ G[j]
        dual_foot -= rho * (d - foot)
        lam_psi -= rho * (psi - np.arctan2(x1[1], x1[0]))
        lam_kin -= rho * (x1 - v * along)
        lam_c -= rho * (c @ A.T - z[:, None])
        lam_cpsi -= rho * (psi[:, :Nc] - z_psi)
    wrong = np.sqrt(np.square(x1 - v * along).sum())
    return c, v, z, lam_c, wrong


@pytest.mark.some(2)
@pytest.mark.parametrize(
    ("shared", "alpha", "gamma"), [(5, 1.6, 0.2), (5, 1.0, 0.5), (0, 1.0, 0.2)]
)
def test_iterations_are_the_papers_steps_by_hand(shared, alpha, gamma):
    c, v, z, lam, _ = by_hand(crossing(), 40, shared, 5.0, alpha, gamma)
    with jax.enable_x64(True):
        state, _ = iterate(40, crossing(), shared, relaxation=alpha, barrier_rate=gamma)
    found = state.clients.memory
    np.testing.assert_allclose(found.params.x, c[0], atol=1e-7)
    np.testing.assert_allclose(found.params.y, c[1], atol=1e-7)
    np.testing.assert_allclose(found.params.speed, v, atol=1e-7)
    np.testing.assert_allclose(state.server.params.x.ravel(), z[0], atol=1e-7)
    np.testing.assert_allclose(-found.dual.y.reshape(S, -1), lam[1], atol=1e-6)


def test_the_published_scene_comes_out():
    """The static table, deterministic: spread of the first y, least ellipse value, kinematics."""

    def told(shared, count, first=5, **options):
        with jax.enable_x64(True):
            state, metrics = iterate(count, crossing(), shared, **options)
        found = state.clients.memory.params
        y = found.y @ P.T
        away = np.stack([found.x @ P.T, y], 1)[0] - crossing().centres[0]
        least = np.square(away / crossing().axes[0][:, :, :]).sum(1).min()
        return np.ptp(y[:, :first], axis=0).max(), least, metrics["kinematic"] * np.sqrt(S)

    for count, spread in ((10, 0.242), (100, 0.028), (300, 0.0097)):
        assert told(5, count)[0] == pytest.approx(spread, abs=6e-4 if count < 300 else 6e-5)
    spread, least, wrong = told(5, 300)
    assert (least, wrong) == (pytest.approx(1.11, abs=6e-3), pytest.approx(0.64, abs=6e-3))
    alone, apart, _ = told(0, 300)
    assert alone == pytest.approx(0.175, abs=6e-4)
    assert alone > 10 * spread
    assert apart == pytest.approx(1.20, abs=6e-3)
    relaxed = told(5, 300, relaxation=1.6)
    np.testing.assert_allclose(relaxed, (spread, least, wrong), rtol=0.02)
    assert told(5, 300, penalty=20.0)[:2] == (
        pytest.approx(0.008, abs=6e-4),
        pytest.approx(1.10, abs=6e-3),
    )


def test_curves_are_scipys_bernstein_polynomials():
    from scipy.interpolate import BPoly

    curves = robots.bernstein(17, 2.5, 7)
    c = np.random.default_rng(0).normal(size=8)
    poly = BPoly(c[:, None], [0, 2.5])
    for order in range(4):
        expected = poly(np.linspace(0, 2.5, 17), nu=order)
        np.testing.assert_allclose(curves.values[order] @ c, expected, atol=1e-9)
    np.testing.assert_allclose(curves.values[0].sum(1), 1, atol=1e-12)
    np.testing.assert_allclose(curves.values[0] @ np.linspace(3, 5, 8), np.linspace(3, 5, 17))
    np.testing.assert_allclose(curves.fit @ curves.values[0] @ c, c, atol=1e-8)
    weights = np.random.default_rng(1).normal(size=(4, 17))
    with jax.enable_x64(True):
        np.testing.assert_allclose(
            curves.against(jnp.asarray(weights)) @ c,
            np.sum(weights * np.asarray(curves.at(jnp.asarray(c)))),
            rtol=1e-9,
        )


@pytest.mark.slow
def test_the_barrier_is_the_recursion_time_after_time():
    distances = np.random.default_rng(0).uniform(-0.5, 4, (30, NT))
    for rate in (0.05, 0.5, 1.0):
        expected = distances.copy()
        rates = rate + (1 - rate) * np.arange(NT) / (NT - 1)
        expected[:, 0] = np.maximum(expected[:, 0], 1)
        for k in range(1, NT):
            least = 1 + (1 - rates[k]) * (expected[:, k - 1] - 1)
            expected[:, k] = np.maximum(expected[:, k], least)
        with jax.enable_x64(True):
            found = robots.discrete_barrier(rate, NT).bound(jnp.asarray(distances))
        np.testing.assert_allclose(found, expected, atol=1e-12)
    # d_0 = 3 and gamma about 1/2 at times 1 and 2: d - 1 halves, and halves again.
    long = robots.discrete_barrier(0.5, 10_000)
    halves = long.bound(jnp.zeros(10_000).at[0].set(3.0))[:3]
    np.testing.assert_allclose(halves, [3, 2, 1.5], atol=1e-3)


def test_polar_variables_reproduce_what_is_outside_and_stretch_what_is_not():
    plain = robots.discrete_barrier(1.0, 2)
    ones = np.ones((2, 2))
    assert elliptic(np.array([[3.0, 3], [4, 4]]), ones)[0] == pytest.approx(5)
    wide = np.array([[2.0, 2], [1, 1]])
    on = np.array([[2.0, 1], [0, 0]])
    np.testing.assert_allclose(elliptic(on, wide), [1, 0.5])
    np.testing.assert_allclose(outside(on, wide, plain), [[2, 2], [0, 0]], atol=1e-6)
    far = np.array([[3.0, -5], [4, 1]])
    np.testing.assert_allclose(outside(far, wide, plain), far, rtol=1e-6)
    # An obstacle without axes stands nowhere.
    np.testing.assert_allclose(outside(far, 0 * wide, plain), far, rtol=1e-6)


def test_the_closed_form_is_the_solution_of_the_kkt_system():
    rng = np.random.default_rng(0)
    root = rng.normal(size=(11, 11))
    Q, q, ends = root @ root.T + np.eye(11), rng.normal(size=11), rng.normal(size=3)
    E = np.eye(11)[[0, 1, 10]]
    expected = kkt(Q, E) @ np.concatenate([q, ends])
    with jax.enable_x64(True):
        found = quadratic(jnp.asarray(Q), [0, 1, 10]).minimum(q, E.T @ ends)
    np.testing.assert_allclose(found, expected, atol=1e-9)


@pytest.mark.slow
def test_on_a_straight_road_the_fixed_point_is_the_optimum_of_the_quadratic_program():
    """y = psi = 0 and nothing in the way: a convex problem, with active limits on x'' and x'''."""
    cvxpy = pytest.importorskip("cvxpy")
    start = robots.Start(np.zeros(2), np.array([4.0, 0.0]), np.float64(0), np.float64(0))
    empty = np.zeros((S, M, 2, NT))
    scene = robots.Scene(start, empty + 50.0, empty, np.array([9.5, 5.0]), np.zeros(S))
    with jax.enable_x64(True):
        state, _ = iterate(6000, scene, 0, exact=True, penalty=20.0)
        kept, _ = iterate(2000, scene, 0)
    for s, wanted in enumerate(scene.speed):
        c = cvxpy.Variable(11)
        cost = 50 * cvxpy.sum_squares(P2 @ c) + 25 * cvxpy.sum_squares(P1 @ c - wanted)
        limits = [
            bound
            for D, (low, high) in zip(CURVES.values[1:], LIMITS.x[1:], strict=True)
            for bound in (D @ c >= low, D @ c <= high)
        ]
        cvxpy.Problem(cvxpy.Minimize(cost), [P[0] @ c == 0, P1[0] @ c == 4, *limits]).solve(
            cvxpy.CLARABEL
        )
        found = state.clients.memory.params.x[s]
        np.testing.assert_allclose(P @ found, P @ c.value, atol=1e-4)
        # The authors' slacks: the optimum where no limit is met, else within limits and apart from it.
        apart = np.abs(P @ (kept.clients.memory.params.x[s] - c.value)).max()
        assert (P3 @ kept.clients.memory.params.x[s]).max() < 6 + 1e-3
        assert ((P3 @ c.value).max() > 6 - 1e-3) == (s == 0)
        assert (apart > 1e-2) if s == 0 else (apart < 1e-4)


def test_the_same_hypotheses_have_the_same_plans_and_duals_add_up_to_nothing():
    scene = crossing()
    same = scene._replace(
        centres=scene.centres[[0, 0]], axes=scene.axes[[0, 0]], lateral=np.full(S, 3.0)
    )
    with jax.enable_x64(True):
        state, _ = iterate(25, same)
        differing, _ = iterate(25, crossing())
    for leaf in jax.tree.leaves(state.clients.memory.params):
        np.testing.assert_allclose(leaf[0], leaf[1], atol=1e-12)
    for leaf in jax.tree.leaves(state.clients.memory.dual):
        np.testing.assert_allclose(leaf, 0, atol=1e-9)
    for leaf in jax.tree.leaves(differing.clients.memory.dual):
        assert np.abs(leaf).max() > 1e-4
        np.testing.assert_allclose(leaf.mean(0), 0, atol=1e-9)


@pytest.mark.slow
def test_rates_and_penalties_sweep_as_one_program():
    scene, guess = crossing(), robots.straight_guess(CURVES, crossing())
    options = {
        "penalty": [5.0, 5.0, 20.0],
        "relaxation": [1.0, 1.0, 1.5],
        "barrier_rate": [0.02, 1.0, 0.2],
    }
    with jax.enable_x64(True):
        options = {name: jnp.asarray(np.array(values)) for name, values in options.items()}
        run = program(S, M, 5, jnp.result_type(float))
        swept, _ = jax.vmap(lambda own: run(60, guess, scene, own))(options)
    swept = swept.clients.memory.params.x
    for i in range(3):
        own = {name: float(values[i]) for name, values in options.items()}
        with jax.enable_x64(True):
            alone, _ = iterate(60, scene, **own)
        np.testing.assert_allclose(swept[i], alone.clients.memory.params.x, atol=1e-8)
    assert min(np.abs(swept[0] - swept[i]).max() for i in (1, 2)) > 1e-4


@pytest.mark.slow
def test_hypotheses_on_eight_devices_plan_what_one_device_plans():
    rng = np.random.default_rng(0)
    one = crossing()
    scene = one._replace(
        centres=np.repeat(one.centres[:1], 8, 0) + rng.normal(size=(8, M, 2, 1)),
        axes=np.repeat(one.axes[:1], 8, 0),
        speed=np.full(8, 7.0),
        lateral=rng.uniform(-3, 3, 8),
    )
    algorithm = robots.cpto(CURVES, 8, M, stop=dx.server.residuals_within(1e-9, 1e-9))
    guess = robots.straight_guess(CURVES, scene)
    state = jax.jit(algorithm.init)(KEY, guess, scene)
    source = dx.Population(8)
    alone, history = dx.run(algorithm, state, source, rounds=20, key=KEY)
    dealt, _ = dx.run(algorithm, state, source, rounds=20, key=KEY, mesh=dx.client_mesh())
    assert_trees_close(alone.clients.memory.params, dealt.clients.memory.params, atol=2e-3)
    assert_trees_close(alone.server.params, dealt.server.params, atol=2e-3)
    residual = history.metrics["primal_residual"]
    assert 0 < residual[-1] < residual[0]


def bad(**changes):
    scene = crossing()
    start = {name: changes.pop(name) for name in list(changes) if name in robots.Start._fields}
    return scene._replace(start=scene.start._replace(**start), **changes)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: robots.cpto(CURVES, 2, 2, penalty=0.0), "penalty must be a finite number in"),
        (lambda: robots.cpto(CURVES, 2, 2, penalty=-5.0), "penalty must be"),
        (lambda: robots.cpto(CURVES, 2, 2, relaxation=2.0), "relaxation must be"),
        (lambda: robots.cpto(CURVES, 2, 2, barrier_rate=0.0), "barrier_rate must be"),
        (lambda: robots.cpto(CURVES, 0, 2), "hypotheses must be an integer >= 1"),
        (lambda: robots.cpto(CURVES, 2, 0), "obstacles must be an integer >= 1"),
        (lambda: robots.cpto(CURVES, 2, 2, shared=38), "shared must be an integer"),
        (lambda: robots.cpto(CURVES, 2, 2, costs=robots.Costs(speed=-1.0)), "costs.speed must be"),
        (
            lambda: robots.cpto(CURVES, 2, 2, limits=LIMITS._replace(x=LIMITS.y[::-1] + LIMITS.x)),
            "limits.x must be",
        ),
        (
            lambda: robots.cpto(CURVES, 2, 2, limits=LIMITS._replace(x=np.array(LIMITS.x)[:, ::-1])),
            "limits.x must have least values below",
        ),
        (lambda: robots.bernstein(8, degree=10), "steps must be an integer >= 11"),
        (lambda: begun(bad(velocity=np.zeros(2))), r"scene.start.velocity must be of a speed in \(0"),
        (lambda: begun(bad(velocity=np.array([11.0, 0]))), "scene.start.velocity must be of a speed"),
        (lambda: begun(bad(position=np.array([0.0, 9]))), "scene.start.position must be within limits"),
        (lambda: begun(bad(lateral=np.array([3.0, -7]))), "scene.lateral must be within limits.y"),
        (lambda: begun(bad(position=np.array([16.0, 0]))), "scene.start.position must be outside"),
        (lambda: begun(bad(axes=crossing().axes[:, :1])), "scene.axes must have the shape"),
        (lambda: begun(bad(axes=-crossing().axes)), "scene.axes must be finite numbers"),
        (lambda: begun(bad(centres=crossing().centres[:1])), "scene.centres must be real numbers of"),
        (lambda: begun(bad(centres=crossing().centres[:, :0])), "scene.centres must be real numbers"),
        (lambda: begun(bad(speed=np.array([7.0, np.nan]))), "scene.speed must be finite"),
        (
            lambda: begun(bad(centres=crossing().centres[:, :1], axes=crossing().axes[:, :1])),
            "scene.centres must be of 2 obstacles, got 1. Pad",
        ),
    ],
)  # fmt: skip
def test_bad_arguments_are_refused(make, message):
    with pytest.raises((TypeError, ValueError), match=message):
        make()


def begun(scene):
    algorithm = robots.cpto(CURVES, S, M)
    return algorithm.init(KEY, robots.straight_guess(CURVES, crossing()), scene)


def of_eight_hypotheses():
    """Shapes of the state of eight hypotheses."""
    algorithm = robots.cpto(CURVES, 8, M)
    one = crossing()
    scene = one._replace(
        centres=np.repeat(one.centres[:1], 8, 0),
        axes=np.repeat(one.axes[:1], 8, 0),
        speed=np.full(8, 7.0),
        lateral=np.zeros(8),
    )
    guess = robots.straight_guess(CURVES, scene)
    return algorithm, jax.eval_shape(lambda scene: algorithm.init(KEY, guess, scene), scene)


@pytest.mark.slow
def test_an_iteration_sends_the_shared_segment_alone():
    algorithm, state = of_eight_hypotheses()
    cost = dx.profile.round(algorithm, state, dx.Population(8), mesh=dx.client_mesh())
    assert cost.sent_bytes <= 1.06 * cost.least_sent_bytes + 1024
    shared = 4 * 7 * 5
    assert {c.kind for c in cost.collectives if c.bytes >= shared // 8} == {"all-reduce"}
    assert sum(c.bytes for c in cost.collectives) < 4 * shared


@pytest.mark.slow
@pytest.mark.parametrize("where", ["v5e:2x4", "8xH100"])
def test_so_it_does_on_machines_that_are_not_here(where):
    pytest.importorskip("libtpu" if "v5e" in where else "jax_plugins")
    algorithm, state = of_eight_hypotheses()
    cost = dx.profile.round(algorithm, state, dx.Population(8), mesh=dx.mesh.planned(where))
    assert cost.sent_bytes <= 1.06 * cost.least_sent_bytes + 8192
    # Who reported, a byte each, is gathered.
    assert {c.kind for c in cost.collectives if c.bytes > 8} == {"all-reduce"}
