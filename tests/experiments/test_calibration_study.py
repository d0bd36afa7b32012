"""The loop that serves a real model is the simulator's replica, where calls take what the costs say."""

import types

import jax
import numpy as np
import pytest

from dflax import inference
from experiments.studies.inference.calibration import simulated
from experiments.tasks.served_transformer import Engine, Sizes, points, serve, timed, trace

PREFILL, DECODE = (2e-3, 5e-5, 5e-8), (9e-4, 9e-7, 1.7e-4)
COSTS = inference.affine_costs(PREFILL, DECODE)


def exact_engine(sizes):
    """Calls that take what the costs say."""

    def prefill(length, slot=0):
        a, b, c = PREFILL
        return a + b * length + c * length**2

    def decode(contexts, slots=None):
        u, v, w = DECODE
        return u + v * int(np.sum(contexts)) + w * len(contexts)

    return types.SimpleNamespace(sizes=sizes, prefill=prefill, decode=decode)


@pytest.mark.parametrize("load", [0.5, 3.0])
def test_the_loop_serves_as_the_simulator_does(load):
    sizes = Sizes()
    known = trace(sizes, 0, 60, load, COSTS)
    known = known._replace(arrived=known.arrived.astype(np.float32).astype(np.float64))
    real = serve(exact_engine(sizes), known)
    fake = simulated(COSTS, known, sizes.slots)
    for one, other in zip(
        inference.latency(known, real), inference.latency(known, fake), strict=True
    ):
        np.testing.assert_allclose(one.mean(), other.mean(), rtol=2e-3)
    near = np.abs(np.asarray(real.last) - np.asarray(fake.last)) < 1e-3
    assert near.mean() > 0.95


def test_costs_come_back_from_timed_calls():
    sizes = Sizes()
    known = timed(exact_engine(sizes), *points(sizes, 3, 10), repeats=1, seed=0)
    prefill, decode = inference.fitted_coefficients(known)
    np.testing.assert_allclose(prefill, PREFILL, rtol=1e-8)
    np.testing.assert_allclose(decode, DECODE, rtol=1e-8)


@pytest.mark.slow
def test_a_real_engine_serves_a_trace():
    sizes = Sizes(width=16, depth=1, length=256, slots=2)
    engine = Engine(sizes)
    known = trace(sizes, 1, 8, 0.5, COSTS)
    served = jax.tree.map(np.asarray, serve(engine, known))
    assert (np.diff(served.first) > 0).all()
    assert (served.last >= served.first).all()
    assert (served.first > known.arrived).all()
