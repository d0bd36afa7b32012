"""Rounds that are kept in a file: traced in one process and run in another, bit for bit."""

import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from tasks import assert_trees_equal, half_square, quadratics

import dflax as dx

pytest.importorskip("flatbuffers")
KEY = jax.random.key(5)
CLIENTS, WIDTH = 16, 24


def task():
    algorithm = dx.decentralized.dfedavg(half_square, optax.sgd(0.1), dx.gossip.ring(CLIENTS))
    state = algorithm.init(jax.random.key(0), lambda key: jax.random.normal(key, (WIDTH,)))
    return algorithm, state, quadratics(CLIENTS, WIDTH).federation(2)


# What runs over there: it has the state and the source, and not the algorithm.
OVER_THERE = """
import sys
sys.path.insert(0, "tests")
import jax, numpy as np
from running import test_plan as here
import dflax as dx
_, state, source = here.task()
state, metrics = dx.plan.load(sys.argv[1])(state, source, here.KEY)
np.savez(sys.argv[2], params=state.clients.params, round=state.round, loss=metrics["loss"])
"""


@pytest.fixture(scope="module")
def kept(tmp_path_factory):
    algorithm, state, source = task()
    path = tmp_path_factory.mktemp("plan") / "ring.plan"
    shapes = jax.eval_shape(lambda state: state, state)
    dx.plan.save(path, algorithm, shapes, source, rounds=3, mesh=dx.client_mesh())
    return path


def test_another_process_runs_what_was_kept(kept, tmp_path):
    algorithm, state, source = task()
    found = tmp_path / "found.npz"
    subprocess.run([sys.executable, "-c", OVER_THERE, kept, found], check=True)
    mesh = dx.client_mesh()
    with jax.set_mesh(mesh):
        rounds = jax.jit(lambda *given: dx.rollout(algorithm, *given, 3))
        placed = dx.mesh.shard(state, mesh), dx.mesh.replicate_source(source, mesh), KEY
        after, metrics = rounds(*placed)
    with np.load(found) as file:
        np.testing.assert_array_equal(file["params"], after.clients.params)
        np.testing.assert_array_equal(file["loss"], metrics["loss"])
        assert file["round"] == 3


def test_rounds_go_on_where_they_ended(kept):
    _, state, source = task()
    rounds = dx.plan.load(kept)
    state, first = rounds(state, source, KEY)
    state, second = rounds(state, source, KEY)
    assert int(state.round) == 6
    assert first["loss"].shape == (3,)
    assert float(second["loss"].mean()) < float(first["loss"].mean())
    assert_trees_equal(jax.tree.structure(state), jax.tree.structure(task()[1]))


def test_another_machine_or_state_is_refused(kept, tmp_path):
    algorithm, state, source = task()
    four = dx.client_mesh(jax.devices()[:4])
    with pytest.raises(ValueError, match=r"mesh must be of 8 devices of platform 'cpu'.*got"):
        dx.plan.load(kept, mesh=four)
    with pytest.raises(ValueError, match=r"path must be a file that dflax\.plan\.save wrote"):
        dx.plan.load(tmp_path / "nothing")
    (tmp_path / "other").write_text("other")
    with pytest.raises(ValueError, match="wrote, got another one"):
        dx.plan.load(tmp_path / "other")
    rounds = dx.plan.load(kept)
    wider = algorithm.init(KEY, jnp.ones(WIDTH + 1))
    with pytest.raises(
        ValueError, match=r"state\.clients\.params must be as it was saved.*float32\[16,24\]"
    ):
        rounds(wider, source, KEY)
    with pytest.raises(TypeError, match="key must be one typed JAX key"):
        rounds(state, source, 0)
    with pytest.raises(ValueError, match="rounds must be an integer"):
        dx.plan.save(tmp_path / "x", algorithm, state, source, rounds=0, mesh=four)


class Shape:
    """Of an array, without a dtype."""

    shape = (CLIENTS, WIDTH)


def test_shapes_without_dtypes_are_refused_by_name(tmp_path):
    algorithm, state, source = task()
    bare = state._replace(clients=state.clients._replace(params=Shape()))
    mesh = dx.client_mesh()
    with pytest.raises(TypeError, match=r"state\.clients\.params must be an array or a number"):
        dx.plan.save(tmp_path / "x", algorithm, bare, source, rounds=1, mesh=mesh)
    with pytest.raises(TypeError, match=r"state\.clients\.params must be an array or a number"):
        dx.profile.round(algorithm, bare, source, mesh=mesh)


def test_a_missing_package_names_its_extra(kept, tmp_path, monkeypatch):
    algorithm, state, source = task()
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(
        ImportError, match=r"plan\.load needs flatbuffers: pip install 'dflax\[plan\]'"
    ):
        dx.plan.load(kept)
    with pytest.raises(ImportError, match=r"plan\.save needs flatbuffers"):
        dx.plan.save(tmp_path / "x", algorithm, state, source, rounds=1, mesh=dx.client_mesh())


def test_gossip_dealt_by_coordinates_is_kept_bit_for_bit(tmp_path):
    mixer = dx.gossip.random_neighbours(CLIENTS, 2)
    algorithm = dx.decentralized.dfedavg(half_square, optax.sgd(0.1), mixer)
    state = algorithm.init(jax.random.key(0), lambda key: jax.random.normal(key, (WIDTH,)))
    source, mesh = quadratics(CLIENTS, WIDTH).federation(2), dx.client_mesh()
    dx.plan.save(tmp_path / "random.plan", algorithm, state, source, rounds=2, mesh=mesh)
    with jax.set_mesh(mesh):
        placed = dx.mesh.shard(state, mesh), dx.mesh.replicate_source(source, mesh), KEY
        after, _ = jax.jit(lambda *given: dx.rollout(algorithm, *given, 2))(*placed)
    loaded, _ = dx.plan.load(tmp_path / "random.plan")(state, source, KEY)
    assert_trees_equal(loaded.clients.params, after.clients.params)
