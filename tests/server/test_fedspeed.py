import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from quadratic_rounds import (
    CLIENTS,
    KEY,
    LOSS,
    SOURCE,
    START,
    A,
    B,
    advance,
    cohorts,
    federation,
    local_steps,
    perturbed_gradient,
)
from tasks import assert_trees_close

import dflax as dx
from dflax.population import Assignment

RATE, PULL = 0.05, 0.5


def rounds_by_hand(radius=0.0, alpha=1.0, average="code", relaxed=0.0):
    """The algorithm box in float64: model, duals, and the last round's divergence."""
    x, h, last = START, np.zeros((CLIENTS, 3)), np.tile(START, (CLIENTS, 1))
    for cohort in cohorts():
        ends, old = [], h.copy()
        for i in cohort:
            first = x + relaxed * (x - last[i])

            def direction(y, i=i, first=first):
                q = perturbed_gradient(i, y, radius, alpha)
                return q + PULL * (y - first) + PULL * old[i]  # noqa: B023

            end, _ = local_steps(first, direction, RATE)
            ends.append(end)
            h[i], last[i] = old[i] + end - first, end
        mean = np.mean(ends, axis=0)
        x = {
            "code": mean + h.mean(0),
            "active_old": mean + old[cohort].mean(0),
            "active_new": mean + h[cohort].mean(0),
        }[average]
    return x, h, np.mean([np.sum((end - x) ** 2) for end in ends])


@pytest.mark.some(2)
@pytest.mark.parametrize(
    "options",
    [
        {"radius": 0.3, "alpha": 0.6},
        {"radius": 0.3, "average": "active_old"},
        {"radius": 0.3, "average": "active_new"},
        {"radius": 0.3, "relaxed": 0.2},
        {"radius": 0.3, "relaxed": 0.2, "average": "active_new"},
    ],
)
def test_rounds_are_those_of_the_paper(options):
    algorithm = dx.server.fedspeed(LOSS, optax.sgd(RATE), CLIENTS, pull=PULL, **options)
    state, metrics = jax.jit(functools.partial(advance, algorithm))(SOURCE)
    x, h, divergence = rounds_by_hand(**options)
    np.testing.assert_allclose(state.server.params, x, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(state.clients.memory.dual, h, rtol=1e-4, atol=1e-5)
    if options.get("average", "code") == "code":
        np.testing.assert_allclose(state.server.memory.mean, h.mean(0), rtol=1e-4, atol=1e-6)
        np.testing.assert_allclose(metrics["divergence"][-1], divergence, rtol=1e-3)
        np.testing.assert_allclose(metrics["dual_norm"][-1], np.linalg.norm(h.mean(0)), rtol=1e-4)


def test_without_perturbation_it_is_feddyn():
    def run(rho, alpha):
        algorithm = dx.server.fedspeed(
            LOSS, optax.sgd(RATE), CLIENTS, pull=PULL, radius=rho, alpha=alpha
        )
        return advance(algorithm, SOURCE)[0]

    swept = jax.jit(jax.vmap(run))(jnp.asarray([0.0, 0.3]), jnp.asarray([1.0, 0.0]))
    algorithm = dx.server.feddyn(LOSS, optax.sgd(RATE), CLIENTS, pull=PULL)
    plain, _ = jax.jit(functools.partial(advance, algorithm))(SOURCE)
    for row in range(2):
        found = jax.tree.map(lambda leaf: leaf[row], (swept.server, swept.clients))  # noqa: B023
        assert_trees_close(found, (plain.server, plain.clients), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(plain.server.params, rounds_by_hand()[0], rtol=1e-4, atol=1e-5)


def test_without_a_pull_and_with_duals_at_rest_it_is_fedsam():
    @jax.jit
    def first_round(pull):
        algorithm = dx.server.fedspeed(
            LOSS, optax.sgd(RATE), CLIENTS, pull=pull, radius=0.3, average="active_old"
        )
        return advance(algorithm, SOURCE, 1)[0].server.params

    algorithm = dx.server.fedsam(LOSS, optax.sgd(RATE), radius=0.3)
    state, _ = jax.jit(functools.partial(advance, algorithm, rounds=1))(SOURCE)
    np.testing.assert_allclose(first_round(0.0), state.server.params, rtol=1e-6)


def test_the_local_steps_are_a_weighted_sum_of_gradients_whatever_these_are():
    """With a = 1 - rate lam, w_k = rate lam a^(K-1-k) and ghat = -lam h, from the round's start x_0:

    x_K - x_0 = -(1 / lam) (sum_k w_k q_k - (1 - a^K) ghat), new ghat = a^K ghat + sum_k w_k q_k.
    """
    steps, lam = 7, 0.8
    a = 1 - RATE * lam
    h = jnp.asarray([0.3, -0.2, 0.5])

    def noise(params, batch, key, memory):
        k, total = memory
        q = jax.random.normal(key, params.shape) + params**2
        return q, {}, (k + 1, total + RATE * lam * a ** (steps - 1 - k) * q)

    solve = dx.local.solver(
        dx.local.Oracle(noise, conclude=lambda seen, noted, params, memory: (seen, noted)),
        optax.sgd(RATE),
    )
    x = jnp.asarray(START, jnp.float32)
    solution = jax.jit(solve)(
        dx.local.Subproblem(shift=lam * h, pull=lam, anchor=x),
        x,
        Assignment(jnp.zeros((steps, 1), jnp.int32), jnp.int32(steps), KEY),
        dx.data.Dataset(jnp.zeros((1, 1)), jnp.zeros(1, jnp.int32)),
        memory=(jnp.float32(0), jnp.zeros(3)),
    )
    total, ghat = solution.memory[1], -lam * h
    moved = solution.params - x
    np.testing.assert_allclose(moved, -(total - (1 - a**steps) * ghat) / lam, atol=1e-6)
    np.testing.assert_allclose(-lam * (h + moved), a**steps * ghat + total, atol=1e-6)


@pytest.mark.parametrize("average", ["code", "active_old", "active_new"])
def test_with_everyone_it_stops_at_the_optimum_for_any_number_of_steps(average):
    optimum = np.linalg.solve(A.sum(0), np.einsum("nde,ne->d", A, B))
    with jax.enable_x64(True):
        algorithm = dx.server.feddyn(LOSS, optax.sgd(0.05), CLIENTS, pull=1.0, average=average)
        state, _ = jax.jit(functools.partial(advance, algorithm, rounds=1500))(
            federation(7, CLIENTS)
        )
    np.testing.assert_allclose(state.server.params, optimum, atol=1e-9)
    slopes = np.einsum("nde,ne->nd", A, optimum - B)
    np.testing.assert_allclose(state.clients.memory.dual, -slopes, atol=1e-8)
    np.testing.assert_allclose(np.asarray(state.clients.memory.dual).mean(0), 0.0, atol=1e-9)


def test_exact_local_solves_are_douglas_rachford():
    """With y_i = w - h_i and x_i = prox_{f_i / lam}(y_i): y_i+ = y_i + mean_j (2 x_j - y_j) - x_i."""
    with jax.enable_x64(True):
        algorithm = dx.server.feddyn(LOSS, optax.sgd(0.3), CLIENTS, pull=1.5)
        state = algorithm.init(KEY, jnp.asarray(START))
        source, step = federation(300, CLIENTS), jax.jit(algorithm.step)
        y = np.tile(START, (CLIENTS, 1))
        for t in range(3):
            state, _ = step(state, source.draw(KEY, t))
            pulled = A @ B[..., None] + 1.5 * y[..., None]
            x = np.linalg.solve(A + 1.5 * np.eye(3), pulled)[..., 0]
            y = y + (2 * x - y).mean(0) - x
            found = state.server.params - state.clients.memory.dual
            np.testing.assert_allclose(found, y, rtol=1e-8)


@pytest.mark.parametrize("average", ["code", "active_new", "active_old"])
def test_the_error_of_the_mean_contracts_as_it_should(average):
    """Scalar curvature s lam, exact solves; duals start at rest.

    From the second round on the error shrinks by 1 / (1 + s), in the first by (1 - s) / (1 + s). In the
    old order error and mean dual follow a 2 x 2 matrix.
    """
    s, pull = 0.7, 1.0
    hessians, optima = np.full((4, 1, 1), s * pull), np.array([[1.0], [-2.0], [0.5], [3.0]])
    with jax.enable_x64(True):
        algorithm = dx.server.feddyn(LOSS, optax.sgd(0.5), 4, pull=pull, average=average)
        state = algorithm.init(KEY, jnp.zeros(1))
        source, step = federation(120, 4, hessians, optima), jax.jit(algorithm.step)
        seen = []
        for t in range(4):
            mean_dual = float(state.clients.memory.dual.mean())
            seen.append([float(state.server.params[0]) - optima.mean(), mean_dual])
            state, _ = step(state, source.draw(KEY, t))
    for t, (before, after) in enumerate(itertools.pairwise(seen)):
        if average != "active_old":
            factor = (1.0 if t else 1 - s) / (1 + s)
            np.testing.assert_allclose(after[0], factor * before[0], rtol=1e-9)
        else:
            matrix = np.array([[1.0, s], [-s, s]]) / (1 + s)
            np.testing.assert_allclose(after, matrix @ before, atol=1e-9)
            modulus = np.abs(np.linalg.eigvals(matrix)).max()
            np.testing.assert_allclose(modulus, np.sqrt(s / (1 + s)))


def test_the_hand_example():
    algorithm = dx.server.fedspeed(LOSS, optax.sgd(0.1), 1, pull=0.5, radius=0.0)
    source = federation(2, 1, np.ones((1, 1, 1)), np.ones((1, 1)))
    state, _ = advance(algorithm, source, 1, np.zeros(1))
    np.testing.assert_allclose(state.clients.memory.dual, 0.185, rtol=1e-6)
    np.testing.assert_allclose(state.server.params, 0.37, rtol=1e-6)


def test_duals_of_a_model_in_half_precision_are_wide():
    algorithm = dx.server.fedspeed(LOSS, optax.sgd(0.1), CLIENTS)
    state = algorithm.init(KEY, jnp.zeros(3, jnp.bfloat16))
    state, _ = jax.jit(algorithm.step)(state, SOURCE.draw(KEY, 0))
    assert state.server.params.dtype == jnp.bfloat16
    assert state.clients.memory.dual.dtype == state.server.memory.mean.dtype == jnp.float32


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"pull": 0.0}, "pull must be a finite number in"),
        ({"pull": 10.0}, "local rate times"),
        ({"radius": -0.1}, "radius must be a finite number in"),
        ({"alpha": 1.1}, "alpha must be a finite number in"),
        ({"relaxed": -0.1}, "relaxed must be a finite number in"),
        ({"average": "active"}, "average must be one of 'code', 'active_old', 'active_new'"),
        ({"clients": 0}, "clients must be an integer >= 1"),
        ({"optimizer": 0.1}, "optimizer must be an optax optimiser"),
        ({"loss": None}, "loss must be a function"),
    ],
)
def test_bad_arguments_are_refused(options, message):
    given = {"loss": LOSS, "optimizer": optax.sgd(0.1), "clients": CLIENTS} | options
    with pytest.raises((TypeError, ValueError), match=message):
        dx.server.fedspeed(**given)
