"""PnP-ADMM against float64 NumPy, its fixed points, its symmetries, and on eight devices."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from imaging_tasks import KEY, SCENES, flat, matrix, measured, numpy_run, operator
from tasks import assert_trees_close

import dflax as dx
from dflax import imaging

KAPPA, ALPHA = 60.0, 0.05
SOURCE = dx.Population(SCENES)


@functools.cache
def begun():
    """The start, compiled; it depends on neither prior nor hyper-parameters."""
    algorithm = imaging.pnp_admm(operator(), imaging.sparse())
    return jax.jit(lambda y, radius: algorithm.init(KEY, y, radius))


@functools.cache
def program(prior="sparse", cg_steps=None):
    """One round with hyper-parameters that are arguments, compiled once."""
    priors = {
        "sparse": imaging.sparse(),
        "cut": imaging.of_magnitude(
            lambda weights, m, alpha: jnp.where(m > alpha, m, 0), scale_invariant=True
        ),
    }

    @jax.jit
    def step(state, source, penalty, strength, tolerance, growth, decay):
        algorithm = imaging.pnp_admm(
            operator(),
            priors[prior],
            penalty=penalty,
            strength=strength,
            tolerance=tolerance,
            growth=growth,
            decay=decay,
            cg_steps=cg_steps,
        )
        return algorithm.step(state, source.draw(KEY, state.round))

    return step


def ran(rounds, source=SOURCE, y=None, radius=None, prior="sparse", cg_steps=None, **given):
    y = measured().measurements if y is None else y
    state = begun()(y, measured().radius if radius is None else jnp.full(SCENES, radius))
    defaults = {"penalty": KAPPA, "strength": ALPHA, "tolerance": 0.0, "growth": 1.0, "decay": 1.0}
    for _ in range(rounds):
        state, metrics = program(prior, cg_steps)(state, source, **(defaults | given))
    return state, metrics


@pytest.mark.some(1)
@pytest.mark.parametrize("options", [{}, {"cg_steps": 100}], ids=["exact", "gradients"])
def test_scenes_are_those_of_numpy(options):
    state, metrics = ran(12, **options)
    y, eps = flat(measured().measurements).astype(complex), np.asarray(measured().radius)
    misfits = []
    for scene in range(SCENES):
        path, _ = numpy_run(y[scene], eps[scene], KAPPA, ALPHA, 12)
        x = path[-1]
        np.testing.assert_allclose(
            flat(state.clients.x)[scene], x, rtol=0, atol=2e-3 * np.abs(x).max()
        )
        misfits.append(np.linalg.norm(y[scene] - matrix() @ x) / np.linalg.norm(y[scene]))
    assert metrics["misfit"] == pytest.approx(np.mean(misfits), rel=1e-2)


def test_a_scene_that_is_done_stands_still():
    # From the changes of these scenes: the last is soon below, the second at the end, the first never.
    tolerance, steps = 0.2, [12, 12, 5]
    state, metrics = ran(12, tolerance=tolerance)
    y, eps = flat(measured().measurements).astype(complex), np.asarray(measured().radius)
    for scene in range(SCENES):
        path, count = numpy_run(y[scene], eps[scene], KAPPA, ALPHA, 12, tolerance)
        assert count == steps[scene]
        x = path[-1]
        np.testing.assert_allclose(
            flat(state.clients.x)[scene], x, rtol=0, atol=2e-3 * np.abs(x).max()
        )
    assert state.clients.iterations.tolist() == steps
    assert state.clients.done.tolist() == [False, True, True]
    assert metrics["done"] == pytest.approx(2 / 3)


@pytest.mark.parametrize("prior", ["sparse", "cut"])
def test_a_global_phase_passes_through(prior):
    y = measured().measurements
    state, _ = ran(6, prior=prior, strength=0.2)
    turned, _ = ran(6, prior=prior, strength=0.2, y=y * jnp.exp(0.7j))
    expected = state.clients.x * jnp.exp(0.7j)
    np.testing.assert_allclose(turned.clients.x, expected, rtol=0, atol=1e-3)


def test_without_a_prior_the_data_are_explained_exactly():
    state, metrics = ran(150, strength=1e-30, radius=0.0)
    scenes = state.clients
    seen = flat(scenes.x) @ matrix().T
    assert np.abs(seen - flat(scenes.measurements)).max() < 1e-3
    np.testing.assert_allclose(scenes.x, scenes.v1, atol=1e-3)
    assert metrics["misfit"] < 1e-3


def test_a_fixed_point_is_in_the_ball():
    state, metrics = ran(800, tolerance=1e-7)
    scenes = state.clients
    away = np.linalg.norm(flat(scenes.x) @ matrix().T - flat(scenes.measurements), axis=1)
    np.testing.assert_array_less(away, 1.01 * np.asarray(scenes.radius))
    assert metrics["apart"] < 0.02


def test_continuation_is_another_penalty_and_strength_each_iteration():
    state, _ = ran(3, growth=2.0, decay=4.0)
    y, eps = flat(measured().measurements).astype(complex), np.asarray(measured().radius)
    changing = [(KAPPA * 2**t, ALPHA / 4**t) for t in range(3)]
    path, _ = numpy_run(y[0], eps[0], None, None, 3, changing=changing)
    np.testing.assert_allclose(flat(state.clients.x)[0], path[-1], rtol=0, atol=1e-4)


def test_who_is_left_out_stands_still():
    table = np.array([[0, 2]])
    source = dx.Population(SCENES, participation=dx.participation.from_table(table))
    state, _ = ran(1, source=source)
    everyone, _ = ran(1)
    assert state.clients.iterations.tolist() == [1, 0, 1]
    assert_trees_close(state.clients.x[::2], everyone.clients.x[::2], rtol=1e-5, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize(
    "prior",
    [imaging.sparse, pytest.param(imaging.learned, marks=pytest.mark.slow)],
    ids=["l1", "learned"],
)
def test_eight_devices_and_one_agree(prior):
    y = jnp.concatenate([measured().measurements] * 3)[:8]
    radius = jnp.concatenate([measured().radius] * 3)[:8]
    algorithm = imaging.pnp_admm(operator(), prior(), penalty=KAPPA)
    state, options = algorithm.init(KEY, y, radius), {"rounds": 3, "key": KEY}
    alone, _ = dx.run(algorithm, state, dx.Population(8), **options)
    state = algorithm.init(KEY, y, radius)
    dealt, _ = dx.run(algorithm, state, dx.Population(8), **options, mesh=dx.client_mesh())
    assert len(dealt.clients.x.sharding.device_set) == 8
    assert_trees_close(dealt.clients, alone.clients, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    ("name", "value"),
    [("penalty", 0.0), ("penalty", -1.0), ("strength", 0.0), ("growth", 0.5), ("cg_steps", 0)],
)
def test_wrong_hyper_parameters_are_refused(name, value):
    with pytest.raises(ValueError, match=name):
        imaging.pnp_admm(operator(), imaging.sparse(), **{name: value})


@pytest.mark.slow
def test_wrong_measurements_are_refused():
    algorithm = imaging.pnp_admm(operator(), imaging.sparse())
    y = measured().measurements
    for wrong in (y[:0], y[0], y[:, :2], y.at[0, 0, 0, 0].set(jnp.nan)):
        with pytest.raises(ValueError, match="params must be"):
            algorithm.init(KEY, wrong, 1.0)
    for wrong in (-1.0, jnp.nan, jnp.ones(2)):
        with pytest.raises(ValueError, match="radius must be"):
            algorithm.init(KEY, y, wrong)
    state = algorithm.init(KEY, y, 1.0)
    with pytest.raises(ValueError, match="the round must be of 3 scenes"):
        algorithm.step(state, dx.Population(2).draw(KEY, 0))
    with pytest.raises(TypeError, match="state must be one of pnp_admm"):
        imaging.magnitudes(None)
