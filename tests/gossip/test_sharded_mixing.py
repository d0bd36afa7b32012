"""Mixing with the clients dealt over eight devices."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from dflax import gossip, topology
from dflax.gossip import Mixing
from dflax.gossip.products import linear

CLIENTS = 32
KEY = jax.random.key(1)
MODELS = np.random.default_rng(0).standard_normal((CLIENTS, 6)).astype(np.float32)
ACTIVE = np.arange(CLIENTS) % 5 != 2
GATHERS = ("all-gather", "all-to-all", "all-reduce")

BY_ROLLS = {
    "ring": gossip.ring(CLIENTS),
    "wide torus": gossip.torus(4, 8),
    "tall torus": gossip.torus(16, 2),
    "hypercube": gossip.hypercube(CLIENTS),
    "exponential": gossip.exponential(CLIENTS),
    "one-peer exponential": gossip.one_peer_exponential(CLIENTS),
    "three ring steps": gossip.ring(CLIENTS, steps=3),
    "chebyshev on a ring": gossip.chebyshev(topology.ring(CLIENTS), 3),
    "push-sum": gossip.push_sum(topology.exponential(CLIENTS), steps=2),
    "push-sum on a torus": gossip.push_sum(topology.torus(4, 8)),
}
OTHERS = {
    "average": gossip.complete(CLIENTS),
    "identity": gossip.identity(CLIENTS),
    "star": gossip.star(CLIENTS),
    "edges": gossip.mixer(topology.star(CLIENTS), kind="edges"),
    "slots": gossip.mixer(topology.random_regular(CLIENTS, 3), kind="slots"),
    "matching": gossip.random_matching(CLIENTS),
    "random neighbours": gossip.random_neighbours(CLIENTS, 1.5),
    "dense random neighbours": gossip.random_neighbours(CLIENTS, 1.5, most=31),
    "regular each round": gossip.random_regular_each_round(CLIENTS, 4),
    "everyone but oneself": gossip.complete(CLIENTS, 1 / (CLIENTS - 1)),
    "push-sum by slots": gossip.push_sum(topology.random_regular(CLIENTS, 4)),
}
EVERY = {**BY_ROLLS, **OTHERS}


@pytest.fixture(scope="module")
def clients():
    assert jax.device_count() == 8, "set XLA_FLAGS=--xla_force_host_platform_device_count=8"
    mesh = jax.make_mesh((8,), ("clients",), axis_types=(AxisType.Auto,))
    return NamedSharding(mesh, PartitionSpec("clients"))


def program(mixer, sharding, active=None):
    def mix(models, state):
        return mixer.apply(models, state, Mixing(KEY, jnp.int32(0), active))[0]

    state = mixer.init(jnp.asarray(MODELS))
    shape = jax.ShapeDtypeStruct(MODELS.shape, MODELS.dtype, sharding=sharding)
    return jax.jit(mix, out_shardings=sharding).lower(shape, state).compile(), state


@pytest.mark.some(2)
@pytest.mark.parametrize("name", BY_ROLLS)
def test_graphs_of_shifts_exchange_boundary_rows_alone(name, clients):
    compiled, _ = program(BY_ROLLS[name], clients)
    found = compiled.as_text()
    assert re.search(r"collective-permute(-start)?\(", found)
    assert not [kind for kind in GATHERS if re.search(rf"{kind}(-start)?\(", found)]


@pytest.mark.some(2)
@pytest.mark.parametrize("name", EVERY)
def test_devices_do_not_change_the_result(name, clients):
    mixer = EVERY[name]
    compiled, state = program(mixer, clients, jnp.asarray(ACTIVE))
    sharded = compiled(jax.device_put(MODELS, clients), state)
    alone, _, _ = jax.jit(mixer.apply)(
        jnp.asarray(MODELS), state, Mixing(KEY, jnp.int32(0), jnp.asarray(ACTIVE))
    )
    np.testing.assert_allclose(sharded, alone, atol=1e-6)


# Widths that eight devices divide or not, along one axis or another, and numbers, one a client.
TREES = {
    "even": (16,),
    "uneven": (10,),
    "first axis": (16, 5),
    "last axis": (5, 16),
    "neither": (3, 7),
    "narrow": (6,),
    "one number": (),
}
EXACT = ("edges", "slots", "matching", "random neighbours")


@pytest.mark.some(1)
@pytest.mark.parametrize("name", [*EXACT, "star", "push-sum by slots", "gossip learning"])
def test_models_dealt_by_coordinates_and_back_are_mixed_as_on_one_device(name, clients):
    mixer = gossip.age_weighted(CLIENTS) if name == "gossip learning" else OTHERS[name]
    draw = np.random.default_rng(1)
    models = {
        tree: jnp.asarray(draw.standard_normal((CLIENTS, *shape)), jnp.float32)
        for tree, shape in TREES.items()
    }
    if name == "gossip learning":
        models = gossip.Aged(models, jnp.arange(CLIENTS, dtype=jnp.float32))
    mixing = Mixing(KEY, jnp.int32(0), jnp.asarray(ACTIVE))
    state = mixer.init(models)
    alone = jax.jit(mixer.apply)(models, state, mixing)[0]
    with jax.set_mesh(clients.mesh):
        spread = jax.device_put(models, clients)
        program = jax.jit(mixer.apply).lower(spread, state, mixing).compile()
        sharded = program(spread, state, mixing)[0]
    assert re.search(r"all-to-all(-start)?\(", program.as_text())
    for mine, theirs in zip(jax.tree.leaves(sharded), jax.tree.leaves(alone), strict=True):
        # Of the others the compiler rounds a product and its addition once or twice.
        np.testing.assert_allclose(mine, theirs, rtol=0, atol=0 if name in EXACT else 1e-6)


# Leaves that are cut along one axis or another, evenly or not, and one that stays whole.
LARGE = {
    "kernel": (3, 3, 64, 32),
    "matrix": (80, 16),
    "wide": (1000,),
    "short": (200, 3),
    "bias": (8,),
}


@pytest.mark.some(2)
@pytest.mark.parametrize("name", ["ring", "wide torus", "random neighbours", "average"])
@pytest.mark.parametrize("active", [None, jnp.asarray(ACTIVE)], ids=["all", "some"])
def test_large_leaves_are_mixed_in_blocks_as_they_are_whole(name, active, clients, monkeypatch):
    mixer, draw = EVERY[name], np.random.default_rng(1)
    models = {
        leaf: jnp.asarray(draw.standard_normal((CLIENTS, *shape)), jnp.float32)
        for leaf, shape in LARGE.items()
    }
    state, mixing = mixer.init(models), Mixing(KEY, jnp.int32(0), active)
    whole = jax.jit(lambda *given: mixer.apply(*given)[0])(models, state, mixing)
    monkeypatch.setattr(linear, "BLOCK", 1 << 11)
    monkeypatch.setattr(linear, "platform", lambda: "gpu")
    with jax.set_mesh(clients.mesh):
        cut = {leaf: linear.axis_to_cut(value) for leaf, value in models.items()}
        assert cut == {
            "kernel": (3, 16), "matrix": (1, 16), "wide": (1, 256), "short": (1, 64), "bias": None,
        }  # fmt: skip
        spread = jax.device_put(models, clients)
        program = jax.jit(lambda *given: mixer.apply(*given)[0], donate_argnums=0)
        compiled = program.lower(spread, state, mixing).compile()
        assert " while(" in compiled.as_text()
        blocks = compiled(spread, state, mixing)
    for mine, theirs in zip(jax.tree.leaves(blocks), jax.tree.leaves(whole), strict=True):
        np.testing.assert_allclose(mine, theirs, rtol=0, atol=1e-6)


@pytest.mark.slow
def test_devices_that_share_models_split_no_block(monkeypatch):
    monkeypatch.setattr(linear, "BLOCK", 1 << 11)
    mesh = jax.make_mesh((4, 2), ("clients", "model"), axis_types=(AxisType.Auto,) * 2)
    with jax.set_mesh(mesh):
        assert linear.axis_to_cut(jnp.zeros((CLIENTS, 80, 16)))[0] == 1
        assert linear.axis_to_cut(jnp.zeros((CLIENTS, 1000))) is None
