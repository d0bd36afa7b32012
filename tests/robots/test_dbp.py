"""The blocklist protocol: who blocks whom, when, and what is then known."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import dflax as dx
from dflax import robots
from dflax.programs import walk
from dflax.robots.blocklists import NEVER

KEY = jax.random.key(0)
HOPS = 8
LINE = np.stack([np.arange(HOPS + 1.0), np.zeros(HOPS + 1)], 1)
STILL = robots.motion(0.0, side=100.0)
HONEST, LYING, TICKS = 40, 8, 40
N = HONEST + LYING
MEMBERS = np.arange(N) >= HONEST


def line(liars=(), cap=None, observers=(0,), **options):
    """Robots in a row, each within reach of the next; the first knows the number 10."""
    numbers = np.arange(HOPS + 1)
    application = robots.known_value(np.isin(numbers, observers), value=10.0, lie=-50.0)
    members = robots.byzantine(np.isin(numbers, liars), **options)
    swarm = robots.dbp(application, members, STILL, radio=1.1, cap=cap)
    return run(swarm, LINE, 2 * HOPS + 4)


def run(swarm, positions, ticks, source=None):
    source = dx.Population(len(positions)) if source is None else source
    state = swarm.init(KEY, positions)
    rolled = jax.jit(lambda state: dx.rollout(swarm, state, source, KEY, ticks))
    return jax.tree.map(np.asarray, rolled(state))


@pytest.mark.slow
def test_a_claim_is_known_after_as_many_ticks_as_it_has_hops():
    state, metrics = line()
    know = np.minimum(np.arange(1, 2 * HOPS + 5), HOPS + 1)
    np.testing.assert_allclose(metrics["valid"] * (HOPS + 1), know, rtol=1e-6)
    ledger = state.clients.ledger
    np.testing.assert_array_equal(ledger.came[:, 0] - ledger.held[:, 0], np.arange(HOPS + 1))
    assert metrics["accusations"][-1] == 0
    np.testing.assert_array_equal(metrics["error"], 0)


@pytest.mark.parametrize("forwards", [pytest.param(True, marks=pytest.mark.slow), False])
def test_silent_liars_cut_the_line_and_talking_ones_do_not(forwards):
    """The liar in the middle is accused when its first claim has come to the observer at the end."""
    middle = HOPS // 2
    state, metrics = line(liars=(middle,), forwards=forwards)
    far = np.asarray(state.clients.bodies.estimate[middle + 1 :, 0])
    # Claimed at 0, at the observer at tick `middle`, who is matched with the liar and blocked with it.
    assert metrics["accusations"][middle - 1] == 0
    assert metrics["accusations"][middle] == 1
    blocked = state.clients.ledger.mate >= 0
    if forwards:
        reached = middle + HOPS
        assert metrics["complete"][reached - 1] < 1 == metrics["complete"][reached]
        np.testing.assert_array_equal(blocked[:, [0, middle]], True)
        assert not state.clients.bodies.valid[middle + 1 :].any()
    else:
        assert not blocked[middle + 1 :].any()
        np.testing.assert_array_equal(far, -50.0)
    assert metrics["unjust"][-1] == 0


@pytest.mark.slow
def test_a_cap_lets_claims_through_one_after_another():
    """Everyone knows the number: the last robot of the row hears of all, with a cap only later."""

    def last_hears(cap):
        state, _ = line(observers=range(HOPS + 1), cap=cap)
        return state.clients.ledger.held[-1]

    end = 2 * HOPS + 3
    np.testing.assert_array_equal(end - last_hears(None), np.arange(HOPS + 1)[::-1])
    np.testing.assert_array_equal(last_hears(HOPS + 5), last_hears(None))
    capped = last_hears(2)
    assert np.all(capped <= last_hears(None))
    assert np.any(capped < last_hears(None))
    assert (capped >= 0).sum() > 2


@pytest.mark.slow
def test_whose_radio_is_off_hears_and_tells_nothing():
    on = np.ones((12, HOPS + 1), bool)
    on[:, 3] = False
    application = robots.known_value(np.arange(HOPS + 1) == 0, value=10.0, lie=-50.0)
    swarm = robots.dbp(application, robots.byzantine(np.zeros(HOPS + 1, bool)), STILL, radio=1.1)
    source = dx.Population(HOPS + 1, participation=dx.participation.present(jnp.asarray(on)))
    state, _ = run(swarm, LINE, 12, source)
    np.testing.assert_array_equal(state.clients.bodies.valid, np.arange(HOPS + 1) < 3)


@functools.cache
def scenes():
    """Static swarms in the unit square, cooperative robots connected, every liar beside one of them."""
    rng = np.random.default_rng(5)
    found = []
    while len(found) < 2:
        places = rng.random((N, 2))
        links = ((places[:, None] - places) ** 2).sum(-1) <= 0.35**2
        reach = np.linalg.matrix_power(links[:HONEST, :HONEST].astype(float), HONEST) > 0
        if reach.all() and links[HONEST:, :HONEST].any(1).all():
            steps = [
                np.linalg.matrix_power(links[:HONEST, :HONEST].astype(float), k).all()
                for k in range(1, HONEST)
            ]
            found.append((places.astype(np.float32) - 0.5, 1 + int(np.argmax(steps))))
    return found


@functools.cache
def known(scene, observers):
    """Forty ticks with so many cooperative observers of the number 10; liars claim -50."""
    places, _ = scenes()[scene]
    chosen = np.random.default_rng(scene).permutation(HONEST)[:observers]
    mask = np.isin(np.arange(N), chosen)
    return jax.tree.map(np.asarray, _known()(mask, places))


@functools.cache
def _known():
    def simulate(observers, places):
        application = robots.known_value(observers, value=10.0, lie=-50.0)
        still = robots.motion(0.0, side=2.0)
        swarm = robots.dbp(application, robots.byzantine(MEMBERS), still, radio=0.35)
        state = swarm.init(KEY, places)
        return dx.rollout(swarm, state, dx.Population(N), KEY, TICKS)

    return jax.jit(simulate)


@pytest.mark.slow
@pytest.mark.parametrize("scene", [0, 1])
def test_with_more_observers_than_liars_all_liars_are_blocked_and_the_number_is_known(scene):
    _, diameter = scenes()[scene]
    for observers in (15, LYING + 1):
        state, metrics = known(scene, observers)
        assert metrics["error_worst"][-1] == 0
        assert metrics["valid"][-1] == metrics["complete"][-1] == metrics["agree"][-1] == 1
        assert metrics["blocked_byzantine"][-1] == metrics["blocked_cooperative"][-1] == LYING
        assert np.argmax(metrics["complete"] == 1) <= diameter + 2
        blocked = state.clients.ledger.mate[:HONEST] >= 0
        np.testing.assert_array_equal(blocked, np.broadcast_to(blocked[0], blocked.shape))


@pytest.mark.parametrize("scene", [0, 1])
def test_with_as_many_observers_as_liars_nobody_else_knows_anything(scene):
    """All observers are blocked with the liars: the estimate of the others is not 0 but not valid."""
    _, metrics = known(scene, LYING)
    assert metrics["blocked_byzantine"][-1] == metrics["blocked_cooperative"][-1] == LYING
    np.testing.assert_allclose(metrics["valid"][-1], LYING / HONEST, rtol=1e-6)
    assert metrics["error"][-1] == 0


@pytest.mark.parametrize("scene", [0, 1])
def test_with_fewer_observers_than_liars_the_lie_is_believed(scene):
    _, metrics = known(scene, 3)
    assert metrics["blocked_byzantine"][-1] == metrics["blocked_cooperative"][-1] == 3
    np.testing.assert_allclose(metrics["error"][-1], 60 * (HONEST - 3) / HONEST, rtol=1e-6)


def accused_at_random():
    """Sixteen robots that track; five liars accuse anybody, each other among them."""
    members = np.arange(16) >= 11
    application = robots.target_tracking(robots.circling(2.0, 0.1), camera=2.0, robot_speed=0.1)
    liars = robots.byzantine(members, accuses=robots.accusing(0.02))
    return robots.dbp(application, liars, robots.motion(0.1, pursuit=True), window=10), members


@pytest.mark.slow
def test_soundness_bounds_every_blocklist_whatever_liars_accuse_and_on_eight_devices():
    swarm, members = accused_at_random()
    source = dx.Population(16)
    start = jax.jit(swarm.init)(KEY, robots.scattered(KEY, 16))
    ended, history = dx.run(swarm, start, source, rounds=30, key=KEY)
    ledger = jax.tree.map(np.asarray, ended.clients.ledger)
    made = ledger.places != NEVER
    assert made[np.ix_(members, members)].any()
    assert made[np.ix_(members, ~members)].any()
    assert not made[np.ix_(~members, ~members)].any()
    blocked = ledger.mate >= 0
    justly, wrongly = blocked[:, members].sum(1), blocked[:, ~members].sum(1)
    assert np.all(wrongly <= justly)
    assert history.metrics["blocked_byzantine"][-1] > 3
    # The blocklist is that of the accusations known, computed from nothing.
    edges = ledger.places < ledger.known[:, :, None]
    fresh = jax.jit(jax.vmap(robots.maximum_matching))(edges | edges.transpose(0, 2, 1))
    np.testing.assert_array_equal(np.asarray(fresh) >= 0, blocked)
    dealt, again = dx.run(swarm, start, source, rounds=30, key=KEY, mesh=dx.client_mesh())
    for found, alone in zip(
        jax.tree.leaves(dealt.clients), jax.tree.leaves(ended.clients), strict=True
    ):
        np.testing.assert_allclose(found, alone, rtol=1e-5, atol=1e-5)
    assert dealt.clients.ledger.mate.sharding.spec[0] == "clients"
    np.testing.assert_array_equal(again.metrics["accusations"], history.metrics["accusations"])


def test_no_array_of_a_cube_of_robots_is_made():
    """300 robots: the largest array of a tick's program has far fewer than 300^3 entries."""
    n = 300
    swarm = robots.dbp(
        robots.target_tracking(robots.circling(2.0, 0.1)),
        robots.byzantine(np.arange(n) >= 200),
        robots.motion(0.1),
    )
    state = jax.eval_shape(swarm.init, KEY, jnp.zeros((n, 2)))
    source = dx.Population(n)
    program = jax.make_jaxpr(lambda state: swarm.step(state, source.draw(KEY, 0)))(state)
    assert largest(program.jaxpr) <= n**3 / 20


def largest(program):
    sizes = [0]
    for operation in program.eqns:
        sizes += [getattr(made, "size", 0) for made in walk.results(operation)]
        sizes += [largest(inner.program.jaxpr) for inner in walk.inner(operation)]
    return max(sizes)


@pytest.mark.some(2)
@pytest.mark.parametrize(
    ("change", "kind", "message"),
    [
        ({"application": 3}, TypeError, "application must be"),
        ({"liars": MEMBERS}, TypeError, "liars must be"),
        ({"motion": 0.1}, TypeError, "motion must be"),
        ({"radio": 0.0}, ValueError, "radio must be"),
        ({"window": 0}, ValueError, "window must be"),
        ({"cap": 0}, ValueError, "cap must be"),
        ({"suspicion": 1}, TypeError, "suspicion must be"),
    ],
)
def test_refusals(change, kind, message):
    application = robots.known_value(~MEMBERS, value=10.0, lie=-50.0)
    right = {"application": application, "liars": robots.byzantine(MEMBERS), "motion": STILL}
    with pytest.raises(kind, match=message):
        robots.dbp(**(right | change))
    if "radio" in change:
        swarm = robots.dbp(**right)
        with pytest.raises(ValueError, match="params must be real numbers of shape"):
            swarm.init(KEY, np.zeros((3, 2)))
        state = swarm.init(KEY, np.zeros((N, 2)))
        with pytest.raises(ValueError, match="rounds of the swarm's 48 robots, got 5"):
            swarm.step(state, dx.Population(5).draw(KEY, 0))
