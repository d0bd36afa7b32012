"""Federations of agents on a bad day: lost messages, rounds in which nobody reports, an agent of NaN."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from corridors import target
from tasks import assert_trees_equal

import dflax as dx
from dflax import channel

rl = dx.rl
KEY = jax.random.key(0)
AGENTS, BROKEN = 6, 3
OTHERS = np.arange(AGENTS) != BROKEN
NETWORK = rl.ActorCritic(2, (4,), gaussian=True)
FEDERATIONS = {
    "federated": rl.federated,
    "gossiping": lambda *a, **o: rl.gossiping(*a, dx.gossip.ring(AGENTS), **o),
}
each = pytest.mark.parametrize("kind", FEDERATIONS)


def build(kind, rate=0.0):
    def networks(params, seen):
        return NETWORK.apply({"params": params}, seen)

    sizes = {"environments": 2, "steps": 4, "epochs": 1, "minibatches": 1}
    learner = rl.ppo(target(), networks, optax.adam(0.1), **sizes)
    link = channel.chain(channel.finite_only(), channel.lossy(rate))
    return FEDERATIONS[kind](learner, AGENTS, channel=link)


@functools.cache
def begun(kind):
    """A round as one program, whatever is lost and whoever reports; a state after one of everybody."""
    params = NETWORK.init(KEY, jnp.zeros((1, 2)))["params"]
    step = jax.jit(lambda rate, state, round: build(kind, rate).step(state, round))
    state = jax.jit(build(kind).init)(KEY, params, jnp.ones((AGENTS, 2)))
    state, metrics = step(0.0, state, reporting())
    assert metrics["messages_lost"] == metrics["messages_dropped"] == 0
    return step, state


def reporting(present=True):
    drawn = dx.Population(AGENTS).draw(KEY, 0)
    present = jnp.broadcast_to(jnp.asarray(present, jnp.float32), (AGENTS,))
    return drawn._replace(reports=present, weights=drawn.weights * present)


def models(kind, state):
    """Of the server, or of each agent."""
    return state.server.params if kind == "federated" else state.clients.params


def rows(tree, which):
    return jax.tree.map(lambda leaf: np.asarray(leaf)[which], tree)


def flat(tree):
    return np.concatenate([np.reshape(leaf, (AGENTS, -1)) for leaf in jax.tree.leaves(tree)], 1)


@pytest.mark.slow
@each
def test_a_round_in_which_nobody_reports_leaves_agents_and_environments(kind):
    step, before = begun(kind)
    after, metrics = step(0.0, before, reporting(False))
    assert_trees_equal(after._replace(round=before.round), before)
    assert after.round == before.round + 1
    assert np.isnan(metrics["loss"]).all()
    assert np.isnan(metrics["episode_return"]).all()


def test_a_lost_change_is_one_that_nobody_reported():
    """The server's networks, and that the agent's environments and optimiser stand where they stood."""
    step, before = begun("federated")
    after, metrics = step(0.5, before, reporting())
    arrived = after.clients.memory.round > before.clients.memory.round
    assert 0 < metrics["messages_lost"] == AGENTS - arrived.sum() < AGENTS
    right, _ = step(0.0, before, reporting(arrived))
    assert_trees_equal((after.server, after.clients), (right.server, right.clients))
    everyone, _ = step(0.0, before, reporting())
    moved = jax.tree.map(np.array_equal, after.server.params, everyone.server.params)
    assert not all(jax.tree.leaves(moved))


def test_whose_networks_are_lost_hears_itself_alone_and_learns_on():
    step, before = begun("gossiping")
    alone, _ = step(1.0, before, reporting())
    own = flat(alone.clients.params)
    after, metrics = step(0.5, before, reporting())
    found = flat(after.clients.params)
    lost = (found == own).all(1)
    assert 0 < metrics["messages_lost"] == lost.sum() < AGENTS
    # An edge that is gone at one end keeps its weight at the other.
    there = np.diag(~lost).astype(float)
    near = sum(np.roll(np.eye(AGENTS), shift, 1) for shift in (-1, 0, 1)) / 3
    mixing = there @ near @ there
    mixing += np.diag(1 - mixing.sum(1))
    np.testing.assert_allclose(found, mixing @ own, atol=1e-5)
    assert_trees_equal(after.clients.memory, alone.clients.memory)
    assert (after.clients.memory.round == before.clients.memory.round + 1).all()


@each
def test_an_agent_of_nan_is_dropped_and_counted(kind):
    """It sees NaN; what the others come to is what they come to without it."""
    step, before = begun(kind)
    memory = before.clients.memory
    task = memory.task.at[BROKEN].set(jnp.nan)
    spoiled = before._replace(clients=before.clients._replace(memory=memory._replace(task=task)))
    after, metrics = step(0.0, spoiled, reporting())
    right, _ = step(0.0, before, reporting(OTHERS))
    assert metrics["messages_dropped"] == 1
    assert metrics["messages_lost"] == 0
    clients = (after.clients, right.clients)
    assert_trees_equal(*(rows(tree, OTHERS) for tree in clients))
    assert_trees_equal(after.server, right.server)
    kept = models(kind, after) if kind == "federated" else rows(after.clients.params, OTHERS)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(kept))
