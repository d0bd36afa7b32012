"""PolicyFlow against closed forms: its ratio, its regulariser, and PPO where the flow is a shift."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy.linalg

import dflax as dx
from dflax import generative, rl
from dflax.rl import flow
from dflax.rl.flow.policyflow import flow_terms

KEY = jax.random.key(0)
D, S = 2, 3


def linear(params, noised):
    """u = B x + C s + b."""
    return noised.x @ params["B"].T + noised.condition @ params["C"].T + params["b"]


def valued(params, seen):
    return seen @ params["w"]


POLICY = flow.FlowPolicy(linear, valued, lambda params: params["spread"], D)


def weights(seed, scale=0.3):
    rng = np.random.default_rng(seed)
    shapes = {"B": (D, D), "C": (D, S), "b": (D,), "w": (S,), "spread": (D,)}
    return {name: scale * rng.normal(size=shape) for name, shape in shapes.items()}


def samples(params, count=200, steps=4, seed=1):
    """What a rollout of these parameters keeps, with advantages at random."""
    rng = np.random.default_rng(seed)
    seen, start = rng.normal(size=(count, S)), rng.normal(size=(count, D))
    end = np.asarray(POLICY.transported(params, jnp.asarray(seen), jnp.asarray(start), steps))
    action = end + np.exp(params["spread"]) * rng.normal(size=(count, D))
    noted = flow.Carried(start, end, seen @ params["w"])
    advantage, target = rng.normal(size=(2, count))
    return rl.Sample(seen, action, noted, advantage, target, np.ones(count))


def points(batch, t):
    time = np.full(len(batch.action), t) if np.ndim(t) == 0 else t
    x = (1 - time)[:, None] * batch.noted.end + time[:, None] * batch.noted.start
    return generative.Noised(jnp.asarray(x), jnp.asarray(time), jnp.asarray(batch.observation))


@pytest.mark.slow
def test_ratio_is_one_where_nothing_moved_and_its_slope_is_the_policy_gradient():
    with jax.enable_x64(True):
        params = weights(0)
        batch = samples(params)
        at = points(batch, np.random.default_rng(2).uniform(size=200))

        def objective(new):
            terms = flow_terms(POLICY, generative.rectified(), new, params, batch, at)
            return jnp.mean(jnp.exp(terms.log_ratio) * batch.advantage), terms

        (_, terms), slope = jax.value_and_grad(objective, has_aux=True)(params)
        np.testing.assert_array_equal(terms.log_ratio, 0.0)
        np.testing.assert_array_equal(terms.shift, 0.0)
        noise, variance = batch.action - batch.noted.end, np.exp(2 * params["spread"])
        # Towards the action velocities count backwards: hence the sign.
        pull = -batch.advantage[:, None] * noise / variance / 200
        np.testing.assert_allclose(slope["B"], pull.T @ np.asarray(at.x), rtol=1e-9)
        np.testing.assert_allclose(slope["C"], pull.T @ batch.observation, rtol=1e-9)
        np.testing.assert_allclose(slope["b"], pull.sum(0), rtol=1e-9)
        of_spread = batch.advantage @ (noise**2 / variance - 1) / 200
        np.testing.assert_allclose(slope["spread"], of_spread, rtol=1e-9)


def test_mean_ratio_is_one():
    rng = np.random.default_rng(0)
    old, new = np.log([0.5, 0.8]), np.log([0.4, 0.6])
    noise = np.exp(old) * rng.normal(size=(400_000, 2))
    shift = np.broadcast_to([0.2, -0.3], noise.shape)
    found = np.exp(flow.log_shift_ratio(noise, shift, new, old))
    assert abs(found.mean() - 1) < 5 * found.std() / np.sqrt(len(found))
    assert found.std() > 0.3
    # Of another noise than the one it was drawn with it is not.
    assert abs(np.mean(np.exp(flow.log_shift_ratio(1.3 * noise, 0.0 * shift, new, old))) - 1) > 0.05


def shifting(params, noised):
    return jnp.tanh(noised.condition @ params["C"].T + params["b"])


class Still(flow.FlowPolicy):
    """A flow policy that begins at z = 0."""

    def transported(self, params, observation, noise, steps):
        return super().transported(params, observation, 0.0 * noise, steps)


class Second(rl.Gaussian):
    """A Gaussian drawn with the key that PolicyFlow draws n with."""

    def draw(self, key):
        return super().draw(jax.random.split(key)[1])


@pytest.mark.slow
def test_a_shift_from_zero_is_gaussian_ppo_to_the_last_digit():
    with jax.enable_x64(True):
        env = rl.time_limit(rl.goals.multi_goal(), 5)
        start = jax.tree.map(
            jnp.asarray, {**weights(3), "C": np.full((D, 2), 0.1), "w": np.ones(2)}
        )
        policy = Still(shifting, valued, lambda params: params["spread"], D)
        given = {"environments": 8, "steps": 6, "epochs": 2, "minibatches": 3, "clip": 0.05}
        ours = flow.policyflow(
            env, policy, optax.adam(5e-2), brownian_weight=0.0, entropy_weight=0.02, **given
        )

        def networks(params, seen):
            mean = -shifting(params, generative.Noised(None, None, seen))
            deviation = jnp.broadcast_to(params["spread"], mean.shape)
            return Second(mean, deviation), valued(params, seen)

        theirs = rl.ppo(
            env, networks, optax.adam(5e-2), value_clip=None, entropy_weight=0.02, **given
        )
        found = []
        for learner in (ours, theirs):
            memory = learner.init(KEY, start, env.task)
            params, learn = start, jax.jit(learner.learn)
            for number in range(3):
                params, memory, measured = learn(jax.random.key(number), params, memory)
            found.append((params, measured["loss"], measured["clip_fraction"]))
        assert float(found[0][2]) > 0.05
        for a, b in zip(*map(jax.tree.leaves, found), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("steps", [1, 4])
def test_straight_flows_have_the_exact_ratio(steps):
    with jax.enable_x64(True):
        policy = flow.FlowPolicy(shifting, valued, lambda params: params["spread"], D)
        old, new = weights(4), weights(5)
        batch = samples({**old, "B": np.zeros((D, D))})
        start = jnp.asarray(batch.noted.start)
        end = policy.transported(old, jnp.asarray(batch.observation), start, steps)
        batch = batch._replace(noted=batch.noted._replace(end=np.asarray(end)))
        found = flow.interpolation_error(policy, new, old, batch, KEY, flow_steps=steps)
        np.testing.assert_allclose(found.correlation, 1.0, rtol=1e-9)
        assert float(found.relative) < 1e-9
        assert float(found.shift) < 1e-9


@pytest.mark.slow
def test_error_of_the_shift_vanishes_with_the_field():
    rng = np.random.default_rng(6)
    field, change = rng.normal(size=(2, D, D))
    relative = []
    with jax.enable_x64(True):
        for scale in (0.2, 0.1, 0.05):
            params = {**weights(7), "B": -scale * field, "C": np.zeros((D, S)), "b": np.zeros(D)}
            moved = {**params, "B": -scale * field - 1e-6 * change}
            batch = samples(params, steps=64)
            near = np.mean(
                [
                    flow_terms(
                        POLICY, generative.rectified(), moved, params, batch, points(batch, t)
                    ).shift
                    for t in (np.arange(20) + 0.5) / 20
                ],
                axis=0,
            )
            times = (np.arange(200) + 0.5) / 200
            kernel = np.mean(
                [
                    scipy.linalg.expm(scale * field * (1 - t))
                    @ change
                    @ scipy.linalg.expm(scale * field * t)
                    for t in times
                ],
                axis=0,
            )
            exact = 1e-6 * batch.noted.start @ kernel.T
            relative.append(np.linalg.norm(near - exact) / np.linalg.norm(exact))
    assert relative[0] < 0.3
    np.testing.assert_allclose(np.array(relative[:-1]) / relative[1:], 2.0, rtol=0.2)


def test_the_residual_is_what_brownian_motion_leaves_of_a_gaussian():
    """The score of N(1.5, 0.3) under noise, at the paper's time 0.3: -0.676983."""
    with jax.enable_x64(True):
        mean, variance, time, x = 1.5, 0.3, 0.3, 0.8
        total = (1 - time) ** 2 + time**2 * variance
        v = mean + (time * variance - (1 - time)) / total * (x - time * mean)
        score = -(x - time * mean) / total
        np.testing.assert_allclose(score, -0.676983, atol=5e-7)
        at = (jnp.array([[-v]]), jnp.array([[x]]), jnp.array([1 - time]))
        eps = flow.brownian_residual(generative.rectified(), jnp.zeros((1, 1)), *at)
        np.testing.assert_allclose(-eps / (1 - time), score, rtol=1e-12)
        # The residual is 0 for the velocity of Brownian motion, on any path.
        for path in (generative.rectified(), generative.cosine()):
            eps = flow.brownian_residual(path, jnp.zeros((1, 1)), *at)
            brownian = -eps / path.noise(at[2])
            left = flow.brownian_residual(path, brownian, *at)
            np.testing.assert_allclose(left, 0.0, atol=1e-12)


@pytest.mark.slow
def test_the_regulariser_alone_leads_to_a_flow_that_widens():
    env = rl.time_limit(
        rl.environment(
            lambda task, key: jnp.ones(S),
            lambda task, state, action, key: rl.Outcome(state, 0.0, False),
            lambda task, state: state,
        ),
        4,
    )
    start = jax.tree.map(jnp.float32, {**weights(8, 0.1), "w": np.zeros(S)})
    learner = flow.policyflow(
        env,
        POLICY,
        optax.adam(optax.cosine_decay_schedule(3e-2, 960)),
        **{"environments": 32, "steps": 4, "epochs": 4, "minibatches": 2, "flow_steps": 4},
        **{"brownian_weight": 1.0, "entropy_weight": 0.0, "times": generative.uniform()},
    )
    memory = learner.init(KEY, start, ())

    @jax.jit
    def trained(params, memory):
        def one(carry, key):
            params, memory, _ = learner.learn(key, *carry)
            return (params, memory), None

        return jax.lax.scan(one, (params, memory), jax.random.split(KEY, 120))[0][0]

    found = trained(start, memory)
    np.testing.assert_allclose(found["B"], -np.eye(D), atol=0.02)
    np.testing.assert_allclose(found["C"].sum(1) + found["b"], 0.0, atol=0.02)


@pytest.mark.slow
def test_gradients_flow_through_the_new_velocity_alone():
    params, old = weights(9), weights(10)
    batch = samples(old)
    at = points(batch, 0.4)

    def all_terms(noted, action, reference, points):
        given = batch._replace(noted=noted, action=action)
        terms = flow_terms(POLICY, generative.rectified(), params, reference, given, points)
        return jnp.sum(terms.log_ratio) + jnp.sum(terms.residual**2)

    given = jax.tree.map(jnp.asarray, (batch.noted, batch.action, old, at))
    slopes = jax.grad(all_terms, argnums=(0, 1, 2, 3))(*given)
    assert all(not np.any(leaf) for leaf in jax.tree.leaves(slopes))


NETWORKS = flow.FlowActorCritic(D, (8,))
SMALL = {"environments": 4, "steps": 4, "epochs": 2, "minibatches": 2, "flow_steps": 2}


def fresh(key):
    return NETWORKS.init(key, jnp.zeros((1, 2)))["params"]


def learner(weight=0.02, **options):
    env = rl.time_limit(rl.goals.multi_goal(), 4)
    policy = flow.flow_policy(NETWORKS)
    given = {**SMALL, **options}
    return flow.policyflow(env, policy, optax.adam(1e-3), brownian_weight=weight, **given)


@pytest.mark.slow
def test_noise_has_the_entropy_of_its_deviations():
    policy = POLICY._replace(log_deviation=lambda params: jnp.zeros(D))
    env = rl.time_limit(rl.goals.multi_goal(), 4)
    made = flow.policyflow(
        env, policy, optax.sgd(0.0), brownian_weight=0.0, entropy_weight=1.0, **SMALL
    )
    params = {**weights(0), "C": np.zeros((D, 2)), "w": np.zeros(2)}
    params = jax.tree.map(jnp.float32, params)
    _, _, measured = jax.jit(made.learn)(KEY, params, made.init(KEY, params, env.task))
    np.testing.assert_allclose(measured["entropy"], 2.8379, atol=5e-5)
    parts = measured["policy_loss"] + 0.5 * measured["value_loss"] - measured["entropy"]
    np.testing.assert_allclose(measured["loss"], parts, rtol=1e-4)


@pytest.mark.slow
def test_a_flow_begins_as_the_identity_and_sigma_keeps_to_its_bounds():
    policy, params = flow.flow_policy(NETWORKS), fresh(KEY)
    z = jax.random.normal(KEY, (5, D))
    np.testing.assert_array_equal(policy.transported(params, jnp.ones((5, 2)), z, 3), z)
    np.testing.assert_allclose(np.exp(policy.log_deviation(params)), 0.5, rtol=1e-5)
    for extreme, bound in ((-1e3, 0.05), (1e3, 1.0)):
        pushed = {**params, "spread": jnp.full(D, extreme)}
        np.testing.assert_allclose(np.exp(policy.log_deviation(pushed)), bound, rtol=1e-5)


VARIANTS = {
    "several times": {"draws": 2},
    "all times": {"times": generative.uniform()},
    "trigonometric": {"path": generative.cosine()},
    "interpolant": {"interpolant": 0.3},
    "clipped value": {"value_clip": 0.2},
}


@pytest.mark.slow
@pytest.mark.some(1)
@pytest.mark.parametrize("name", VARIANTS)
def test_variants_learn(name):
    made = learner(**VARIANTS[name])
    params = fresh(KEY)
    after, _, measured = jax.jit(made.learn)(KEY, params, made.init(KEY, params, made.task))
    assert np.isfinite(measured["loss"])
    assert not np.array_equal(after["actor"]["Dense_1"]["bias"], params["actor"]["Dense_1"]["bias"])


def test_several_times_average_their_objectives():
    """With one law of times that says a time for each key, two draws are the mean of both."""
    with jax.enable_x64(True):
        params, old = weights(11, 0.2), weights(12, 0.2)
        batch = samples(old)
        objective = []
        for t in (0.25, 0.75):
            at = points(batch, t)
            terms = flow_terms(POLICY, generative.rectified(), params, old, batch, at)
            objective.append(rl.clipped(terms.log_ratio, batch.advantage, 0.2).objective)
        # The mean stands outside of the ratio: that of the mean shift is another number.
        middle = flow_terms(POLICY, generative.rectified(), params, old, batch, points(batch, 0.5))
        other = rl.clipped(middle.log_ratio, batch.advantage, 0.2).objective
        assert np.abs(np.mean(objective, axis=0) - other).max() > 1e-3


@pytest.fixture(scope="module")
def agents():
    algorithm = rl.alone(learner(optax.linear_schedule(0.4, 0.0, 4)), 8)
    return algorithm, algorithm.init(KEY, fresh), dx.Population(8)


@pytest.mark.slow
def test_the_weight_follows_its_schedule_on_one_device_and_on_eight(agents):
    algorithm, state, population = agents
    options = {"rounds": 3, "key": KEY, "progress": False}
    one, history = dx.run(algorithm, state, population, **options)
    np.testing.assert_allclose(history.metrics["brownian_weight"][:, 0], [0.4, 0.3, 0.2], rtol=1e-6)
    state = algorithm.init(KEY, fresh)
    dealt, _ = dx.run(algorithm, state, population, mesh=dx.client_mesh(), **options)
    for a, b in zip(*map(jax.tree.leaves, (one.clients, dealt.clients)), strict=True):
        np.testing.assert_allclose(a, b, rtol=2e-4, atol=2e-5)


@pytest.mark.slow
def test_weights_can_be_swept():
    def made(weight, clip):
        return rl.alone(learner(weight, clip=clip), 1)

    given = {"key": KEY, "rounds": 2, "progress": False}
    start = fresh(KEY)
    found = dx.sweep(
        made,
        lambda algorithm, key: algorithm.init(key, start),
        dx.Population(1),
        grid={"weight": [0.0, 0.5], "clip": [0.2]},
        **given,
    )
    leaves = jax.tree.leaves(found.states.clients.params["actor"])
    assert all(np.isfinite(leaf).all() for leaf in leaves)
    assert max(np.abs(leaf[0] - leaf[1]).max() for leaf in leaves) > 1e-4


WRONG = {
    "deviation": lambda: flow.FlowActorCritic(2, deviation=0.0),
    "least": lambda: flow.FlowActorCritic(2, least=0.0),
    "log_deviation": lambda: flow.log_shift_ratio(
        np.ones(2), np.ones(2), np.full(2, -np.inf), np.zeros(2)
    ),
    "flow_steps": lambda: learner(flow_steps=0),
    "steps": lambda: learner(steps=0),
    "draws": lambda: learner(draws=0),
    "brownian_weight": lambda: learner(-1.0),
    "horizon": lambda: rl.time_limit(rl.goals.multi_goal(), 0),
    "minibatches": lambda: learner(minibatches=3),
}


@pytest.mark.parametrize("argument", WRONG)
def test_wrong_values_are_refused_by_name(argument):
    with pytest.raises(ValueError, match=rf"^{argument} must"):
        WRONG[argument]()
