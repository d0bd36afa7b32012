"""Environments and rollouts, on corridors whose steps are known."""

import types
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from corridors import corridor, one_step

import dflax as dx

rl = dx.rl
KEY = jax.random.key(0)


def rolled(environment, steps, count=2, **options):
    task = environment.task
    running = rl.begin(environment, task, KEY, count)
    return rl.rollout(environment, task, one_step, running, steps, KEY, **options)


@pytest.mark.slow
def test_episodes_follow_each_other():
    after, steps, metrics = rolled(corridor(3.0), 7)
    np.testing.assert_array_equal(steps.kept[:, 0], [0, 1, 2, 0, 1, 2, 0])
    np.testing.assert_array_equal(steps.reward[:, 1], [1, 2, 3, 1, 2, 3, 1])
    np.testing.assert_array_equal(steps.end[:, 0], [0, 0, 1, 0, 0, 1, 0])
    np.testing.assert_array_equal(after.gained, [1, 1])
    np.testing.assert_array_equal(after.length, [1, 1])
    assert (metrics["episodes"], metrics["dropped"]) == (4, 0)
    assert (metrics["episode_return"], metrics["episode_length"]) == (6, 3)


@pytest.mark.slow
def test_two_rollouts_are_one():
    environment = corridor(3.0)
    running = rl.begin(environment, environment.task, KEY, 2)
    first, steps, _ = rl.rollout(environment, environment.task, one_step, running, 4, KEY)
    _, more, _ = rl.rollout(environment, environment.task, one_step, first, 3, KEY)
    both = np.concatenate([steps.reward, more.reward])
    np.testing.assert_array_equal(both, rolled(environment, 7)[1].reward)


def test_without_an_episode_its_return_is_nan():
    _, _, metrics = rolled(corridor(9.0), 3)
    assert metrics["episodes"] == 0
    assert np.isnan(metrics["episode_return"])


def test_a_time_limit_is_no_end_of_what_is_worth_something():
    limited = rl.time_limit(corridor(3.0), 2)
    _, steps, metrics = rolled(limited, 4, value=lambda seen: 10.0 + seen[:, 0])
    np.testing.assert_array_equal(steps.end[:, 0], [0, 1, 0, 1])
    np.testing.assert_array_equal(steps.beyond[:, 0], [0, 12, 0, 12])
    assert metrics["episode_length"] == 2


def test_an_end_at_the_limit_is_an_end():
    limited = rl.time_limit(corridor(2.0), 2)
    _, steps, _ = rolled(limited, 2, value=lambda seen: 10.0 + seen[:, 0])
    np.testing.assert_array_equal(steps.beyond, np.zeros((2, 2)))


def test_a_broken_reward_drops_its_episode():
    def act(task, state, action, key):
        after = state + action
        return rl.Outcome(after, jnp.where(after == 5.0, jnp.nan, after), (after % 3) == 0)

    made = rl.environment(lambda task, key: jnp.float32(0.0), act, lambda task, state: state[None])
    # Episodes of three steps; a start at 3 meets 4, 5: broken, and begins again at 0.
    running = rl.begin(made, (), KEY, 1)._replace(state=jnp.array([3.0]))
    _, steps, metrics = rl.rollout(made, (), one_step, running, 6, KEY)
    np.testing.assert_array_equal(steps.reward[:, 0], [4, 0, 1, 2, 3, 1])
    np.testing.assert_array_equal(steps.counted[:, 0], [0, 0, 1, 1, 1, 1])
    assert (metrics["dropped"], metrics["episodes"], metrics["episode_return"]) == (1, 1, 6)


def test_one_episode_each():
    environment = corridor(3.0)
    found = rl.evaluate(environment, jnp.float32(2.0), one_step, KEY, episodes=3, horizon=5)
    np.testing.assert_array_equal(found.returns, [12, 12, 12])
    np.testing.assert_array_equal(found.length, [3, 3, 3])
    assert found.ended.all()
    short = rl.evaluate(environment, environment.task, one_step, KEY, episodes=3, horizon=2)
    assert not short.ended.any()
    np.testing.assert_array_equal(short.state, [2, 2, 2])


def stages(post=lambda task, state, action: (state + action, -action)):
    def noise(task, decided, key):
        wind = jax.random.bernoulli(key).astype(jnp.float32)
        return rl.Outcome(decided + wind, 10 * wind, decided >= 3)

    reset = lambda task, key: jnp.float32(0.0)  # noqa: E731
    return rl.two_stage(reset, post, noise, lambda task, state: state[None])


def test_two_stages_are_a_transition():
    made = stages()
    decided, known = made.post((), jnp.float32(1.0), jnp.float32(1.0))
    chance = made.noise((), decided, KEY)
    whole = made.act((), jnp.float32(1.0), jnp.float32(1.0), KEY)
    assert (decided, known) == (2.0, -1.0)
    assert whole.state == chance.state
    assert whole.reward == known + chance.reward


def test_time_limits_keep_both_stages():
    made = rl.time_limit(stages(), 2)
    state = made.reset((), KEY)._replace(time=jnp.int32(1))
    decided, _ = made.post((), state, jnp.float32(1.0))
    assert made.noise((), decided, KEY).truncated
    assert made.act((), state, jnp.float32(1.0), KEY).truncated


def test_a_known_half_that_draws_is_refused():
    fixed = jax.random.key(3)

    def post(task, state, action):
        return jax.jit(lambda s: s + jax.random.normal(fixed))(state), 0.0

    with pytest.raises(ValueError, match="post must draw no random numbers"):
        stages(post).act((), jnp.float32(0.0), jnp.float32(1.0), KEY)
    with pytest.raises(TypeError, match="post must be a function of 3 arguments"):
        stages(lambda task, state, action, key: (state, 0.0))


def test_a_horizon_of_nothing_is_refused():
    with pytest.raises(ValueError, match=r"horizon must be an integer >= 1.*at least one step"):
        rl.time_limit(corridor(), 0)


class Counting:
    """Counts up by actions of 0 or 1; gymnax's functions, with or without a limit apart."""

    default_params = types.SimpleNamespace()

    def reset_env(self, key, params):
        return jnp.zeros(1), jnp.int32(0)

    def step_env(self, key, state, action, params):
        after = state + action
        return jnp.full(1, after, jnp.float32), after, 1, after >= params["end"], {}


class Limited(Counting):
    def is_truncated(self, state, params):
        return state >= params["limit"]


@pytest.mark.parametrize("kind", [Counting, Limited])
def test_gymnax_s_functions(kind):
    made = rl.from_gymnax(kind(), {"end": 3, "limit": 2})
    act = lambda seen, key: (jnp.ones(2, jnp.int32), seen[:, 0])  # noqa: E731
    running = rl.begin(made, made.task, KEY, 2)
    _, steps, _ = rl.rollout(
        made, made.task, act, running, 4, KEY, value=lambda seen: seen[:, 0] + 5
    )
    if kind is Counting:
        np.testing.assert_array_equal(steps.kept[:, 0], [0, 1, 2, 0])
        assert not steps.beyond.any()
    else:
        np.testing.assert_array_equal(steps.kept[:, 0], [0, 1, 0, 1])
        np.testing.assert_array_equal(steps.beyond[:, 0], [0, 7, 0, 7])


def test_what_is_no_environment_of_gymnax():
    with pytest.raises(TypeError, match="environment must have gymnax's function reset_env"):
        rl.from_gymnax(object())


@pytest.mark.slow
def test_gymnax_itself():
    gymnax = pytest.importorskip("gymnax")
    inner, params = gymnax.make("CartPole-v1")
    made = rl.from_gymnax(inner, params)
    act = lambda seen, key: (jnp.ones(3, jnp.int32), seen)  # noqa: E731
    running = rl.begin(made, made.task, KEY, 3)
    _, steps, metrics = jax.jit(lambda running: rl.rollout(made, made.task, act, running, 30, KEY))(
        running
    )
    assert steps.observation.shape == (30, 3, 4)
    # Pushed to one side, a pole falls within a dozen steps, each of which is worth 1.
    assert 6 < metrics["episode_length"] < 13
    np.testing.assert_allclose(metrics["episode_return"], metrics["episode_length"])


class Walked(NamedTuple):
    """The parts of a state of brax that are read, and where the walker is."""

    place: jax.Array
    obs: dict[str, jax.Array]
    reward: int
    done: jax.Array
    info: dict[str, jax.Array]


class Walker:
    """Counts up by actions of 0 or 1 and ends at 3; brax's functions, some of its wrappers' marks."""

    def __init__(self, limit=None, restarts=False):
        self.limit, self.restarts = limit, restarts

    def reset(self, key):
        return self._at(jnp.int32(0))

    def step(self, state, action):
        return self._at(state.place + action)

    def _at(self, place):
        info = {"first_obs": place} if self.restarts else {}
        late = place == self.limit
        if self.limit is not None:
            info["truncation"] = late.astype(jnp.float32)
        end = ((place >= 3) | late).astype(jnp.float32)
        return Walked(place, {"state": jnp.full(1, place, jnp.float32)}, 1, end, info)


@pytest.mark.parametrize("limit", [None, 2])
def test_brax_s_functions(limit):
    made = rl.from_brax(Walker(limit), lambda state: state.obs["state"])
    act = lambda seen, key: (jnp.ones(2, jnp.int32), seen[:, 0])  # noqa: E731
    running = rl.begin(made, (), KEY, 2)
    _, steps, _ = rl.rollout(made, (), act, running, 4, KEY, value=lambda seen: seen[:, 0] + 5)
    seen, beyond = ([0, 1, 2, 0], [0, 0, 0, 0]) if limit is None else ([0, 1, 0, 1], [0, 7, 0, 7])
    np.testing.assert_array_equal(steps.kept[:, 0], seen)
    np.testing.assert_array_equal(steps.beyond[:, 0], beyond)
    np.testing.assert_array_equal(steps.reward, 1.0)


def test_what_is_no_environment_of_brax():
    with pytest.raises(TypeError, match="environment must have brax's function reset"):
        rl.from_brax(object())
    with pytest.raises(ValueError, match="must not begin its episodes anew by itself"):
        rl.begin(rl.from_brax(Walker(restarts=True)), (), KEY, 2)


def test_brax_itself():
    """Its task "fast": a step with an action above 0 makes it faster by 0.02."""
    envs = pytest.importorskip("brax.envs")
    made = rl.time_limit(rl.from_brax(envs.get_environment("fast")), 10)
    act = lambda seen, key: (jnp.ones((3, 1)), seen)  # noqa: E731
    running = rl.begin(made, (), KEY, 3)
    _, steps, metrics = jax.jit(lambda running: rl.rollout(made, (), act, running, 20, KEY))(
        running
    )
    assert metrics["episodes"] == 6
    np.testing.assert_allclose(steps.observation[:10, 0, 1], 0.02 * np.arange(10), atol=1e-6)
    with pytest.raises(ValueError, match="must not begin its episodes anew by itself"):
        rl.begin(rl.from_brax(envs.create("fast")), (), KEY, 2)
