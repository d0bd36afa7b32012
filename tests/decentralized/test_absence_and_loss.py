"""What absence and loss mean to every method without a server: found by walking the package."""

import functools
import inspect

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from tasks import assert_trees_equal

import dflax as dx
from dflax import channel, decentralized, gossip, topology
from dflax.data.dataset import Dataset
from dflax.decentralized import Client
from dflax.gossip import NodeEvents, poisson_stream, thinned
from dflax.local import Minimised
from dflax.local.convex.conjugate import least_squares_conjugate

KEY = jax.random.key(0)
N, D, ROWS, GONE = 6, 3, 4, 2
GENERATOR = np.random.default_rng(0)
DATA = Dataset(
    jnp.asarray(GENERATOR.normal(size=(N * ROWS, D)), jnp.float32),
    jnp.asarray(GENERATOR.normal(size=N * ROWS), jnp.float32),
)
DEALT = dx.data.from_indices(np.arange(N * ROWS).reshape(N, ROWS).tolist())
WHOLE = dx.Federation(DATA, DEALT, batch_size=ROWS, local_steps=1)
RING, PATH = gossip.ring(N), topology.path(N)
CONVEX = {"strong_convexity": 0.2, "smoothness": 8.0}
SGD = optax.sgd(0.1)
OTHERS = np.arange(N) != GONE


def squares(x, batch, key):
    value = jnp.mean(jnp.square(batch.inputs @ x - batch.labels))
    return value, {"loss": value}


def work(assignment, own, data, index):
    return Client(own.params * 0.9, own.memory), {"loss": own.params.sum()}


def work_on_heard(assignment, own, heard, data, index):
    return work(assignment, Client(heard, own.memory), data, index)


def nearest(assignment, own, nearby, data, index):
    """Half a step from the center along a gradient of the client's examples."""
    batch = data.fetch(assignment.minibatches[0])
    moved = jax.grad(lambda x: squares(x, batch, None)[0])(nearby.center)
    return Minimised(nearby.center - 0.1 * moved, metrics={"loss": batch.inputs.sum()})


def columns(params, batch, key):
    scores = batch.inputs @ params
    value = jnp.mean(jnp.square(scores - batch.labels[:, None]))
    return value, {"loss": value}


# Two classes, of which everyone has both.
CLASSES = Dataset(DATA.inputs, jnp.tile(jnp.arange(2), N * ROWS // 2).astype(jnp.int32), classes=2)
TESTS = gossip.class_tests(CLASSES, DEALT)
# What a method starts from, where that is no vector.
STARTS = {"bristle": jnp.ones((D, 2)) * jnp.array([1.0, -1.0])}
# Of every method of rounds: what makes it, with a channel or None.
ROUNDS = {
    "adapt_then_combine": lambda **o: decentralized.adapt_then_combine(work, RING, **o),
    "combine_then_adapt": lambda **o: decentralized.combine_then_adapt(work_on_heard, RING, **o),
    "bristle": lambda **o: decentralized.bristle(
        columns, SGD, topology.ring(N), lambda params, x: x @ params, TESTS, **o
    ),
    "adom_plus": lambda **o: decentralized.adom_plus(squares, PATH, **CONVEX, **o),
    "msda": lambda **o: decentralized.msda(least_squares_conjugate, PATH, **CONVEX, **o),
    "consensus": lambda **o: decentralized.consensus(nearest, 1.0, RING, **o),
    "dfedadmm": lambda **o: decentralized.dfedadmm(squares, SGD, RING, **o),
    "dfedadmm_sam": lambda **o: decentralized.dfedadmm_sam(squares, SGD, RING, **o),
    "dfedavg": lambda **o: decentralized.dfedavg(squares, SGD, RING, **o),
    "dfedsam": lambda **o: decentralized.dfedsam(squares, SGD, RING, **o),
    "dimat": lambda **o: decentralized.dimat(squares, SGD, topology.ring(N), None, **o),
    "dispfl": lambda **o: decentralized.dispfl(squares, SGD, RING, rounds=5, **o),
    "dpsgd": lambda **o: decentralized.dpsgd(squares, SGD, RING, **o),
    "dsgt": lambda **o: decentralized.dsgt(squares, 0.1, RING, **o),
    "gossip_learning": lambda **o: decentralized.gossip_learning(squares, SGD, N, **o),
    "modest": lambda **o: decentralized.modest(
        squares, SGD, clients=N, sample=3, aggregators=2, **o
    ),
    "sgp": lambda **o: decentralized.sgp(squares, SGD, topology.exponential(N), **o),
    "single_merging": lambda **o: decentralized.single_merging(squares, SGD, N, 1.0, **o),
}
EVENTS = {
    "continuized": (
        lambda: decentralized.continuized(least_squares_conjugate, PATH, **CONVEX),
        poisson_stream(decentralized.unit_rates(PATH), 40, seed=0, gradient_rate=0.0),
    ),
    "dadao": (
        lambda: decentralized.dadao(squares, topology.uniform_rates(PATH), **CONVEX),
        poisson_stream(topology.uniform_rates(PATH), 40, seed=0),
    ),
}
# What is counted is 0 where nothing happens; all else is a mean over clients.
COUNTED = ("models_sent", "clients_active", "models", "pings", "answers", "adverts", "takeovers")
# Of the simulated network and of what nodes believe; no means over clients.
OF_MODEST = {
    *("failed_pings", "failed_pings_upward", "waves", "lost", "disagreements", "view_size"),
    *("view_errors", "seconds", "sampled", "model_bytes", "view_bytes", "ping_bytes"),
}


def test_every_exported_method_is_looked_at():
    made = {
        name
        for name, value in vars(decentralized).items()
        if inspect.isfunction(value) and inspect.signature(value).return_annotation is dx.Algorithm
    }
    assert made == ROUNDS.keys() | EVENTS.keys()


@functools.cache
def begun(name, lossy=False):
    """The step, the state after two rounds of everyone, and a round, all of one compiled program."""
    algorithm = ROUNDS[name](**({"channel": channel.lossy(1.0)} if lossy else {}))
    step = jax.jit(algorithm.step)
    state = jax.jit(algorithm.init)(KEY, STARTS.get(name, jnp.ones(D)))
    for t in range(2):
        state, _ = step(state, reporting(t, np.ones(N)))
    return step, state


def reporting(t, present):
    drawn = WHOLE.draw(KEY, t)
    present = jnp.asarray(present, jnp.float32)
    return drawn._replace(reports=present, weights=drawn.weights * present)


def rows(tree, which):
    return jax.tree.map(lambda leaf: np.asarray(leaf)[which], tree)


def spoiled(state):
    """The state in which one client holds NaN."""

    def spoil(leaf):
        real = jnp.issubdtype(leaf.dtype, jnp.floating)
        return leaf.at[GONE].set(jnp.nan) if real else leaf

    return state._replace(clients=jax.tree.map(spoil, state.clients))


@pytest.mark.some(2)
@pytest.mark.parametrize("name", ROUNDS)
def test_where_nobody_reports_nothing_changes_and_nothing_is_measured(name):
    step, before = begun(name)
    after, metrics = step(before, reporting(2, np.zeros(N)))
    assert after.round == before.round + 1
    if name == "modest":
        # Simulated time goes on while pings remain without an answer.
        assert after.server.time > before.server.time
        before = before._replace(server=before.server._replace(time=after.server.time))
    assert_trees_equal(after._replace(round=before.round), before)
    assert "models_sent" in metrics
    for key, value in metrics.items():
        if key in COUNTED:
            assert value == 0, key
        elif not (name == "modest" and key in OF_MODEST):
            assert np.isnan(value), key


@pytest.mark.some(1)
@pytest.mark.parametrize("name", ROUNDS)
def test_who_is_absent_keeps_its_rows_and_is_not_heard(name):
    step, state = begun(name)
    before = spoiled(state)
    after, metrics = step(before, reporting(2, OTHERS))
    assert_trees_equal(rows(after.clients, GONE), rows(before.clients, GONE))
    everyone, _ = step(state, reporting(2, np.ones(N)))
    changed = [
        not np.array_equal(a, b)
        for a, b in zip(
            jax.tree.leaves(after.clients), jax.tree.leaves(everyone.clients), strict=True
        )
    ]
    assert any(changed)
    for leaf in jax.tree.leaves(rows(after.clients, OTHERS)):
        assert np.isfinite(leaf).all()
    for leaf in jax.tree.leaves(after.server):
        assert jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key) or np.isfinite(leaf).all()
    for key, value in metrics.items():
        assert np.isfinite(value).all(), key


@pytest.mark.some(2)
@pytest.mark.parametrize("name", ROUNDS)
def test_where_all_messages_are_lost_everybody_hears_itself_alone(name):
    step, state = begun(name, lossy=True)
    present = reporting(2, np.ones(N))
    alone, metrics = step(state, present)
    if name == "modest":
        trained = np.sum(np.asarray(metrics["sampled"]) < N)
        assert metrics["messages_lost"] == trained > 0
        assert metrics["models"] == 0
        assert metrics["lost"] == 1
        assert_trees_equal(alone.server.models, state.server.models)
        return
    assert metrics["messages_lost"] == N
    assert metrics["models_sent"] == 0
    beside, _ = step(spoiled(state), present)
    assert_trees_equal(rows(beside.clients, OTHERS), rows(alone.clients, OTHERS))
    moved = rows(alone.clients.params, OTHERS) != rows(state.clients.params, OTHERS)
    assert moved.any() or name == "msda"


def after_events(name, stream):
    make, _ = EVENTS[name]
    method = make()
    start = method.init(KEY, lambda key: jax.random.normal(key, (D,)))
    source = NodeEvents(DATA, DEALT, stream)
    count = len(stream.number)
    run = jax.jit(functools.partial(dx.rollout, method, rounds=count))
    return start, *run(start, source, KEY)


@pytest.mark.parametrize("name", EVENTS)
def test_in_a_thinned_stream_the_absent_keep_their_rows_and_the_lost_leaves_no_trace(name):
    stream = EVENTS[name][1]
    without = thinned(stream, present=OTHERS)
    start, end, metrics = after_events(name, without)
    assert_trees_equal(rows(end.clients, GONE), rows(start.clients, GONE))
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(end.clients))
    there = (np.asarray(stream.nodes) != GONE).all(1)
    np.testing.assert_array_equal(without.number, np.flatnonzero(there))
    both = metrics["gradients"][-1] + metrics["communications"][-1]
    assert both == there.sum() * (3 if name == "continuized" else 1)


@pytest.mark.parametrize("name", EVENTS)
def test_gaps_of_a_thinned_stream_count_from_events_that_took_place(name):
    stream = EVENTS[name][1]
    fewer = thinned(stream, loss=0.5, seed=1)
    assert 0 < len(fewer.number) < len(stream.number)
    last = np.zeros(N)
    for time, nodes, gaps, gradient in zip(
        *(np.asarray(c) for c in (fewer.time, fewer.nodes, fewer.gaps, fewer.gradient)),
        strict=True,
    ):
        for node, gap in list(zip(nodes, gaps, strict=True))[: 1 if gradient else 2]:
            np.testing.assert_allclose(gap, time - last[node], rtol=1e-4, atol=1e-5)
            last[node] = time
    assert_trees_equal(thinned(stream), stream)
    gradients = np.asarray(stream.gradient)
    if gradients.any():
        np.testing.assert_array_equal(thinned(stream, loss=1.0).number, np.flatnonzero(gradients))


def test_bad_streams_are_refused():
    stream = EVENTS["continuized"][1]
    with pytest.raises(ValueError, match="present and loss must leave at least one event"):
        thinned(stream, loss=1.0)
    with pytest.raises(ValueError, match="present must hold booleans of shape"):
        thinned(stream, present=np.ones(N - 1, bool))
    with pytest.raises(ValueError, match="present must hold booleans"):
        thinned(stream, present=np.ones(N))
    with pytest.raises(TypeError, match="stream must be of type Stream"):
        thinned(3)
    with pytest.raises(ValueError, match="loss must be"):
        thinned(stream, loss=1.5)


@pytest.mark.parametrize("name", ["adom_plus", "msda"])
def test_lost_messages_leave_the_sum_of_the_duals_at_zero(name):
    method = ROUNDS[name](channel=channel.lossy(0.3))
    run = jax.jit(functools.partial(dx.rollout, method, rounds=20))
    state, metrics = run(method.init(KEY, jnp.ones(D)), WHOLE, KEY)
    held = state.clients.memory
    for dual in (held.z, held.z_fast) if name == "adom_plus" else (held.dual, held.before):
        assert np.abs(dual).max() > 0
        np.testing.assert_allclose(dual.sum(0), 0.0, atol=1e-4 * np.abs(dual).max())
    assert metrics["messages_lost"].sum() > 0
