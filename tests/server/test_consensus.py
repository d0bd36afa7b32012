"""Consensus ADMM against loops in float64 NumPy, and against the optimum."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from quadratic_rounds import CLIENTS, KEY, ROUNDS, START, A, B, advance, cohorts, federation
from tasks import assert_trees_close, assert_trees_equal

import dflax as dx
from dflax.local import Minimised
from dflax.server import consensus, residual_balancing, residuals_within

RHO, SPARSITY = 0.7, 0.9
ALL = federation(1, CLIENTS)
SOME = federation(1)


def exact(assignment, own, nearby, data, index):
    """argmin of (x - b)' A (x - b) / 2 + (rho / 2) |x - c|^2, and how far it is from z."""
    example = jax.tree.map(lambda leaf: leaf[0], data.fetch(assignment.minibatches[0]).inputs)
    a, b = (example[name].astype(own.params.dtype) for name in "Ab")
    shifted = a + nearby.penalty * jnp.eye(len(b), dtype=a.dtype)
    x = jnp.linalg.solve(shifted, a @ b + nearby.penalty * nearby.center)
    return Minimised(x.astype(own.params.dtype), metrics={"moved": jnp.sum((x - own.params) ** 2)})


def solved(i, center, rho):
    return np.linalg.solve(A[i] + rho * np.eye(3), A[i] @ B[i] + rho * center)


def shrunk(x, threshold):
    return np.sign(x) * np.maximum(np.abs(x) - threshold, 0)


def l1(mean, weight, key):
    """The prox of SPARSITY |z|_1 / weight."""
    threshold = SPARSITY / weight
    return jnp.sign(mean) * jnp.maximum(jnp.abs(mean) - threshold, 0)


def thirds(messages, weights, state, sending):
    """Rounds what is sent to multiples of a third."""
    return jax.tree.map(lambda x: jnp.round(x * 3) / 3, messages), weights, state, {}


def ran(algorithm, source, rounds=ROUNDS):
    with jax.enable_x64(True):
        found = jax.jit(functools.partial(advance, algorithm, rounds=rounds))(source)
        return jax.tree.map(np.asarray, found)


def agree(state, z, x, y):
    np.testing.assert_allclose(state.server.params, z, rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(state.clients.memory.params, x, rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(state.clients.memory.dual, y, rtol=1e-6, atol=1e-6)


def begun():
    return START, np.tile(START, (CLIENTS, 1)), np.zeros((CLIENTS, 3))


@pytest.mark.parametrize("duals", ["after", "before"])
def test_both_orders_of_the_duals_with_a_prox_at_the_server(duals):
    z, x, y = begun()
    for _ in range(ROUNDS):
        x = np.stack([solved(i, z - y[i] / RHO, RHO) for i in range(CLIENTS)])
        if duals == "before":
            y = y + RHO * (x - z)
        z = shrunk((x + y / RHO).mean(0), SPARSITY / (CLIENTS * RHO))
        if duals == "after":
            y = y + RHO * (x - z)
    state, metrics = ran(consensus(exact, RHO, CLIENTS, combine=l1, duals=duals), ALL)
    agree(state, z, x, y)
    assert metrics["moved"].shape == (ROUNDS,)


@pytest.mark.parametrize("duals", ["after", "before"])
def test_it_ends_where_the_optimality_conditions_hold(duals):
    algorithm = consensus(exact, RHO, CLIENTS, combine=l1, duals=duals)
    state, _ = ran(algorithm, ALL, 300)
    z, y = np.asarray(state.server.params), np.asarray(state.clients.memory.dual)
    pull = -np.einsum("nij,nj->i", A, z - B)
    # -sum_i grad f_i(z) is a subgradient of SPARSITY |z|_1, and the duals are -grad f_i.
    np.testing.assert_allclose(pull[z != 0], SPARSITY * np.sign(z[z != 0]), atol=1e-5)
    assert np.all(np.abs(pull[z == 0]) <= SPARSITY + 1e-5)
    np.testing.assert_allclose(y, -np.einsum("nij,nj->ni", A, z - B), atol=1e-5)


def test_the_last_messages_of_all_with_a_prox_and_some_clients_a_round():
    z, x, y = begun()
    mean = z
    for ids in cohorts():
        before = x + y / RHO
        for i in ids:
            x[i] = solved(i, z - y[i] / RHO, RHO)
            y[i] = y[i] + RHO * (x[i] - z)
        mean = mean + (x + y / RHO - before).sum(0) / CLIENTS
        z = shrunk(mean, SPARSITY / (CLIENTS * RHO))
    algorithm = consensus(exact, RHO, CLIENTS, combine=l1, duals="before", remember=True)
    state, _ = ran(algorithm, SOME)
    agree(state, z, x, y)
    np.testing.assert_allclose(state.server.memory.mean, (x + y / RHO).mean(0), rtol=1e-6)


def test_what_arrived_takes_the_place_of_the_variables_where_duals_are_mirrored():
    z, x, y = begun()
    for _ in range(ROUNDS):
        x = np.stack([solved(i, z - y[i] / RHO, RHO) for i in range(CLIENTS)])
        x = np.round(x * 3) / 3
        z = (x + y / RHO).mean(0)
        y = y + RHO * (x - z)
    channel = dx.channel.Channel(lambda message: (), thirds)
    state, _ = ran(consensus(exact, RHO, CLIENTS, mirrored=True, channel=channel), ALL)
    agree(state, z, x, y)
    np.testing.assert_allclose(np.asarray(state.clients.memory.dual).sum(0), 0, atol=1e-6)


def test_the_penalty_follows_the_residuals_and_the_run_stops():
    z, x, y = begun()
    rho, trace = 1e-3, []
    for _ in range(40):
        before = z
        x = np.stack([solved(i, z - y[i] / rho, rho) for i in range(CLIENTS)])
        z = (x + y / rho).mean(0)
        y = y + rho * (x - z)
        primal = np.linalg.norm(x - z)
        dual = np.sqrt(CLIENTS) * rho * np.linalg.norm(z - before)
        trace.append((rho, primal, dual))
        floor = np.sqrt(CLIENTS * 3) * 1e-3
        sizes = max(np.linalg.norm(x), np.sqrt(CLIENTS) * np.linalg.norm(z))
        if primal <= floor + 1e-3 * sizes and dual <= floor + 1e-3 * np.linalg.norm(y):
            break
        rho = rho * 2 if primal > 10 * dual else rho / 2 if dual > 10 * primal else rho
    algorithm = consensus(
        exact,
        1e-3,
        CLIENTS,
        adapt=residual_balancing(),
        stop=residuals_within(1e-3, 1e-3),
    )
    state, metrics = ran(algorithm, ALL, 40)
    assert 5 < len(trace) < 39
    measured = np.stack([metrics[k] for k in ("penalty", "primal_residual", "dual_residual")], 1)
    np.testing.assert_allclose(measured[: len(trace)], trace, rtol=1e-3, atol=1e-6)
    assert list(metrics["done"]) == [False] * (len(trace) - 1) + [True] * (41 - len(trace))
    agree(state, z, x, y)
    stopped, _ = ran(algorithm, ALL, len(trace))
    assert state.round == 40
    assert_trees_equal(
        (state.server, state.clients.memory), (stopped.server, stopped.clients.memory)
    )


def test_a_view_leaves_a_part_of_the_variable_to_the_client():
    """x_i = (shared, own): f_i = (shared + own - b)' A (shared + own - b) / 2 + |own|^2 / 2."""

    def minimise(assignment, own, nearby, data, index):
        example = jax.tree.map(lambda leaf: leaf[0], data.fetch(assignment.minibatches[0]).inputs)
        a, b, eye = example["A"], example["b"], jnp.eye(3)
        system = jnp.block([[a + nearby.penalty * eye, a], [a, a + eye]])
        right = jnp.concatenate([a @ b + nearby.penalty * nearby.center, a @ b])
        shared, private = jnp.split(jnp.linalg.solve(system, right), 2)
        found = {"shared": shared, "own": private}
        return Minimised(jax.tree.map(lambda x, old: x.astype(old.dtype), found, own.params))

    def start(z):
        return {"shared": jnp.tile(z, (CLIENTS, 1)), "own": jnp.zeros((CLIENTS, 3))}, ()

    algorithm = consensus(minimise, RHO, start=start, view=lambda x: x["shared"])
    state, _ = ran(algorithm, ALL, 200)
    # Without the own parts: half the squared distance in the metric (A^-1 + I)^-1.
    metric = np.linalg.inv(np.linalg.inv(A) + np.eye(3))
    optimum = np.linalg.solve(metric.sum(0), np.einsum("nij,nj->i", metric, B))
    np.testing.assert_allclose(state.server.params, optimum, atol=1e-4)
    np.testing.assert_allclose(
        state.clients.memory.params["shared"], np.tile(optimum, (CLIENTS, 1)), atol=1e-4
    )


def test_penalties_sweep_as_one_program():
    def run(rho, ratio):
        adapt = residual_balancing(ratio)
        return advance(consensus(exact, rho, CLIENTS, adapt=adapt), ALL)[0].server.params

    points = jnp.asarray([0.05, 3.0]), jnp.asarray([10.0, 2.0])
    found = jax.jit(jax.vmap(run))(*points)
    np.testing.assert_allclose(found[1], jax.jit(run)(3.0, 2.0), rtol=1e-5)
    assert np.abs(found[0] - found[1]).max() > 1e-3


@pytest.mark.slow
def test_a_mesh_gives_what_a_single_device_gives():
    task = dx.data.quadratics(jax.random.key(5), 16, 3, 1.0, 1.0, condition=4.0)
    source = federation(1, 16, np.asarray(task.hessians), np.asarray(task.client_optima))
    algorithm = consensus(exact, RHO, 16, combine=l1, adapt=residual_balancing())
    state = algorithm.init(KEY, jnp.asarray(START))
    one, _ = dx.run(algorithm, state, source, rounds=6, key=KEY)
    eight, _ = dx.run(algorithm, state, source, rounds=6, key=KEY, mesh=dx.client_mesh())
    assert_trees_close(one.clients.memory, eight.clients.memory, rtol=1e-5, atol=1e-6)
    assert_trees_close(one.server.params, eight.server.params, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"minimise": 3}, "minimise must be"),
        ({"minimise": lambda x: x}, "minimise must be a function of 5 arg"),
        ({"penalty": 0.0}, "penalty must be a finite number in"),
        ({"clients": None}, "clients must be given where start is not"),
        ({"clients": 0}, "clients must be an integer >= 1"),
        ({"duals": "first"}, "duals must be"),
        ({"mirrored": True, "duals": "before"}, 'duals must be "after"'),
        ({"remember": True}, 'remember needs duals="before"'),
        ({"rate": 0.5}, "rate needs remember=True"),
        ({"combine": lambda mean: mean}, "combine must be a function of 3 arg"),
        ({"adapt": 2.0}, "adapt must be"),
        ({"stop": lambda: True}, "stop must be a function of 1 arg"),
        ({"view": 1}, "view must be"),
    ],
)
def test_bad_arguments_are_refused(options, message):
    given = {"minimise": exact, "penalty": 1.0, "clients": CLIENTS} | options
    with pytest.raises((TypeError, ValueError), match=message):
        consensus(**given)


def test_what_a_method_returns_is_looked_at():
    def nothing(assignment, own, nearby, data, index):
        return own.params

    def longer(assignment, own, nearby, data, index):
        return Minimised(jnp.zeros(4, own.params.dtype))

    for minimise, message in (
        (nothing, "must return a Minimised"),
        (longer, "params of Minimised"),
    ):
        algorithm = consensus(minimise, 1.0, CLIENTS)
        state = algorithm.init(KEY, jnp.asarray(START))
        with pytest.raises((TypeError, ValueError), match=message):
            jax.eval_shape(algorithm.step, state, ALL.draw(KEY, 0))
