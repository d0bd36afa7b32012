"""Gossip over devices that are one to a node, or add up their own nodes: as on one device."""

import jax
import jax.numpy as jnp
import pytest
from tasks import assert_trees_close

import dflax as dx
from dflax import profile
from dflax.gossip import Mixing

KEY = jax.random.key(2)


def mixed(mixer, models):
    state = mixer.init(models)
    return mixer.apply(models, state, Mixing(KEY, jnp.int32(0), None, None))[0]


@pytest.mark.parametrize("mixer", [dx.gossip.torus(2, 4), dx.gossip.hypercube(8)])
def test_one_node_to_a_device_permutes_devices(mixer):
    mesh, models = dx.client_mesh(), {"x": jax.random.normal(KEY, (8, 5))}
    alone = jax.jit(lambda models: mixed(mixer, models))(models)
    with jax.set_mesh(mesh):
        split = jax.NamedSharding(mesh, jax.P("clients"))
        placed = jax.device_put(models, split)
        compiled = jax.jit(lambda models: mixed(mixer, models), out_shardings=split)
        compiled = compiled.lower(placed).compile()
    assert_trees_close(compiled(placed), alone, rtol=1e-6, atol=1e-6)
    found = profile.collectives(compiled)
    # Both have three neighbours, whose rows are of five numbers.
    assert [(one.kind, one.bytes) for one in found] == [("collective-permute", 20)] * 3


def test_ages_are_added_up_where_they_are():
    mesh, mixer = dx.client_mesh(), dx.gossip.age_weighted(32)
    models = {"x": jax.random.normal(KEY, (32, 5))}
    aged = dx.gossip.Aged(models, jnp.arange(32.0))
    alone = jax.jit(lambda models: mixed(mixer, models))(aged)
    with jax.set_mesh(mesh):
        split = jax.NamedSharding(mesh, jax.P("clients"))
        dealt = jax.jit(lambda models: mixed(mixer, models))(jax.device_put(aged, split))
    assert_trees_close(dealt, alone, rtol=1e-6, atol=1e-6)
