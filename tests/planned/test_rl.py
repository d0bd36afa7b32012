"""Agents, compiled for machines that are not here: each with its own environments."""

import jax
import jax.numpy as jnp
import optax
import pytest
from corridors import target
from planned import test_gallery

import dflax as dx

NETWORK = dx.rl.ActorCritic(2, gaussian=True)


def planned(algorithm, params, agents, where):
    state = jax.eval_shape(algorithm.init, jax.random.key(0), params)
    mesh = test_gallery.machine(where)
    return dx.profile.round(algorithm, state, dx.Population(agents), mesh=mesh)


@pytest.mark.slow
@pytest.mark.parametrize(("where", "agents"), [("v5e:16x16", 256), ("8xH100", 8)])
@pytest.mark.parametrize("kind", ["alone", "federated", "gossiping"])
def test_agents_send_their_networks_or_nothing(kind, where, agents):
    learner = dx.rl.ppo(
        target(),
        lambda params, seen: NETWORK.apply({"params": params}, seen),
        optax.adam(1e-3),
        **{"environments": 8, "steps": 64, "epochs": 4, "minibatches": 4},
    )
    mixer = dx.gossip.ring(agents)
    algorithm = {
        "alone": lambda: dx.rl.alone(learner, agents),
        "federated": lambda: dx.rl.federated(learner, agents),
        "gossiping": lambda: dx.rl.gossiping(learner, agents, mixer),
    }[kind]()
    params = jax.eval_shape(NETWORK.init, jax.random.key(0), jnp.zeros((1, 2)))["params"]
    model = 4 * sum(leaf.size for leaf in jax.tree.leaves(params))
    cost = planned(algorithm, params, agents, where)
    sent = sum(c.bytes for c in cost.collectives)
    # Beside it what the agents measured: a row of a dozen numbers each, or their means.
    measured = 16 * 4 * (agents if kind == "alone" else 1)
    least = {"alone": 0, "federated": 2 * model, "gossiping": 2 * model}[kind]
    assert sent <= 1.06 * least + measured
