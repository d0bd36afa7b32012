"""Consensus ADMM without a server: exact on sparse graphs, and a server's on the complete one."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from quadratic_rounds import CLIENTS, KEY, START, A, B, advance, federation
from tasks import assert_trees_close

import dflax as dx
from dflax.decentralized import consensus
from dflax.local import Minimised

RHO = 0.7
ALL = federation(1, CLIENTS)
SOME = federation(1)
MEDIAN = dx.gossip.by_rule(
    dx.topology.ring(CLIENTS), dx.gossip.aggregating(dx.aggregation.median())
)
OPTIMUM = np.linalg.solve(A.sum(0), np.einsum("nij,nj->i", A, B))


def exact(assignment, own, nearby, data, index):
    example = jax.tree.map(lambda leaf: leaf[0], data.fetch(assignment.minibatches[0]).inputs)
    a, b = (example[name].astype(own.params.dtype) for name in "Ab")
    shifted = a + nearby.penalty * jnp.eye(len(b), dtype=a.dtype)
    x = jnp.linalg.solve(shifted, a @ b + nearby.penalty * nearby.center)
    return Minimised(x.astype(own.params.dtype))


def ran(algorithm, source, rounds):
    with jax.enable_x64(True):
        found = jax.jit(functools.partial(advance, algorithm, rounds=rounds))(source)
        return jax.tree.map(np.asarray, found)


def test_rounds_on_a_ring_are_admm_with_a_dual_on_every_edge():
    """Copies z_ij of every edge with duals of their own, in float64 NumPy (Shi et al., section II)."""
    rounds, n = 6, CLIENTS
    edges = [(i, (i + 1) % n) for i in range(n)]
    penalty = RHO / 4  # each node meets two edges, each of which pulls by 2 penalty
    x = np.tile(START, (n, 1))
    middle = dict.fromkeys(edges, START)
    duals = {(e, i): np.zeros(3) for e in edges for i in e}
    for _ in range(rounds):
        for i in range(n):
            own = [e for e in edges if i in e]
            matrix = A[i] + sum(2 * penalty for _ in own) * np.eye(3)
            right = A[i] @ B[i] + sum(2 * penalty * middle[e] - duals[e, i] for e in own)
            x[i] = np.linalg.solve(matrix, right)
        for e in edges:
            middle[e] = (x[e[0]] + x[e[1]]) / 2
            for i in e:
                duals[e, i] = duals[e, i] + 2 * penalty * (x[i] - middle[e])
    neighbours = dx.gossip.slots(dx.topology.uniform(dx.topology.ring(n), self_weight=0.0))
    state, _ = ran(consensus(exact, RHO, neighbours), ALL, rounds)
    np.testing.assert_allclose(state.clients.memory.params, x, rtol=1e-6, atol=1e-6)
    own = np.stack([sum(duals[e, i] for e in edges if i in e) for i in range(n)])
    np.testing.assert_allclose(state.clients.memory.dual, own, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("source", [ALL, SOME], ids=["everyone", "some"])
def test_one_step_of_gossip_on_a_ring_reaches_the_optimum(source):
    state, metrics = ran(consensus(exact, RHO, dx.gossip.ring(CLIENTS)), source, 600)
    everywhere = np.tile(OPTIMUM, (CLIENTS, 1))
    np.testing.assert_allclose(state.clients.params, everywhere, atol=1e-5)
    np.testing.assert_allclose(np.asarray(state.clients.memory.dual).sum(0), 0, atol=1e-6)
    assert metrics["primal_residual"][-1] < 1e-9


def test_on_the_complete_graph_it_is_the_server_s():
    alone, _ = ran(consensus(exact, RHO, dx.gossip.complete(CLIENTS), own_weight=0.0), ALL, 5)
    server, _ = ran(dx.server.consensus(exact, RHO, CLIENTS), ALL, 5)
    assert_trees_close(alone.clients.memory, server.clients.memory, rtol=1e-6, atol=1e-7)
    np.testing.assert_allclose(alone.clients.params[2], server.server.params, rtol=1e-6)


def test_a_view_shares_a_part_of_the_variable():
    def minimise(assignment, own, nearby, data, index):
        found = exact(assignment, own._replace(params=own.params["x"]), nearby, data, index)
        return Minimised({"x": found.params, "rounds": own.params["rounds"] + 1})

    def start(models):
        return {"x": models, "rounds": jnp.zeros(CLIENTS)}, ()

    def run(view, start, minimise):
        mixer = dx.gossip.ring(CLIENTS)
        algorithm = consensus(minimise, RHO, mixer, start=start, view=view)
        return ran(algorithm, ALL, 4)[0]

    seen = run(lambda x: x["x"], start, minimise)
    plain = run(lambda x: x, None, exact)
    np.testing.assert_array_equal(seen.clients.params, plain.clients.params)
    np.testing.assert_array_equal(seen.clients.memory.params["rounds"], 4)


def test_penalties_and_own_weights_sweep_as_one_program():
    def run(rho, weight):
        algorithm = consensus(exact, rho, dx.gossip.ring(CLIENTS), own_weight=weight)
        return advance(algorithm, ALL)[0].clients.params

    points = jnp.asarray([0.3, 2.0]), jnp.asarray([0.5, 0.2])
    found = jax.jit(jax.vmap(run))(*points)
    np.testing.assert_allclose(found[1], jax.jit(run)(2.0, 0.2), rtol=1e-5)
    assert np.abs(found[0] - found[1]).max() > 1e-3


def test_a_mesh_gives_what_a_single_device_gives():
    task = dx.data.quadratics(jax.random.key(5), 16, 3, 1.0, 1.0, condition=4.0)
    source = federation(1, 16, np.asarray(task.hessians), np.asarray(task.client_optima))
    algorithm = consensus(exact, RHO, dx.gossip.ring(16))
    state = algorithm.init(KEY, jnp.asarray(START))
    one, _ = dx.run(algorithm, state, source, rounds=6, key=KEY)
    eight, _ = dx.run(algorithm, state, source, rounds=6, key=KEY, mesh=dx.client_mesh())
    assert_trees_close(one.clients.memory, eight.clients.memory, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"minimise": lambda x: x}, "minimise must be a function of 5"),
        ({"penalty": -1.0}, "penalty must be a finite number in"),
        ({"own_weight": 1.0}, "own_weight must be"),
        ({"view": 1}, "view must be"),
        ({"start": 1}, "start must be"),
        ({"mixer": MEDIAN}, "mean"),
    ],
)
def test_bad_arguments_are_refused(options, message):
    given = {"minimise": exact, "penalty": 1.0, "mixer": dx.gossip.ring(CLIENTS)} | options
    with pytest.raises((TypeError, ValueError), match=message):
        consensus(**given)
