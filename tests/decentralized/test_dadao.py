import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.linalg import expm
from tasks import assert_trees_close, assert_trees_equal

import dflax as dx
from dflax.data.dataset import Dataset
from dflax.decentralized import dadao, synchronized
from dflax.decentralized.accelerated.flow import generator, momenta
from dflax.gossip import NodeEvents, independent_groups, poisson_stream
from dflax.topology import given_rates, optimal_rates, switching, uniform_rates

KEY = jax.random.key(0)
N, D = 6, 3
MU, SMOOTH = 1.0, 3.0
GENERATOR = np.random.default_rng(0)
CENTERS = GENERATOR.normal(size=(N, D))
# One curvature per node and coordinate, in [mu, L].
CURVATURES = GENERATOR.uniform(MU, SMOOTH, size=(N, D))
OPTIMUM = (CURVATURES * CENTERS).sum(0) / CURVATURES.sum(0)
RING = uniform_rates(dx.topology.ring(N))


def loss(x, batch, key):
    """f_i(x) = (1/2) sum_k a_ik (x_k - c_ik)^2, mean over the batch."""
    centers, curvatures = batch.inputs["c"], batch.inputs["a"]
    value = 0.5 * jnp.mean(jnp.sum(curvatures * jnp.square(x - centers), axis=-1))
    return value, {"loss": value}


def source(events, **options):
    inputs = {"c": jnp.asarray(CENTERS), "a": jnp.asarray(CURVATURES)}
    data = Dataset(inputs, jnp.zeros(N, jnp.int32))
    partition = dx.data.from_indices([np.array([i]) for i in range(N)])
    return NodeEvents(data, partition, events, **options)


def algorithm(rates=RING, **options):
    return dadao(loss, rates, strong_convexity=MU, smoothness=SMOOTH, **options)


def start(key):
    return jax.random.normal(key, (D,))


def advance(method, events, steps, state=None, **options):
    state = method.init(KEY, start) if state is None else state
    rollout = jax.jit(functools.partial(dx.rollout, method, rounds=steps))
    return rollout(state, source(events, **options), KEY)


def reference(stream, vectors, rates):
    """The event loop in NumPy, by matrix exponentials and absolute clocks."""
    nu, top = MU / 2, SMOOTH
    s = np.sqrt(nu / top)
    matrix, clock = np.asarray(generator(momenta(MU, SMOOTH))), np.zeros(N)
    vectors = vectors.copy()
    for time, gradient, nodes in zip(stream.time, stream.gradient, stream.nodes, strict=True):
        for k in set(nodes.tolist()):
            vectors[k] = expm(matrix * (time - clock[k])) @ vectors[k]
            clock[k] = time
        i, j = nodes
        if gradient:
            x = vectors[i, 0]
            g = CURVATURES[i] * (x - CENTERS[i]) - nu * x - vectors[i, 3]
            vectors[i, 0] -= g / (4 * top)
            vectors[i, 1] -= g / (4 * np.sqrt(top * nu))
            vectors[i, 3] += (s / 4 + 1) * g
        else:
            m = vectors[i, 2] + vectors[i, 4] - vectors[j, 2] - vectors[j, 4]
            for node, sign in ((i, -1), (j, 1)):
                vectors[node, 4] += sign * 0.5 * m
                vectors[node, 5] += sign * 2 * rates.chi_1 / s * m
    return vectors, clock


def test_it_is_the_event_loop_of_the_paper_and_groups_are_the_same_to_the_last_digits():
    with jax.enable_x64(True):
        stream = poisson_stream(RING, 400, seed=1)
        method = algorithm(running_mean=True)
        begun = method.init(KEY, start)
        state, metrics = advance(method, stream, 400)
        expected, clock = reference(
            jax.tree.map(np.asarray, stream), np.asarray(begun.clients.vectors), RING
        )
        np.testing.assert_allclose(state.clients.vectors, expected, rtol=1e-9, atol=1e-9)
        np.testing.assert_allclose(state.clients.clock, clock)
        np.testing.assert_array_equal(metrics["gradients"], np.cumsum(stream.gradient))
        assert state.server.gradients + state.server.communications == 400
        groups = independent_groups(stream, N, gradients=2, links=2)
        together, _ = advance(method, groups, len(groups.time))
        # Two programs: the compiler may round their products differently.
        assert_trees_close(together.clients, state.clients, rtol=1e-12, atol=1e-13)
        assert_trees_equal(together.server, state.server)
        # Jumps keep the sums of z and z~; they show at one common time.
        level = synchronized(state, strong_convexity=MU, smoothness=SMOOTH)
        np.testing.assert_allclose(level.clients.vectors[:, 4:].sum(0), 0.0, atol=1e-10)
        assert np.abs(np.asarray(state.clients.vectors)[:, 4:].sum(0)).max() > 1e-3


def test_the_saddle_point_is_a_fixed_point():
    with jax.enable_x64(True):
        nu = MU / 2
        y = CURVATURES * (OPTIMUM - CENTERS) - nu * OPTIMUM
        z = -nu * OPTIMUM - y
        x = np.broadcast_to(OPTIMUM, y.shape)
        saddle = np.stack([x, x, y, y, z, z], axis=1)
        method = algorithm()
        state = method.init(KEY, jnp.zeros(D, jnp.float64))
        state = state._replace(clients=state.clients._replace(vectors=jnp.asarray(saddle)))
        after, _ = advance(method, poisson_stream(RING, 400, seed=1), 400, state)
        np.testing.assert_allclose(after.clients.vectors, saddle, atol=1e-10)


@pytest.mark.parametrize("rule", [uniform_rates, optimal_rates])
def test_the_error_falls_faster_than_the_bound(rule):
    rates = rule(dx.topology.path(N))
    with jax.enable_x64(True):
        stream = poisson_stream(rates, 4000, seed=2)
        method = algorithm(rates)
        state, _ = advance(method, stream, 4000)
        error = np.mean(np.square(np.asarray(state.clients.params) - OPTIMUM).sum(1))
        first = np.asarray(method.init(KEY, start).clients.params)
        begun = np.mean(np.square(first - OPTIMUM).sum(1))
        rate = np.sqrt(MU / SMOOTH) / (8 * np.sqrt(2))
        assert error < begun * np.exp(-rate * float(stream.time[-1]))
        assert float(dx.evaluation.consensus(state)["consensus_distance"]) <= error + 1e-12


@pytest.mark.parametrize(("mu", "smooth", "abscissa"), [(1.17, 2.9, -0.0775), (1.0, 1.0, -0.1291)])
def test_one_node_follows_its_linear_differential_equation(mu, smooth, abscissa):
    """Of E[x, x~, y, y~] for f = (mu/2) x^2: the flow plus the rate-1 jumps of one node."""
    with jax.enable_x64(True):
        constants = momenta(mu, smooth)
        flow = np.asarray(generator(constants))[:4, :4]
        slope = np.array([mu - mu / 2, 0.0, 0.0, -1.0])
        jumps = [-constants.gamma, -constants.gamma_tilde, 0.0, constants.delta]
        mean = flow + np.outer(np.array([float(v) for v in jumps]), slope)
        assert np.linalg.eigvals(mean).real.max() == pytest.approx(abscissa, abs=1e-4)


@pytest.mark.slow
def test_changing_graphs_stochastic_gradients_and_running_means():
    halves = [
        dx.topology.from_edges(N, np.array(edges), disconnected=True)
        for edges in ([(0, 1), (2, 3), (4, 5)], [(1, 2), (3, 4), (5, 0)])
    ]
    rates = dx.topology.switching_graphs(halves, dwell=0.2)
    noisy = np.repeat(CENTERS, 8, axis=0) + GENERATOR.normal(size=(8 * N, D))
    noisy -= np.repeat(noisy.reshape(N, 8, D).mean(1) - CENTERS, 8, axis=0)
    inputs = {"c": jnp.asarray(noisy, jnp.float32), "a": jnp.ones((8 * N, D))}
    data = Dataset(inputs, jnp.zeros(8 * N, jnp.int32))
    partition = dx.data.from_indices(np.arange(8 * N).reshape(N, 8).tolist())
    events = NodeEvents(data, partition, poisson_stream(rates, 6000, seed=3), batch_size=2)
    method = dadao(loss, rates, strong_convexity=1.0, smoothness=1.0, running_mean=True)
    rollout = jax.jit(functools.partial(dx.rollout, method, rounds=6000))
    state, _ = rollout(method.init(KEY, jnp.zeros(D)), events, KEY)
    target = CENTERS.mean(0)
    last = np.square(np.asarray(state.clients.params) - target).sum(1).mean()
    mean = np.square(np.asarray(state.clients.mean) - target).sum(1).mean()
    assert mean < 0.02
    assert mean < last / 3
    assert int(state.clients.taken.sum()) == int(state.server.gradients)


@pytest.mark.parametrize("grouped", [False, True])
@pytest.mark.parametrize(
    ("own", "given", "message"),
    [
        (
            uniform_rates(dx.topology.star(N)),
            RING,
            "star of 6 with 6 nodes.*got events of ring of 6",
        ),
        (
            uniform_rates(dx.topology.ring(5)),
            RING,
            "ring of 5 with 5 nodes.*got events of ring of 6",
        ),
        (RING, given_rates(dx.topology.ring(N), 1.0), "got events of ring of 6 .*, 6 commun"),
        (RING, switching([RING, RING], dwell=1.0), "rates of the method"),
    ],
)
def test_events_of_other_rates_are_refused(own, given, message, grouped):
    stream = poisson_stream(given, 20, seed=0)
    events = independent_groups(stream, N) if grouped else stream
    method = algorithm(own)
    state = method.init(KEY, jnp.zeros(D))
    with pytest.raises(ValueError, match=f"events must be drawn by .*{message}"):
        dx.rollout(method, state, source(events), KEY, 2)


def test_events_without_their_gradients_are_refused():
    stream = poisson_stream(RING, 20, seed=0, gradient_rate=0.0)
    method = algorithm()
    with pytest.raises(ValueError, match=r"and 1 gradients a node.*and 0 gradients a node.*seed=0"):
        dx.rollout(method, method.init(KEY, jnp.zeros(D)), source(stream), KEY, 2)


def test_rates_that_differ_by_rounding_are_the_same():
    near = dataclasses.replace(RING, rates=tuple(rate * (1 + 1e-12) for rate in RING.rates))
    state, _ = advance(algorithm(near), poisson_stream(RING, 20, seed=0), 20)
    assert state.round == 20


@pytest.mark.slow
def test_models_are_pytrees_and_runs_are_taken_up_again():
    def tree_loss(params, batch, key):
        return loss(jnp.concatenate([params["a"], params["b"][None]]), batch, key)

    stream = poisson_stream(RING, 60, seed=4)
    whole = algorithm()
    split = dadao(tree_loss, RING, strong_convexity=MU, smoothness=SMOOTH)
    x = jnp.array([1.0, -1.0, 0.5])
    one, _ = advance(whole, stream, 60, whole.init(KEY, x))
    tree, _ = advance(split, stream, 60, split.init(KEY, {"a": x[:2], "b": x[2]}))
    found = tree.clients.params
    assert_trees_close(
        jnp.concatenate([found["a"], found["b"][:, None]], 1), one.clients.params, rtol=1e-4
    )
    half = jax.jit(functools.partial(dx.rollout, whole, rounds=30))
    halfway, _ = half(whole.init(KEY, x), source(stream), KEY)
    later, _ = half(halfway, source(stream), KEY, start=halfway.round)
    assert_trees_close(later.clients.params, one.clients.params, rtol=1e-5)
    assert later.round == 60


def test_rates_and_constants_sweep_as_one_program():
    stream = source(poisson_stream(RING, 100, seed=5))

    def final(smooth):
        method = dadao(loss, RING, strong_convexity=MU, smoothness=smooth)
        return dx.rollout(method, method.init(KEY, jnp.zeros(D)), stream, KEY, 100)[
            0
        ].clients.params

    swept = jax.jit(jax.vmap(final))(jnp.array([3.0, 4.0]))
    for row, smooth in enumerate((3.0, 4.0)):
        np.testing.assert_allclose(swept[row], jax.jit(final)(smooth), rtol=1e-3, atol=1e-4)


def test_bad_arguments_are_refused():
    slow = given_rates(dx.topology.ring(N), 0.5 * RING.rates[0][0])
    with pytest.raises(
        ValueError, match=r"rates must have 2 chi_1 chi_2 <= 1, got .* rates.scaled"
    ):
        algorithm(slow)
    algorithm(slow.scaled())
    with pytest.raises(ValueError, match="strong_convexity must be at most smoothness, got 2 > 1"):
        dadao(loss, RING, strong_convexity=2.0, smoothness=1.0)
    with pytest.raises(ValueError, match="strong_convexity must be a finite number"):
        dadao(loss, RING, strong_convexity=0.0, smoothness=1.0)
    with pytest.raises(TypeError, match="rates must be of type GossipRates"):
        algorithm(dx.topology.ring(N))
    with pytest.raises(TypeError, match="running_mean must be True or False"):
        algorithm(running_mean=1)
    method = algorithm()
    state = method.init(KEY, jnp.zeros(D))
    with pytest.raises(TypeError, match="the event must be of type NodeEvent"):
        method.step(state, None)
    with pytest.raises(ValueError, match="running_mean must be True for a mean"):
        _ = state.clients.mean


@pytest.mark.slow
@pytest.mark.some(1)
@pytest.mark.parametrize("grouped", [False, True])
def test_events_send_rows_alone_and_are_the_same_on_eight_devices(grouped):
    nodes, width = 8, 40
    rates = uniform_rates(dx.topology.ring(nodes))
    events = poisson_stream(rates, 24, seed=3)
    events = independent_groups(events, nodes, gradients=2, links=2) if grouped else events
    draw = np.random.default_rng(2)
    inputs = {
        "c": jnp.asarray(draw.normal(size=(nodes, width)), jnp.float32),
        "a": jnp.asarray(draw.uniform(MU, SMOOTH, (nodes, width)), jnp.float32),
    }
    partition = dx.data.from_indices([np.array([i]) for i in range(nodes)])
    given = NodeEvents(Dataset(inputs, jnp.zeros(nodes, jnp.int32)), partition, events)
    method = algorithm(rates, running_mean=True)
    state = method.init(KEY, lambda key: jax.random.normal(key, (width,)))
    rollout = jax.jit(functools.partial(dx.rollout, method, rounds=len(events.time)))
    alone, _ = rollout(state, given, KEY)
    mesh = dx.client_mesh()
    with jax.set_mesh(mesh):
        placed = dx.mesh.shard(state, mesh), dx.mesh.replicate_source(given, mesh), KEY
        spread, _ = rollout(*placed)
    assert_trees_close(spread.clients, alone.clients, rtol=1e-5, atol=1e-6)
    cost = dx.profile.round(method, state, given, mesh=mesh)
    # One all-reduce of a vector for each of at most two links; gradients send nothing.
    vector = 2 * 4 * width * 7 / 8
    assert 0 < cost.sent_bytes <= (2 if grouped else 1) * vector + 128
