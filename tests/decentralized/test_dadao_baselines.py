import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import dflax as dx
from dflax.data.dataset import Dataset
from dflax.decentralized import adom_plus, continuized, gossip_steps, msda, unit_rates
from dflax.gossip import NodeEvents, independent_groups, poisson_stream
from dflax.local.convex.conjugate import least_squares_conjugate
from dflax.topology import uniform_rates

KEY = jax.random.key(0)
N, D, ROWS = 6, 2, 12
GENERATOR = np.random.default_rng(0)
INPUTS = GENERATOR.normal(size=(N, ROWS, D))
LABELS = GENERATOR.normal(size=(N, ROWS)) + 2.0
HESSIANS = 2 * np.einsum("nri,nrj->nij", INPUTS, INPUTS) / ROWS
MU, SMOOTH = np.linalg.eigvalsh(HESSIANS).min(), np.linalg.eigvalsh(HESSIANS).max()
OPTIMUM = np.linalg.lstsq(INPUTS.reshape(-1, D), LABELS.reshape(-1), rcond=None)[0]
CONSTANTS = {"strong_convexity": MU, "smoothness": SMOOTH}
GRAPH = dx.topology.path(N)


def loss(x, batch, key):
    value = jnp.mean(jnp.square(batch.inputs @ x - batch.labels))
    return value, {"loss": value}


def dealt():
    data = Dataset(jnp.asarray(INPUTS.reshape(-1, D)), jnp.asarray(LABELS.reshape(-1)))
    return data, dx.data.from_indices(np.arange(N * ROWS).reshape(N, ROWS).tolist())


def rounds(method, count):
    federation = dx.Federation(*dealt(), local_steps=1, batch_size=ROWS)
    state = method.init(KEY, jnp.zeros(D))
    return jax.jit(functools.partial(dx.rollout, method, rounds=count))(state, federation, KEY)


def error(state):
    return np.square(np.asarray(state.clients.params) - OPTIMUM).sum(1).mean()


def laplacian():
    return np.asarray(dx.topology.laplacian(GRAPH))


def gradients(x):
    residual = np.einsum("nri,ni->nr", INPUTS, x) - LABELS
    return 2 * np.einsum("nri,nr->ni", INPUTS, residual) / ROWS


@pytest.mark.parametrize("multi", [False, True])
def test_adom_plus_is_its_recursion(multi):
    values = np.linalg.eigvalsh(laplacian())
    chi = values[-1] / values[1]
    q = math.ceil(chi * math.log(2)) if multi else 1
    W = np.eye(N) - np.linalg.matrix_power(np.eye(N) - laplacian() / values[-1], q)
    chi = 2.0 if multi else chi
    mu, top = MU, SMOOTH
    tau1, tau2, nu = 1 / (np.sqrt(top / mu) + 0.5), np.sqrt(mu / top), mu / 2
    sigma2 = tau2 / (16 * chi)
    sigma1 = 1 / (1 / sigma2 + 0.5)
    eta, alpha, beta, delta = 1 / (top * tau2), mu / 2, 1 / (2 * top), 1 / (17 * top)
    gamma, theta, zeta = nu / (14 * sigma2 * chi**2), nu / (4 * sigma2), 0.5
    x = xf = y = yf = z = zf = M = np.zeros((N, D))
    for _ in range(5):
        xg, yg, zg = (
            s * a + (1 - s) * b for s, a, b in ((tau1, x, xf), (sigma1, y, yf), (sigma1, z, zf))
        )
        g = gradients(xg) - nu * xg
        system = np.array([[1 + eta * alpha, -eta], [theta, 1 + theta * beta]])
        right = np.stack(
            [x + eta * alpha * xg - eta * g, y + theta * beta * g - theta * (yg + zg) / nu]
        )
        new_x, new_y = np.einsum("ab,bnd->and", np.linalg.inv(system), right)
        p = gamma / nu * (yg + zg) + M
        z, M = z + gamma * delta * (zg - z) - W @ p, p - W @ p
        xf, yf, zf = xg + tau2 * (new_x - x), yg + sigma2 * (new_y - y), zg - zeta * W @ (yg + zg)
        x, y = new_x, new_y
    with jax.enable_x64(True):
        state, metrics = rounds(adom_plus(loss, GRAPH, multi_consensus=multi, **CONSTANTS), 5)
        np.testing.assert_allclose(state.clients.params, x, rtol=1e-9, atol=1e-12)
        duals = state.clients.memory
        for name, expected in zip(duals._fields, (xf, y, yf, z, zf, M), strict=True):
            np.testing.assert_allclose(
                getattr(duals, name), expected, rtol=1e-9, atol=1e-12, err_msg=name
            )
        # Two vectors travel over every edge, both ways.
        np.testing.assert_array_equal(metrics["models_sent"], 2 * q * 2 * (N - 1))


def test_both_forms_of_adom_plus_reach_the_optimum():
    with jax.enable_x64(True):
        plain, _ = rounds(adom_plus(loss, GRAPH, **CONSTANTS), 4000)
        several, _ = rounds(adom_plus(loss, GRAPH, multi_consensus=True, **CONSTANTS), 400)
        assert error(plain) < 1e-8
        assert error(several) < 1e-8


@pytest.mark.parametrize("graph", [GRAPH, dx.topology.complete(N)])
def test_msda_reaches_the_optimum_and_its_gossip_is_the_polynomial(graph):
    with jax.enable_x64(True):
        method = msda(least_squares_conjugate, graph, **CONSTANTS)
        state, _ = rounds(method, 60)
        assert error(state) < 1e-8
        one, _ = rounds(method, 1)
    # After one round dual = -(1 + m) eta (x - P_K x), by the recursion in its textbook form.
    x = np.linalg.solve(HESSIANS, 2 * np.einsum("nri,nr->ni", INPUTS, LABELS)[..., None] / ROWS)[
        ..., 0
    ]
    values = np.linalg.eigvalsh(np.asarray(dx.topology.laplacian(graph)) / len(graph.links))
    g = values[1] / values[-1]
    kappa = SMOOTH / MU
    if g > 1 - 1e-9:
        heard, c = np.broadcast_to(x.mean(0), x.shape), 0.0
    else:
        c2, c3 = (1 + g) / (1 - g), 2 / ((1 + g) * values[-1])
        B = np.eye(N) - c3 * np.asarray(dx.topology.laplacian(graph)) / len(graph.links)
        K = math.floor(1 / math.sqrt(g))
        assert gossip_steps(graph) == K
        a, b = (1.0, c2), (x, c2 * B @ x)
        for _ in range(K - 1):
            a, b = (a[1], 2 * c2 * a[1] - a[0]), (b[1], 2 * c2 * B @ b[1] - b[0])
        heard, c = b[1] / a[1], ((1 - math.sqrt(g)) / (1 + math.sqrt(g))) ** K
    eta = MU * (1 + c * c) / (1 + c) ** 2
    momentum = ((1 + c) * np.sqrt(kappa) - 1 + c) / ((1 + c) * np.sqrt(kappa) + 1 - c)
    np.testing.assert_allclose(
        one.clients.memory.dual, -(1 + momentum) * eta * (x - heard), rtol=1e-5, atol=1e-6
    )


def test_continuized_reaches_the_optimum_by_links_alone():
    with jax.enable_x64(True):
        stream = poisson_stream(unit_rates(GRAPH), 2500, seed=1, gradient_rate=0.0)
        assert not np.asarray(stream.gradient).any()
        method = continuized(least_squares_conjugate, GRAPH, **CONSTANTS)
        state = method.init(KEY, jnp.zeros(D))
        source = NodeEvents(*dealt(), stream)
        state, metrics = jax.jit(functools.partial(dx.rollout, method, rounds=2500))(
            state, source, KEY
        )
        assert error(state) < 1e-8
        # Dual variables are only ever exchanged: their sum stays 0.
        np.testing.assert_allclose(state.clients.duals.sum(axis=(0, 1)), 0.0, atol=1e-9)
        np.testing.assert_array_equal(metrics["gradients"], 2 * np.arange(1, 2501))
        assert float(state.server.time) == pytest.approx(2500, rel=0.1)


def test_the_conjugate_inverts_the_gradient():
    with jax.enable_x64(True):
        batch = dx.data.Batch(jnp.asarray(INPUTS[0]), jnp.asarray(LABELS[0]))
        y = jnp.array([0.3, -2.0])
        x = least_squares_conjugate(y, batch)
        np.testing.assert_allclose(jax.grad(lambda x: loss(x, batch, None)[0])(x), y, atol=1e-10)


@pytest.mark.slow
def test_bad_arguments_are_refused():
    split = dx.topology.from_edges(4, np.array([(0, 1), (2, 3)]), disconnected=True)
    for method in (adom_plus, msda, continuized):
        with pytest.raises(ValueError, match=r"^graph must be connected.*each component alone\.$"):
            method(least_squares_conjugate, split, **CONSTANTS)
    with pytest.raises(ValueError, match=r"^graph must be connected.*each component alone\.$"):
        unit_rates(split)
    with pytest.raises(ValueError, match="must be given an undirected graph"):
        msda(least_squares_conjugate, dx.topology.ring(N, directed=True), **CONSTANTS)
    for factory in (adom_plus, msda, continuized):
        with pytest.raises(ValueError, match="strong_convexity must be at most smoothness"):
            factory(loss, GRAPH, strong_convexity=3.0, smoothness=2.0)
    with pytest.raises(TypeError, match="conjugate must be a function"):
        continuized(None, GRAPH, **CONSTANTS)
    method = adom_plus(loss, dx.topology.path(4), **CONSTANTS)
    federation = dx.Federation(*dealt(), local_steps=1, batch_size=ROWS)
    with pytest.raises(
        ValueError, match=r"mixer must mix the federation's 6 clients, got one for 4.*the graph"
    ):
        method.step(method.init(KEY, jnp.zeros(D)), federation.draw(KEY, 0))
    groups = independent_groups(poisson_stream(unit_rates(GRAPH), 5, seed=0), N)
    method = continuized(least_squares_conjugate, GRAPH, **CONSTANTS)
    with pytest.raises(TypeError, match="the event's row must be of type Stream"):
        method.step(method.init(KEY, jnp.zeros(D)), NodeEvents(*dealt(), groups).draw(KEY, 0))
    others = [
        (unit_rates(dx.topology.star(N)), 0.0, f"got events of star of {N}"),
        (uniform_rates(GRAPH), 0.0, "1 communications and 0 gradients.*got events of"),
        (unit_rates(GRAPH), 1.0, "and 0 gradients a node .*and 1 gradients a node .*unit_rates"),
    ]
    for rates, gradients, message in others:
        stream = poisson_stream(rates, 5, seed=0, gradient_rate=gradients)
        with pytest.raises(ValueError, match=f"events must be drawn by the rates.*{message}"):
            method.step(method.init(KEY, jnp.zeros(D)), NodeEvents(*dealt(), stream).draw(KEY, 0))
