import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import PartitionSpec
from tasks import assert_trees_close, assert_trees_equal, half_square, quadratics

import dflax as dx
from dflax import participation, topology
from dflax.decentralized import Client, adapt_then_combine, combine_then_adapt

KEY = jax.random.key(0)
N = 8
TASK = quadratics(N)
ONES = jnp.ones(3)
SOLVE = dx.local.solver(half_square, optax.sgd(0.5))
W = topology.metropolis(topology.ring(N)).dense()


def models(key):
    return jax.random.normal(key, (3,))


def start(key, stacked):
    return {"count": jnp.zeros(N), "last": stacked}


def work(assignment, own, data, index):
    solution = SOLVE(dx.local.Subproblem(), own.params, assignment, data, index=index)
    memory = {"count": own.memory["count"] + 1, "last": own.params}
    return Client(solution.params, memory), {"count": own.memory["count"]}


def two_trees(before, after, index):
    return {"model": after.params, "count": after.memory["count"]}


def hear(before, after, heard, index):
    return Client(heard["model"] + 0.1 * before.params, after.memory | {"count": heard["count"]})


def counting(mixer=None, **options):
    """Mixes a model and a number; remembers the model before the work."""
    mixer = dx.gossip.ring(N) if mixer is None else mixer
    return adapt_then_combine(work, mixer, start=start, message=two_trees, hear=hear, **options)


def counting_heard(**options):
    """The same work on what was heard."""

    def after_mixing(assignment, own, heard, data, index):
        mixed = Client(heard["model"], own.memory | {"count": heard["count"]})
        return work(assignment, mixed, data, index)

    return combine_then_adapt(
        after_mixing,
        dx.gossip.ring(N),
        start=start,
        message=lambda own, index: two_trees(own, own, index),
        **options,
    )


def masked(active):
    matrix = np.where(np.outer(active, active), W, 0.0)
    np.fill_diagonal(matrix, 0)
    return matrix + np.diag(1 - matrix.sum(1))


def recursion(combine_first, x, count, last, active):
    mix = masked(active)
    if combine_first:
        y, c = mix @ x, mix @ count
        new = (y + 0.5 * (TASK.centers - y), c + 1, y)
    else:
        y, c = x + 0.5 * (TASK.centers - x), count + 1
        y, c = np.where(active[:, None], y, x), np.where(active, c, count)
        new = (mix @ y + 0.1 * x, mix @ c, x)
    return [
        np.where(active.reshape(-1, *[1] * (a.ndim - 1)), a, b)
        for a, b in zip(new, (x, count, last), strict=True)
    ]


@pytest.mark.parametrize("combine_first", [False, True])
def test_memories_and_two_mixed_trees_follow_their_recursion(combine_first):
    rule = participation.dropout(participation.uniform(5), 0.3)
    federation = TASK.federation(participation=rule)
    algorithm = counting_heard() if combine_first else counting()
    state = algorithm.init(KEY, models)
    x = np.asarray(state.clients.params, np.float64)
    count, last = np.zeros(N), x
    step = jax.jit(algorithm.step)
    for t in range(5):
        drawn = federation.draw(KEY, t)
        present = np.asarray(drawn.cohort)[np.asarray(drawn.weights) > 0]
        active = np.isin(np.arange(N), present)
        before = state.clients
        state, metrics = step(state, drawn)
        x, count, last = recursion(combine_first, x, count, last, active)
        np.testing.assert_allclose(state.clients.params, x, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(state.clients.memory["count"], count, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(state.clients.memory["last"], last, rtol=1e-5, atol=1e-6)
        assert metrics["clients_active"] == active.sum() < N
        absent = np.flatnonzero(~active)
        assert_trees_equal(
            jax.tree.map(lambda leaf: leaf[absent], state.clients),  # noqa: B023
            jax.tree.map(lambda leaf: leaf[absent], before),  # noqa: B023
        )


def test_a_client_whose_message_is_lost_hears_itself():
    lost = counting(channel=dx.channel.lossy(1.0))
    alone = counting(dx.gossip.identity(N))
    rounds = [
        jax.jit(functools.partial(dx.rollout, a, rounds=3))(
            a.init(KEY, models), TASK.federation(), KEY
        )[0].clients
        for a in (lost, alone)
    ]
    assert_trees_close(rounds[0].params, rounds[1].params, rtol=1e-6, atol=1e-6)
    assert_trees_equal(rounds[0].memory["count"], rounds[1].memory["count"])


@pytest.mark.slow
@pytest.mark.some(2)
@pytest.mark.parametrize(
    "algorithm",
    [counting(), counting_heard(), counting(dx.gossip.push_sum(topology.exponential(N)))],
    ids=["adapt first", "combine first", "push-sum"],
)
def test_on_devices_as_without(algorithm):
    federation = TASK.federation(participation=participation.uniform(4))
    state = algorithm.init(KEY, models)
    mesh = dx.client_mesh()
    for leaf in jax.tree.leaves(dx.mesh.state_sharding(state, mesh).clients):
        assert leaf.spec[0] == "clients"
    rounds = jax.jit(functools.partial(dx.rollout, algorithm, rounds=3))
    alone = rounds(state, federation, KEY)
    with jax.set_mesh(mesh):
        dealt = rounds(dx.mesh.shard(state, mesh), federation, KEY)
    assert_trees_close(alone, dealt, rtol=1e-5, atol=1e-5)
    assert dealt[0].clients.params.sharding.spec == PartitionSpec("clients")


def test_push_sums_own_memory_stays_with_absent_clients():
    mixer = dx.gossip.alternate(
        [dx.gossip.push_sum(topology.exponential(N), steps=2), dx.gossip.ring(N)]
    )
    algorithm = counting(mixer)
    federation = TASK.federation(participation=participation.uniform(3))
    state = algorithm.init(KEY, models)
    rows, before = state.clients.mixer, state
    assert {leaf.shape[0] for leaf in jax.tree.leaves(rows)} == {N}
    step = jax.jit(algorithm.step)
    for t in range(3):
        drawn = federation.draw(KEY, t)
        state, before = step(state, drawn)[0], state
    absent = np.setdiff1d(np.arange(N), np.asarray(drawn.cohort))
    kept, old = (jax.tree.map(lambda leaf: leaf[absent], s.clients.mixer) for s in (state, before))
    assert any(np.abs(leaf).max() > 0 for leaf in jax.tree.leaves(kept))
    assert_trees_equal(kept, old)


def test_what_is_given_to_init_reaches_the_start():
    algorithm = adapt_then_combine(
        lambda *a: None, dx.gossip.ring(N), start=lambda key, models, extra: extra
    )
    assert_trees_equal(algorithm.init(KEY, ONES, jnp.arange(N)).clients.memory, np.arange(N))
    with pytest.raises(
        ValueError, match="what start returns, the clients' memory, must have a lead"
    ):
        algorithm.init(KEY, ONES, jnp.arange(3))


@pytest.mark.parametrize("make", [adapt_then_combine, combine_then_adapt])
def test_bad_arguments_are_refused(make):
    def work(*given):
        return given

    with pytest.raises(TypeError, match=r"mixer must be a Mixer.*dflax.gossip.ring"):
        make(work, np.eye(N))
    with pytest.raises(TypeError, match="channel must be of type Channel"):
        make(work, dx.gossip.ring(N), channel="lossy")
    with pytest.raises(ValueError, match="at_once must be an integer >= 1"):
        make(work, dx.gossip.ring(N), at_once=0)
