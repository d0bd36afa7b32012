"""What robots doubt and estimate; honest robots never accuse each other."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import dflax as dx
from dflax import robots
from dflax.robots.boxes import intersection
from dflax.robots.motion import moved

KEY = jax.random.key(0)
NOBODY = np.zeros(40, bool)
ANCHORS = np.arange(40) < 12


def rolled(application, motion, ticks, **options):
    """Metrics of forty honest robots in a box of ten metres."""
    swarm = robots.dbp(application, robots.byzantine(NOBODY), motion, **options)
    start, way = jax.random.split(KEY)
    state = swarm.init(start, robots.scattered(start, 40))
    return dx.rollout(swarm, state, dx.Population(40), way, ticks)


@functools.cache
def tracked():
    @jax.jit
    def track(step, speed, noise, bound):
        application = robots.target_tracking(
            robots.circling(2.5, step), target_speed=bound, robot_speed=speed, noise=noise
        )
        return rolled(application, robots.motion(speed, pursuit=True), 60)[1]

    return track


@pytest.mark.some(2)
@pytest.mark.parametrize("step", [0.02, 0.45])
@pytest.mark.parametrize("speed", [0.02, 1.5])
@pytest.mark.parametrize("noise", [0.05, 0.2])
def test_honest_trackers_never_accuse(step, speed, noise):
    metrics = tracked()(step, speed, noise, 0.5)
    assert metrics["accusations"][-1] == 0
    assert metrics["valid"][-1] > 0.9
    assert metrics["claims"].sum() > 1000


def test_a_bound_that_the_target_breaks_makes_honest_robots_accuse():
    """What keeps them from it is the bound, and not that nobody ever looks."""
    assert tracked()(0.45, 0.02, 0.05, 0.1)["unjust"][-1] > 0


@pytest.mark.slow
@pytest.mark.parametrize("name", ["time", "localisation"])
def test_honest_anchors_never_accuse(name):
    if name == "time":
        application = robots.time_synchronisation(ANCHORS, period=10)
    else:
        application = robots.localisation(ANCHORS, radio=3.0, robot_speed=0.3)
    motion = robots.motion(0.3)
    run = jax.jit(lambda: rolled(application, motion, 200, radio=3.0, window=60)[1])
    metrics = run()
    assert metrics["accusations"][-1] == 0
    assert metrics["valid"][-1] == 1
    assert metrics["claims"].sum() > 1000
    assert metrics["error"][-50:].mean() < (5 if name == "time" else 2.5)


def one(number=0, position=(0.0, 0.0), tick=100, memory=()):
    place = jnp.asarray(position, jnp.float32)
    return robots.Robot(jnp.int32(number), place, jnp.int32(tick), memory, KEY)


def claims(value, age, delay=None, there=None):
    value = jnp.atleast_2d(jnp.asarray(value, jnp.float32))
    age = jnp.asarray(age, jnp.int32)
    there = jnp.ones(len(value), bool) if there is None else jnp.asarray(there)
    delay = age if delay is None else jnp.asarray(delay, jnp.int32)
    return robots.Claims(value, age, delay, there, there)


def test_what_trackers_doubt():
    """Radio 4, camera 1, target at most 0.5 a tick, robots 0.25; the target is at (9, 0)."""
    application = robots.target_tracking(
        lambda tick: jnp.array([9.0, 0.0]), camera=1.0, target_speed=0.5, robot_speed=0.25
    )
    value = [[5.2, 0], [5.3, 0], [9.4, 0], [9.6, 0], [0.45, 0], [0.55, 0], [0.1, 0]]
    age = [1, 1, 2, 2, 1, 1, 2]
    # Blind at the origin: D hops and the camera reach 4.25 D + 1; within 1 - 0.5 D it would see.
    accuse = jax.jit(application.accuse)
    blind = accuse(one(), claims(value, age))
    np.testing.assert_array_equal(blind, [-1, 1, -1, 3, 4, -1, -1])
    # It sees the target: no claim may be farther from it than 1 + 0.5 D.
    value = [[7.6, 0], [7.4, 0], [9.9, 0], [7.1, 0], [6.9, 0]]
    seeing = accuse(one(position=(9.0, 0.0)), claims(value, [1, 1, 1, 2, 2]))
    np.testing.assert_array_equal(seeing, [-1, 1, -1, -1, 4])


def test_what_anchors_doubt():
    clock = robots.time_synchronisation(np.array([True, False, False]))
    given = claims([[99.0], [100.0], [1100.0]], [1, 1, 1])
    memory = robots.Clock(jnp.float32(100), jnp.float32(1))
    accuse, estimate = jax.jit(clock.accuse), jax.jit(clock.estimate)
    np.testing.assert_array_equal(accuse(one(memory=memory), given), [-1, 1, 2])
    np.testing.assert_array_equal(accuse(one(1, memory=memory), given), -1)
    _, estimate = estimate(one(1, memory=memory), given)
    assert estimate.value[0] == 1100
    place = robots.localisation(np.array([True, False, False]), radio=4.0, robot_speed=0.5)
    given = claims([[8.9, 0], [0, 9.1], [9.1, 0]], [2, 2, 4], [2, 2, 3])
    accuse = jax.jit(place.accuse)
    np.testing.assert_array_equal(accuse(one(), given), [-1, 1, -1])
    np.testing.assert_array_equal(accuse(one(1), given), -1)


def test_a_robot_lies_where_the_boxes_of_its_anchors_overlap():
    place = robots.localisation(np.zeros(3, bool), radio=4.0, robot_speed=0.5)
    given = claims([[0, 0], [6, 0], [500, 0]], [1, 3, 1], [1, 1, 1])
    # The robot itself is number 2, and its own claim does not count.
    find = jax.jit(place.estimate)
    _, estimate = find(one(2), given)
    # x in [-4.5, 4.5] and [0.5, 11.5], y in [-4.5, 4.5].
    np.testing.assert_allclose(estimate.value, [2.5, 0.0])
    assert estimate.valid
    _, estimate = find(one(2), given._replace(there=jnp.array([False, False, True])))
    assert not estimate.valid
    np.testing.assert_array_equal(estimate.value, 0)


def test_boxes_that_leave_nothing_are_skipped_in_order():
    rng = np.random.default_rng(0)
    find = jax.jit(intersection)
    conflicts = 0
    for _ in range(40):
        centre, half = rng.normal(size=(6, 2)), rng.uniform(0.2, 3.0, (6, 1))
        low, high, there = centre - half, centre + half, rng.random(6) < 0.8
        least, most = np.full(2, -np.inf), np.full(2, np.inf)
        for a, b in zip(low[there], high[there], strict=True):
            if np.all(np.maximum(least, a) <= np.minimum(most, b)):
                least, most = np.maximum(least, a), np.minimum(most, b)
            else:
                conflicts += 1
        found = find(*(np.float32(x) for x in (low, high)), there)
        np.testing.assert_allclose(found[0], least, rtol=1e-5)
        np.testing.assert_allclose(found[1], most, rtol=1e-5)
    assert conflicts > 10


def test_w_msr_needs_more_than_twice_as_many_voices_as_it_leaves_out():
    """Five robots hear each other: three know 10, one lies, one wants to know."""
    knows = np.arange(5) < 3
    application = robots.known_value(knows, value=10.0, lie=-50.0)
    liars = robots.byzantine(np.arange(5) == 4)

    @jax.jit
    def run(tolerated):
        swarm = robots.w_msr(application, liars, robots.motion(0.0), tolerated=tolerated)
        state = swarm.init(KEY, jnp.zeros((5, 2)))
        return dx.rollout(swarm, state, dx.Population(5), KEY, 3)

    for tolerated, expected in ((0, (3 * 10 - 50) / 4), (1, 10.0), (2, None)):
        state, metrics = run(tolerated)
        bodies = state.clients.bodies
        assert bodies.valid[3] == (expected is not None)
        # At the first tick nothing has been heard yet.
        np.testing.assert_allclose(metrics["stalled"][0], 0.25)
        np.testing.assert_allclose(metrics["stalled"][-1], 0.0 if bodies.valid[3] else 0.25)
        if expected is not None:
            np.testing.assert_allclose(bodies.estimate[3, 0], expected)


def test_robots_stay_in_the_box_keep_their_speed_and_apart():
    rng = np.random.default_rng(1)
    motion = robots.motion(0.3, side=4.0)
    move = jax.jit(jax.vmap(functools.partial(moved, motion), (0, 0, 0, 0, None, 0)))
    place = (4 * rng.random((30, 2)) - 2).astype(np.float32)
    heading = np.zeros(30, np.float32)
    goal, valid = np.zeros((30, 2), np.float32), np.zeros(30, bool)
    for tick in range(20):
        keys = jax.random.split(jax.random.key(tick), 30)
        before = np.asarray(place)
        place, heading = move(before, heading, goal, valid, before, keys)
        assert np.linalg.norm(place - before, axis=1).max() <= 0.3 + 1e-6
        assert np.abs(place).max() <= 2
    assert np.ptp(place, axis=0).min() > 2
    # Two robots that stand close are pushed apart, whatever way they would go.
    motion = robots.motion(0.3, side=100.0, repulsion=10.0)
    pair = np.array([[0.0, 0.0], [0.5, 0.0]], np.float32)
    push = jax.jit(jax.vmap(functools.partial(moved, motion), (0, 0, 0, 0, None, 0)))
    keys = jax.random.split(KEY, 2)
    apart, _ = push(pair, heading[:2], goal[:2], valid[:2], pair, keys)
    np.testing.assert_allclose(apart[:, 0], [-0.3, 0.8], atol=0.02)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: robots.target_tracking(3), "target must be"),
        (lambda: robots.target_tracking(robots.circling(1.0, 0.1), camera=0.0), "camera must be"),
        (lambda: robots.time_synchronisation(np.ones(3)), "anchors must be"),
        (lambda: robots.localisation(ANCHORS, period=0), "period must be"),
        (lambda: robots.known_value(ANCHORS, value=np.nan, lie=0.0), "value must be"),
        (lambda: robots.motion(-1.0), "speed must be"),
        (lambda: robots.byzantine(NOBODY, accuses=3), "accuses must be"),
        (lambda: robots.accusing(2.0), "probability must be"),
    ],
)
def test_refusals(make, message):
    with pytest.raises((TypeError, ValueError), match=message):
        make()
