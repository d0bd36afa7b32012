"""The closed loop: who is seen, how others drive, and what a car does about what it cannot see."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tasks import assert_trees_close

import dflax as dx
from dflax import robots
from dflax.robots.planning.planner import shifted
from dflax.robots.planning.traffic import following

KEY = jax.random.key(0)
CURVES = robots.bernstein()
FEARS = np.array([[False, True], [False, False]])
STEPS = 30


def road(scenes=2, seed=0):
    """A parked truck that hides a place; in every second scene a car stands there."""
    rng = np.random.default_rng(seed)
    x = rng.uniform(14, 16, scenes)
    truck, car = np.stack([x, np.full(scenes, 2.4)], 1), np.stack([x + 6, np.full(scenes, 1.5)], 1)
    row, zeros = np.ones(scenes), np.zeros((scenes, 2))
    there = np.stack([row > 0, np.arange(scenes) % 2 == 0], 1)
    return robots.Road(
        places=np.stack([truck, car], 1),
        speeds=zeros,
        wanted=zeros,
        axes=np.tile([[4.5, 2.2], [4.0, 2.2]], (scenes, 1, 1)),
        bodies=np.tile([[4.0, 1.6], [2.0, 0.9]], (scenes, 1, 1)),
        there=there,
        known=np.tile([True, False], (scenes, 1)),
        phantoms=np.stack([truck, np.stack([x + 6, 1.2 * row], 1)], 1),
        drifts=zeros,
        hidden=np.tile([False, True], (scenes, 1)),
        speed=8 * row,
        detour=-2 * row,
        wary=8 * row,
    )


@functools.cache
def drives(hypotheses, scenes=2):
    planner = robots.planner(CURVES, len(hypotheses), 2, 40)
    return robots.driving(planner, STEPS, np.array(hypotheses))


@functools.cache
def driven(hypotheses):
    algorithm = drives(hypotheses)

    @jax.jit
    def run(road):
        state = algorithm.init(KEY, road)
        return dx.rollout(algorithm, state, dx.Population(2), KEY, STEPS + 1)

    return jax.tree.map(np.asarray, run(road()))


BOTH = tuple(map(tuple, FEARS.tolist()))


def test_a_line_of_sight_ends_at_an_ellipse():
    eye, ellipse, axes = np.zeros(2), np.array([[10.0, 0.0]]), np.array([[2.0, 1.0]])
    targets = np.array([[20, 0], [20, 1.5], [20, 2.5], [5, 0], [10, 2], [-20, 0], [10, 0.0]])
    seen = robots.in_view(eye, targets, ellipse, axes)
    # A tangent from the origin has the slope b / sqrt(100 - a^2), at x = 20 2.04.
    assert seen.tolist() == [False, False, True, True, True, True, False]
    none = np.zeros((7, 1), bool)
    assert robots.in_view(eye, targets, ellipse, axes, none).all()
    assert robots.in_view(eye, targets, ellipse, 0 * axes)[:2].tolist() == [False, True]


def test_followers_keep_the_gap_at_which_the_model_stands_still():
    speed, wanted = 6.0, 10.0
    gap = (2.0 + speed * 1.5) / np.sqrt(1 - (speed / wanted) ** 4)
    np.testing.assert_allclose(robots.idm(gap, speed, 0.0, wanted), 0, atol=1e-6)
    np.testing.assert_allclose(robots.idm(1e9, 0.0, 0.0, wanted), 1.5, rtol=1e-6)
    closing = robots.idm(20.0, speed, 3.0, wanted)
    star = 2 + speed * 1.5 + speed * 3 / (2 * np.sqrt(3))
    np.testing.assert_allclose(closing, 1.5 * (1 - 0.6**4 - (star / 20) ** 2), rtol=1e-5)
    assert robots.idm(0.5, 10.0, 10.0, wanted) == -8.0


@pytest.mark.slow
def test_cars_follow_who_is_next_in_their_lane_and_the_planning_car():
    places = np.array([[0.0, 0], [30, 0], [20, 3.5], [12, 0.2]])
    speeds, wanted = np.array([8.0, 6, 5, 7]), np.array([10.0, 10, 10, 10])
    there = np.array([True, True, True, False])
    found = following(places, speeds, wanted, np.full(4, 4.0), there, np.array([60.0, 0]), 3.0)
    # The fourth is not there; the third is in another lane and has a free road.
    expected = [
        robots.idm(26.0, 8.0, 2.0, 10.0),
        robots.idm(30 - 4.25, 6.0, 3.0, 10.0),
        robots.idm(1e9, 5.0, 0.0, 10.0),
    ]
    np.testing.assert_allclose(found[:3], expected, rtol=1e-5)
    parked = following(places, speeds, 0 * wanted, np.full(4, 4.0), there, np.zeros(2), 3.0)
    np.testing.assert_array_equal(parked, 0)


def test_a_platoon_neither_crashes_nor_stands():
    places = np.stack([np.array([0.0, 12, 24, 36]), np.zeros(4)], 1)
    wanted, there, lengths = np.array([14.0, 12, 13, 6]), np.ones(4, bool), np.full(4, 4.5)

    def one(carry, _):
        x, v = carry
        pushed = following(
            x, v, wanted, lengths, there, np.array([-50.0, 0]), jnp.float32(0), ego_length=4.5
        )
        after = jnp.maximum(0, v + 0.1 * pushed)
        x = x.at[:, 0].add(0.05 * (v + after))
        return (x, after), (x[:, 0], after)

    first = jnp.asarray(places, jnp.float32), jnp.full(4, 10.0)
    _, (x, v) = jax.jit(lambda c: jax.lax.scan(one, c, None, length=900))(first)
    assert (np.diff(x, axis=1) > 4.5).all()
    np.testing.assert_allclose(v[-1], 6, atol=0.1)


def test_a_plan_one_interval_later_is_the_same_line():
    line = np.linspace(0, 28, 11, dtype=np.float32)[None]
    plans = robots.Trajectory(line, 0.1 * line, 0 * line + 0.1, np.full((1, 40), 7, np.float32))
    later = shifted(CURVES, plans)
    step = 28 / 39
    np.testing.assert_allclose(later.x, line + step, atol=1e-3)
    np.testing.assert_allclose(later.y, 0.1 * (line + step), atol=1e-3)
    np.testing.assert_allclose(later.heading, 0.1, atol=1e-4)


@pytest.mark.slow
def test_cars_are_known_once_seen_and_phantoms_go_when_their_place_is_seen():
    state, metrics = driven(BOTH)
    track = state.clients.track
    known, imagined = track.known[..., 1], track.imagined
    assert not known[:, 0].any()
    assert known[0, -1]
    np.testing.assert_array_equal(np.diff(known.astype(int), axis=1) >= 0, True)
    assert imagined[:, 0, 0, 1].all()
    assert not imagined[:, :, 1].any()
    assert not imagined[..., 0].any()
    assert not imagined[:, -1].any()
    # Never both, and gone for good.
    assert not (imagined[:, :, 0, 1] & (known & road().there[:, 1:])).any()
    assert (np.diff(imagined[:, :, 0, 1].astype(int), axis=1) <= 0).all()
    for scene, step in ((0, 0), (0, 12), (1, 20)):
        start = track.start.position[scene, step]
        there = road()
        seen = robots.in_view(
            start, there.phantoms[scene, 1:], there.places[scene, :1], there.bodies[scene, :1]
        )
        held = imagined[scene, step, 0, 1]
        assert held == (not seen[0] and not known[scene, step] * there.there[scene, 1]) or not held
    assert metrics["known"][-1] == 1.5


@pytest.mark.slow
def test_the_car_drives_the_shared_segment_and_a_road_has_an_end():
    state, metrics = driven(BOTH)
    track = state.clients.track
    values = np.einsum("btscn,kn->btsck", track.plans, CURVES.values[0])
    # The beginning is shared, the ends are not while a phantom is there.
    assert np.abs(np.ptp(values[:, 1:15, :, 1, 1], axis=2)).max() < 0.02
    assert np.abs(np.ptp(values[:, :3, :, 1, -1], axis=2)).min() > 1.9
    chosen = np.take_along_axis(values, track.chosen[:, :, None, None, None], 2)[:, :, 0]
    np.testing.assert_allclose(track.start.position[:, 1:], chosen[:, :-1, :, 1], atol=1e-4)
    assert metrics["clearance"][STEPS // 2] < metrics["clearance"][0]
    least = track.nearest[..., 0].min()
    places, truck = track.start.position[:, 1:], road().places[:, None, 0]
    again = np.square((places - truck) / road().axes[:, None, 0]).sum(-1)
    np.testing.assert_allclose(track.nearest[:, :-1, 0], again, rtol=1e-3)
    assert least > 1
    # The run was one interval longer than the road, which did nothing.
    np.testing.assert_allclose(state.clients.start.position, chosen[:, -1, :, 1], atol=1e-4)


@pytest.mark.slow
def test_who_fears_a_car_keeps_away_from_it_and_who_does_not_stays_in_lane():
    feared = driven(((False, True),))[0].clients.track
    both = driven(BOTH)[0].clients.track
    none = driven(((False, False),))[0].clients.track
    free = 1  # The scene without a car.
    offsets = [np.abs(t.start.position[free, :, 1]).mean() for t in (feared, both, none)]
    assert offsets[0] > 2 * offsets[1] > 4 * offsets[2]
    nearest = [t.nearest[0, :, 1].min() for t in (feared, both, none)]
    assert nearest[0] > nearest[1] > nearest[2]


@pytest.mark.slow
def test_scenes_on_eight_devices_are_driven_as_on_one():
    algorithm, source = drives(BOTH), dx.Population(8)
    state = algorithm.init(KEY, road(8, 1))
    one, told = dx.run(algorithm, state, source, rounds=6, key=KEY)
    eight, also = dx.run(algorithm, state, source, rounds=6, key=KEY, mesh=dx.client_mesh())
    assert_trees_close(one.clients.start, eight.clients.start, atol=1e-3)
    # Of two plans that are nearly the same either may be the better one.
    tracks = [found.clients.track._replace(chosen=()) for found in (one, eight)]
    assert_trees_close(*tracks, atol=5e-2)
    np.testing.assert_allclose(told.metrics["speed"], also.metrics["speed"], rtol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: robots.planner(CURVES, 2, 2, 0), "iterations must be an integer >= 1"),
        (
            lambda: robots.planner(CURVES, 2, 2, preferences=robots.Preferences(jerk=-1.0)),
            "preferences.jerk must be",
        ),
        (lambda: robots.driving(robots.planner(CURVES, 2, 2), 0, FEARS), "steps must be an integer"),
        (
            lambda: robots.driving(robots.planner(CURVES, 2, 2), 3, FEARS[:1]),
            r"imagined must be booleans of shape \[2, 2\]",
        ),
        (lambda: drives(BOTH).init(KEY, road()._replace(there=np.ones((2, 3), bool))), "params.there"),
        (lambda: drives(BOTH).init(KEY, road()._replace(axes=0 * road().axes)), "params.axes must be"),
        (lambda: drives(BOTH).init(KEY, road()._replace(speed=-road().speed)), "params.speed must be"),
        (lambda: drives(BOTH).init(KEY, road()._replace(places=np.zeros((0, 2, 2)))), "params.places"),
        (
            lambda: jax.eval_shape(
                drives(BOTH).step, drives(BOTH).init(KEY, road()), dx.Population(3).draw(KEY, 0)
            ),
            "the source must draw rounds of the 2 scenes, got 3",
        ),
    ],
)  # fmt: skip
def test_bad_arguments_are_refused(make, message):
    with pytest.raises((TypeError, ValueError), match=message):
        make()
