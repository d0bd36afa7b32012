import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from tasks import assert_trees_close, assert_trees_equal, half_square, quadratics

import dflax as dx
from dflax import evaluation, participation, topology
from dflax.decentralized import Dual, dfedadmm, dfedadmm_sam, dfedavg, dfedsam, mean_dual

KEY = jax.random.key(0)
N, D = 6, 2
RNG = np.random.default_rng(0)
FACTORS = RNG.normal(size=(N, D, D))
A = np.einsum("nij,nkj->nik", FACTORS, FACTORS) / D + 0.3 * np.eye(D)
B = RNG.normal(size=(N, D))
W = topology.metropolis(topology.ring(N)).dense()
OPTIMUM = np.linalg.solve(A.sum(0), np.einsum("nij,nj->i", A, B))
START = jnp.asarray([1.0, -1.0])


def curved(params, batch, key):
    """(1/2) (x - b)' A (x - b); an example is A and b of one client."""
    rows = batch.inputs
    matrix, center = rows[:, : D * D].reshape(-1, D, D), rows[:, D * D :]
    away = params - center
    loss = 0.5 * jnp.mean(jnp.einsum("bi,bij,bj->b", away, matrix, away))
    return loss, {"loss": loss}


def federation(steps, **options):
    inputs = jnp.asarray(np.concatenate([A.reshape(N, -1), B], axis=1), jnp.float32)
    owned = dx.data.from_indices([np.array([i]) for i in range(N)])
    data = dx.data.Dataset(inputs, jnp.zeros(N, jnp.int32))
    return dx.Federation(data, owned, batch_size=1, local_steps=steps, **options)


def advance(algorithm, source, rounds, params=START):
    return jax.jit(functools.partial(dx.rollout, algorithm, rounds=rounds))(
        algorithm.init(KEY, params), source, KEY
    )


def slopes(x):
    return np.einsum("nij,nj->ni", A, x - B)


def closed_form(x, g, rate, penalty, steps, message, matrix, active):
    """The round from its gradients alone, in powers of a = 1 - rate / penalty."""
    y, seen = x, []
    for _ in range(steps):
        seen.append(slopes(y))
        y = y - rate * (seen[-1] - g + (y - x) / penalty)
    a = 1 - rate / penalty
    shares = [rate / penalty * a ** (steps - 1 - k) for k in range(steps)]
    total = sum(share * q for share, q in zip(shares, seen, strict=True))
    new = (1 - sum(shares)) * g + total
    np.testing.assert_allclose(y - x, penalty * (sum(shares) * g - total), atol=1e-12)
    sent = x - penalty * (2 * new - g if message is Dual.NEW else new)
    masked = np.where(np.outer(active, active), matrix, 0)
    np.fill_diagonal(masked, 0)
    masked += np.diag(1 - masked.sum(1))
    mine = active[:, None]
    return masked @ np.where(mine, sent, x), np.where(mine, new, g)


@pytest.mark.parametrize("message", list(Dual))
def test_a_round_is_its_closed_form_and_absent_clients_stay(message):
    rate, penalty, steps = 0.1, 0.7, 3
    source = federation(steps, participation=participation.uniform(4))
    algorithm = dfedadmm(
        curved, optax.sgd(rate), dx.gossip.ring(N), penalty=penalty, message=message
    )
    state = algorithm.init(KEY, lambda key: jax.random.normal(key, (D,)))
    x, g = np.asarray(state.clients.params, np.float64), np.zeros((N, D))
    step = jax.jit(algorithm.step)
    for t in range(5):
        drawn = source.draw(KEY, t)
        active = np.isin(np.arange(N), np.asarray(drawn.cohort))
        before = state.clients
        state, metrics = step(state, drawn)
        moved = x
        x, g = closed_form(x, g, rate, penalty, steps, message, W, active)
        np.testing.assert_allclose(state.clients.params, x, rtol=1e-5, atol=2e-6)
        np.testing.assert_allclose(state.clients.memory, g, rtol=1e-5, atol=2e-6)
        lengths = np.linalg.norm(g, axis=1)[active]
        np.testing.assert_allclose(metrics["dual_norm"], lengths.mean(), rtol=1e-5)
        assert not np.allclose(moved[active], x[active])
        for kept, old in zip(state.clients[:2], before[:2], strict=True):
            assert_trees_equal(kept[~active], old[~active])


def fixed_point(matrix, penalty):
    """(I - W + lambda W A) x = lambda W A b, whatever the rate and the number of steps."""
    wide = np.kron(matrix, np.eye(D))
    blocks = np.zeros((N * D, N * D))
    for i in range(N):
        blocks[D * i : D * (i + 1), D * i : D * (i + 1)] = A[i]
    left = np.eye(N * D) - wide + penalty * wide @ blocks
    return np.linalg.solve(left, penalty * wide @ blocks @ B.reshape(-1)).reshape(N, D)


def swept(steps, message, penalties, mixer, rounds, rate=0.04):
    source = federation(steps)

    def final(penalty):
        algorithm = dfedadmm(curved, optax.sgd(rate), mixer, penalty=penalty, message=message)
        state, _ = dx.rollout(algorithm, algorithm.init(KEY, START), source, KEY, rounds)
        return state.clients.params, state.clients.memory, mean_dual(state)["mean_dual_norm"]

    return jax.jit(jax.vmap(final))(jnp.asarray(penalties))


@pytest.mark.parametrize("message", list(Dual))
def test_the_fixed_point_moves_neither_with_the_steps_nor_with_the_rate(message):
    penalties = [0.1, 0.3]
    ends = [
        swept(steps, message, penalties, dx.gossip.ring(N), rounds, rate)
        for steps, rounds, rate in ((1, 3000, 0.04), (7, 1500, 0.02))
    ]
    for models, duals, mean in ends:
        for row, penalty in enumerate(penalties):
            expected = fixed_point(W, penalty)
            np.testing.assert_allclose(models[row], expected, atol=2e-5)
            np.testing.assert_allclose(duals[row], slopes(expected), atol=1e-4)
            np.testing.assert_allclose(slopes(expected).sum(0), 0, atol=1e-12)
        np.testing.assert_allclose(mean, 0, atol=1e-5)
    distances = [evaluation.consensus_distance(models[1]) for models, *_ in ends]
    np.testing.assert_allclose(distances[0], distances[1], rtol=1e-4)


def test_local_steps_bias_dfedavg():
    def distance(steps):
        algorithm = dfedavg(curved, optax.sgd(0.04), dx.gossip.ring(N))
        state, _ = advance(algorithm, federation(steps), 500)
        return float(evaluation.consensus_distance(state.clients.params))

    assert distance(7) > 10 * distance(1)


def test_on_the_complete_graph_everyone_ends_at_the_optimum():
    models, duals, _ = swept(5, Dual.NEW, [0.3], dx.gossip.complete(N), 1000)
    np.testing.assert_allclose(models[0], np.tile(OPTIMUM, (N, 1)), atol=1e-5)
    np.testing.assert_allclose(duals[0], slopes(np.tile(OPTIMUM, (N, 1))), atol=1e-4)


@pytest.mark.parametrize("rho", [0.0, 0.2])
def test_on_the_complete_graph_it_is_fedspeed_with_everyone(rho):
    rate, penalty = optax.sgd(0.1), 2.0
    mixer = dx.gossip.mixer(topology.complete(N))
    spread, metrics = advance(
        dfedadmm_sam(curved, rate, mixer, radius=rho, penalty=penalty), federation(4), 6
    )
    server = dx.server.fedspeed(curved, rate, N, pull=1 / penalty, radius=rho)
    central, _ = advance(server, federation(4, weights=jnp.ones(N)), 6)
    for client in range(N):
        np.testing.assert_allclose(
            spread.clients.params[client], central.server.params, rtol=1e-4, atol=1e-5
        )
    assert np.abs(central.server.params - START).max() > 0.1
    assert metrics["drift"][-1] > 0.01


def test_alone_every_client_solves_its_own_problem():
    models, duals, _ = swept(5, Dual.NEW, [0.3], dx.gossip.identity(N), 1500)
    np.testing.assert_allclose(models[0], B, atol=1e-4)
    np.testing.assert_allclose(duals[0], 0, atol=1e-4)


@pytest.mark.parametrize("message", list(Dual))
def test_two_clients_by_hand(message):
    data = dx.data.Dataset(jnp.asarray([[1.0], [-1.0]]), jnp.zeros(2, jnp.int32))
    pair = dx.data.from_indices([np.array([0]), np.array([1])])
    source = dx.Federation(data, pair, batch_size=1, local_steps=1)
    mixer = dx.gossip.mixer(np.array([[0.75, 0.25], [0.25, 0.75]]))
    algorithm = dfedadmm(half_square, optax.sgd(0.1), mixer, penalty=1.0, message=message)
    state, _ = advance(algorithm, source, 1, jnp.zeros(1))
    reached = 0.1 if message is Dual.NEW else 0.05
    np.testing.assert_allclose(state.clients.params[:, 0], [reached, -reached], rtol=1e-6)
    np.testing.assert_allclose(state.clients.memory[:, 0], [-0.1, 0.1], rtol=1e-6)
    state, _ = advance(algorithm, source, 300, jnp.zeros(1))
    np.testing.assert_allclose(state.clients.params[:, 0], [0.5, -0.5], rtol=1e-5)


@pytest.mark.parametrize("steps", [3])
def test_without_dual_and_penalty_it_is_dfedavg_and_dfedsam(steps):
    """In the first round g = 0, and a message with the old dual does not hold the new one."""
    ring, rate = dx.gossip.ring(N), optax.sgd(0.1)
    start = jax.random.normal(KEY, (D,))
    free = {"penalty": 1e8, "message": Dual.OLD}
    for admm, plain in (
        (dfedadmm(curved, rate, ring, **free), dfedavg(curved, rate, ring)),
        (
            dfedadmm_sam(curved, rate, ring, radius=0.2, **free),
            dfedsam(curved, rate, ring, radius=0.2),
        ),
    ):
        first, _ = advance(admm, federation(steps), 1, start)
        other, _ = advance(plain, federation(steps), 1, start)
        assert_trees_close(first.clients.params, other.clients.params, rtol=1e-6, atol=1e-6)


def test_mixing_keeps_the_mean_of_the_messages():
    algorithm = dfedadmm(curved, optax.sgd(0.1), dx.gossip.exponential(N), penalty=0.5)
    alone = dfedadmm(curved, optax.sgd(0.1), dx.gossip.identity(N), penalty=0.5)
    state, _ = advance(algorithm, federation(2), 4)
    drawn = federation(2).draw(KEY, 4)
    mixed, sent = (jax.jit(a.step)(state, drawn)[0] for a in (algorithm, alone))
    np.testing.assert_allclose(
        mixed.clients.params.mean(0), sent.clients.params.mean(0), rtol=1e-5, atol=1e-6
    )


@pytest.mark.slow
def test_digits_on_a_ring():
    data = dx.data.digits()
    partition = dx.data.dirichlet(np.asarray(data.labels), 8, 0.3, seed=0)
    source = dx.Federation(data, partition, batch_size=16, local_steps=10)
    model = dx.models.MLP((), classes=10)
    loss = dx.losses.classification(model.apply)
    params = model.init(KEY, data.example)["params"]
    measure = evaluation.mean_model(evaluation.on(loss, data.test))
    algorithm = dfedadmm_sam(loss, optax.sgd(0.1), dx.gossip.ring(8), radius=0.05)
    state, metrics = advance(algorithm, source, 25, params)
    assert measure(state)["mean_model_accuracy"] > 0.88
    assert metrics["drift"].shape == (25,)


@pytest.mark.slow
def test_eight_devices_train_the_same_models():
    source = quadratics(16, 3).federation(2, participation=participation.uniform(8))
    algorithm = dfedadmm(half_square, optax.sgd(0.1), dx.gossip.ring(16))
    state = algorithm.init(KEY, jnp.ones(3))
    rounds = jax.jit(functools.partial(dx.rollout, algorithm, rounds=4))
    alone = rounds(state, source, KEY)
    mesh = dx.client_mesh()
    with jax.set_mesh(mesh):
        dealt = rounds(dx.mesh.shard(state, mesh), source, KEY)
    assert_trees_close(alone, dealt, rtol=1e-5, atol=1e-6)


def test_bad_arguments_are_refused():
    ring, rate = dx.gossip.ring(N), optax.sgd(0.1)
    with pytest.raises(ValueError, match=r"penalty must be .* in \(0, inf\), got 0"):
        dfedadmm(curved, rate, ring, penalty=0.0)
    with pytest.raises(ValueError, match=r"1 / penalty must be so small that the local rate"):
        dfedadmm(curved, rate, ring, penalty=0.1)
    with pytest.raises(TypeError, match=r"message must be of type Dual, not str.*Dual.NEW"):
        dfedadmm(curved, rate, ring, message="new")
    with pytest.raises(ValueError, match=r"mixer must keep the mean of what DFedADMM mixes"):
        dfedadmm(curved, rate, dx.gossip.random_neighbours(N, 2))
    with pytest.raises(TypeError, match="mixer must be a Mixer"):
        dfedadmm(curved, rate, topology.ring(N))
    with pytest.raises(TypeError, match="optimizer must be an optax optimiser"):
        dfedadmm(curved, 0.1, ring)
    with pytest.raises(ValueError, match=r"radius must be .*got -0.1"):
        dfedadmm_sam(curved, rate, ring, radius=-0.1)
