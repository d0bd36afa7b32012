"""Imaging over receivers and over scenes, compiled for machines that are not here."""

import jax
import jax.numpy as jnp
import pytest
from planned.test_gallery import MACHINES, SMALL, machine

import dflax as dx
from dflax import imaging, profile

KEY = jax.random.key(0)
N = 8
GEOMETRY = imaging.crossed_diagonals((12, 12, 16), transmitters=4, receivers=N, frequencies=4)


def over_receivers():
    operator = imaging.dense(GEOMETRY)
    algorithm = imaging.pnp_consensus(operator, imaging.learned(), N)
    y = jnp.ones((2, *operator.measured), jnp.complex64)
    kept = imaging.received(operator, y, 1.0)
    start = imaging.first_scenes(operator, y)
    state = jax.eval_shape(algorithm.init, KEY, start, kept)
    return algorithm, state, imaging.receiving(kept)


def over_scenes():
    operator = imaging.dense(GEOMETRY)
    algorithm = imaging.pnp_admm(operator, imaging.learned())
    y = jax.ShapeDtypeStruct((2 * N, *operator.measured), jnp.complex64)
    state = jax.eval_shape(lambda y: algorithm.init(KEY, y, 1.0), y)
    return algorithm, state, dx.Population(2 * N)


@pytest.mark.slow
@pytest.mark.parametrize("where", MACHINES)
def test_receivers_send_their_scenes_once(where):
    algorithm, state, source = over_receivers()
    cost = profile.round(algorithm, state, source, mesh=machine(where))
    scenes = 4 * 2 * 2 * 12 * 12 * 16
    # An all-reduce of complex scenes, each device's part twice but for its own.
    assert cost.sent_bytes <= 2 * scenes * 7 / 8 + SMALL
    assert cost.sent_bytes <= 1.06 * cost.least_sent_bytes + SMALL


@pytest.mark.slow
@pytest.mark.parametrize("where", MACHINES)
def test_scenes_are_solved_where_they_are(where):
    algorithm, state, source = over_scenes()
    cost = profile.round(algorithm, state, source, mesh=machine(where))
    assert cost.sent_bytes <= SMALL
