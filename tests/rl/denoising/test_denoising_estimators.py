"""Policy gradients on samplers against closed forms, and against what DDPO's own code computed."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import dflax as dx
from dflax import generative as gen
from dflax import rl
from dflax.rl.denoising.history import History, written
from dflax.rl.denoising.policy import log_probs_at, sampled

KEY = jax.random.key(0)
ASCENT = optax.sgd(1.0)
BETAS = np.linspace(0.01, 0.2, 10)
CHAIN = gen.discrete(BETAS)


def constant(params, noised):
    """A mean that depends on nothing."""
    return jnp.broadcast_to(params, noised.x.shape)


def to_the_prediction(field, noised, earlier, key):
    """One step to N(prediction, 1)."""
    return gen.Gaussian(field(noised, key), jnp.ones(noised.x.shape[0]))


ONE_STEP = rl.denoising_policy(
    constant, gen.Step(to_the_prediction, random=True, floored=True), np.array([1.0, 0.5]), (1,)
)


def estimates(algorithm, params, keys, conditions=None):
    """What single rounds with SGD(1.0) add to the parameters, one for each key."""
    conditions = jnp.zeros(1) if conditions is None else conditions
    source = dx.Population(1)

    @jax.jit
    def changes(keys, params):
        def one(key):
            state, _ = algorithm.step(
                algorithm.init(KEY, params, conditions), source.draw(key, jnp.int32(0))
            )
            return jax.tree.map(jnp.subtract, state.server.params, params)

        return jax.lax.map(one, keys, batch_size=512)

    return changes(keys, params)


@pytest.mark.some(1)
@pytest.mark.parametrize(
    ("make", "variance"),
    [
        (lambda r: rl.reinforce(ONE_STEP, r, ASCENT, prompts=4), (3.0**2 + 2.0) / 4),
        (lambda r: rl.rloo(ONE_STEP, r, ASCENT, prompts=1, samples=4), 2.0 / 3.0),
    ],
    ids=["REINFORCE", "RLOO"],
)
def test_a_gaussian_of_one_step_has_the_variance_of_the_formula(make, variance):
    def reward(x, prompts):
        return 3.0 + x[:, 0]

    found = np.asarray(estimates(make(reward), jnp.zeros(1), jax.random.split(KEY, 8192)))
    assert found.mean() == pytest.approx(1.0, abs=4 * (variance / len(found)) ** 0.5)
    assert found.var() == pytest.approx(variance, rel=0.12)


# A linear network makes a linear-Gaussian sampler: mean and variance are carried through in closed form.
LINEAR = gen.ddim(CHAIN, gen.targets.noise, eta=1.0, least=0.3)
LINEAR_TIMES = np.array([1.0, 0.6, 0.3, 0.0], np.float32)
WHERE, WANTED = {"w": 0.4, "u": 0.2}, 1.5


def linear(params, noised):
    return params["w"] * noised.x + params["u"]


def expected_reward(params):
    """J = -((m - y)^2 + v), by hand in the equations of DDIM."""
    powers = jnp.concatenate([jnp.ones(1), jnp.cumprod(1 - jnp.asarray(BETAS))])
    m, v = 0.0, 1.0
    for now, later in ((10, 6), (6, 3), (3, 0)):
        a, b = powers[now], powers[later]
        sigma = jnp.maximum(jnp.sqrt((1 - b) / (1 - a) * (1 - a / b)), 0.3)
        kept = jnp.sqrt(jnp.maximum(1 - b - sigma**2, 0.0))
        of_noise = kept - jnp.sqrt(b * (1 - a) / a)
        slope = jnp.sqrt(b / a) + params["w"] * of_noise
        m, v = slope * m + params["u"] * of_noise, slope**2 * v + sigma**2
    return -((m - WANTED) ** 2 + v)


@pytest.fixture(scope="module")
def closed_form():
    with jax.enable_x64():
        where = jax.tree.map(jnp.float64, WHERE)
        slope = jax.grad(expected_reward)(where)
        return jax.tree.map(float, slope), float(expected_reward(where))


MANY = {"prompts": 16384}


@pytest.mark.some(1)
@pytest.mark.parametrize(
    ("make", "scale"),
    [
        (lambda p, r: rl.reinforce(p, r, ASCENT, prompts=65536), 1.0),
        (lambda p, r: rl.loop(p, r, ASCENT, **MANY, samples=4, minibatches=1), 1.0),
        (lambda p, r: rl.rloo(p, r, ASCENT, **MANY, samples=4), 1.0),
        (lambda p, r: rl.reinforce(p, r, ASCENT, prompts=65536, baseline=True), 1.0),
        (lambda p, r: rl.ddpo(p, r, ASCENT, prompts=65536, bound=None, minibatches=1), None),
    ],
    ids=["REINFORCE", "LOOP", "RLOO", "REINFORCE+BC", "PPO"],
)
def test_estimators_agree_with_a_linear_gaussian_sampler(make, scale, closed_form):
    slope, value = closed_form
    told = []

    def reward(x, prompts):
        return -((x[:, 0] - WANTED) ** 2)

    policy = rl.denoising_policy(linear, LINEAR, LINEAR_TIMES, (1,))
    algorithm = make(policy, reward)
    params = jax.tree.map(jnp.float32, WHERE)
    state = algorithm.init(KEY, params, jnp.zeros(1))
    state, metrics = jax.jit(algorithm.step)(state, dx.Population(1).draw(KEY, jnp.int32(0)))
    assert float(metrics["reward"]) == pytest.approx(value, rel=0.03)
    # Normalised rewards are divided by their deviation; a mean over time steps is the sum over T.
    deviation = float(jnp.hypot(metrics["reward_within"], metrics["reward_between"]))
    for name, wanted in slope.items():
        found = 3 * float(state.server.params[name] - params[name])
        told.append(found * (deviation if scale is None else scale))
        assert told[-1] == pytest.approx(wanted, abs=0.06 * max(map(abs, slope.values())))


def test_the_noise_of_ddim_is_that_of_the_chains_posterior():
    powers = np.concatenate([[1.0], np.cumprod(1 - BETAS)])
    step = gen.ddim(CHAIN, gen.targets.noise, eta=1.0)
    x = jnp.zeros((9, 1))
    now = np.arange(2, 11)
    law = step.move(
        lambda noised, key: noised.x, gen.Noised(x, jnp.asarray(now / 10.0)), (now - 1) / 10.0, KEY
    )
    posterior = BETAS[now - 1] * (1 - powers[now - 1]) / (1 - powers[now])
    np.testing.assert_allclose(law.deviation**2, posterior, rtol=2e-4)


# Numbers from ddpo_pytorch at commit 1958463 in float64: betas as above, 5 steps of inference.
X = np.array([[0.3, -1.2, 0.5], [0.9, 0.1, -0.4]])
NOISE = np.array([[0.2, -0.7, 1.1], [-0.3, 0.6, 0.05]])
NEXT = np.array([[0.1, -0.9, 0.8], [0.95, 0.0, -0.5]])
THEIRS = [
    ([10, 8], [8, 6], 1.0, [-0.6531857659638955, -0.1224804670260542]),
    ([10, 8], [8, 6], 0.5, [-0.7748122745372289, 0.4810381917714417]),
    ([6, 4], [4, 2], 1.0, [-0.6175520478356563, 0.6878064389722734]),
    ([2, 2], [1, 1], 1.0, [-4.807666136849457, 1.3542037591126406]),
    ([2, 2], [1, 1], 0.5, [-20.980440569465273, 1.4452052240039226]),
]
THEIR_SLOPE = [
    [0.21195565482014309, -0.22628883726688792, -0.9038065683668297],
    [0.37549721841090444, -0.31015402506052825, 0.1966148216661935],
]


def of_ddpo(noise, now, later, eta):
    """Log-probabilities of one step, as means over entries."""
    times = np.asarray([now[0], later[0]]) / 10.0
    path = gen.discrete(BETAS)
    step = gen.ddim(path, gen.targets.noise, eta=eta)
    found = []
    for row in range(2):
        times = np.asarray([now[row], later[row]]) / 10.0
        policy = rl.denoising_policy(constant, step, times, (3,), logprob_reduction="mean")
        states = jnp.stack([X[row], NEXT[row]])[:, None]
        numbers = jnp.zeros((1, 1), int)
        found.append(log_probs_at(policy, noise[row], states, numbers, jnp.zeros(1))[0, 0])
    return jnp.stack(found)


@pytest.mark.slow
def test_log_probabilities_of_a_step_are_those_of_ddpos_code():
    with jax.enable_x64():
        for now, later, eta, wanted in THEIRS:
            found = of_ddpo(jnp.asarray(NOISE), now, later, eta)
            np.testing.assert_allclose(found, wanted, rtol=1e-9)
        slope = jax.grad(lambda e: of_ddpo(e, [6, 4], [4, 2], 1.0).sum())(jnp.asarray(NOISE))
        np.testing.assert_allclose(slope, THEIR_SLOPE, rtol=1e-9)


NOW = np.array([-1.0, -0.2, -0.7, -1.1, -0.50, -0.9])
OLD = np.array([-1.3, -0.1, -0.4, -1.0, -0.51, -0.92])
ADVANTAGES = np.array([1.0, -1.0, 0.5, -7.0, 6.0, -0.3])


def test_the_clipped_loss_is_that_of_ddpos_code():
    def loss(now):
        advantages = jnp.clip(ADVANTAGES, -5, 5)
        made = rl.clipped(now - OLD, advantages, 0.2)
        return -jnp.mean(made.objective), made.metrics

    with jax.enable_x64():
        (value, metrics), slope = jax.value_and_grad(loss, has_aux=True)(jnp.asarray(NOW))
    assert float(value) == pytest.approx(-0.14759583925631947, rel=1e-9)
    theirs = [0.0, 0.15080623633932658, -0.06173485172347649]
    theirs += [0.7540311816966329, -0.84170847257014, 0.05101006700133778]
    np.testing.assert_allclose(slope, theirs, rtol=1e-9)
    assert float(metrics["clip_fraction"]) == pytest.approx(1 / 3)


def test_the_clipped_loss_is_that_of_rlax():
    try:
        import rlax
    except (ImportError, AttributeError) as error:
        # Its stable TensorFlow Probability does not know the newest jax.
        pytest.skip(f"rlax is not here, or not for this jax: {error}")
    theirs = jax.value_and_grad(
        lambda now: rlax.clipped_surrogate_pg_loss(jnp.exp(now - OLD), jnp.asarray(ADVANTAGES), 0.2)
    )
    ours = jax.value_and_grad(lambda now: -jnp.mean(rl.clipped(now - OLD, ADVANTAGES, 0.2)[0]))
    with jax.enable_x64():
        found, wanted = ours(jnp.asarray(NOW)), theirs(jnp.asarray(NOW))
    np.testing.assert_allclose(found[0], wanted[0], rtol=1e-6)
    np.testing.assert_allclose(found[1], wanted[1], rtol=1e-6)


@pytest.mark.parametrize(("advantage", "value", "slope"), [(1.0, 1.2, 0.0), (-1.0, -1.3, -1.3)])
def test_a_ratio_beyond_the_range_is_cut_where_it_would_gain(advantage, value, slope):
    def objective(log_ratio):
        return rl.clipped(log_ratio, jnp.float32(advantage), 0.2).objective

    found, moved = jax.value_and_grad(objective)(jnp.log(jnp.float32(1.3)))
    assert float(found) == pytest.approx(value, rel=1e-6)
    assert float(moved) == pytest.approx(slope, rel=1e-6)


def test_one_is_left_out_of_each_group():
    np.testing.assert_allclose(rl.leave_one_out(np.array([1.0, 2.0, 6.0])), [-3, -1.5, 4.5])
    rewards = np.random.default_rng(0).normal(size=(5, 4)).astype(np.float32)
    found = np.asarray(rl.leave_one_out(rewards))
    np.testing.assert_allclose(found.sum(1), 0.0, atol=1e-5)
    by_hand = [[r[k] - np.delete(r, k).mean() for k in range(4)] for r in rewards]
    np.testing.assert_allclose(found, by_hand, atol=1e-6)
    there = np.array([1.0, 0.0, 1.0, 1.0], np.float32)
    missing = np.asarray(rl.leave_one_out(rewards, np.broadcast_to(there, (5, 4))))
    np.testing.assert_allclose(
        missing[:, [0, 2, 3]], rl.leave_one_out(rewards[:, [0, 2, 3]]), atol=1e-6
    )
    alone = rl.leave_one_out(rewards, np.broadcast_to(np.eye(4, dtype=np.float32)[0], (5, 4)))
    np.testing.assert_array_equal(alone[:, 0], 0.0)


def test_a_prompts_history_is_a_queue():
    size, least = 4, 3
    rule = rl.baselines.prompt_statistics(size, least)
    memory, apply = rule.init(3), jax.jit(rule.apply)
    rng = np.random.default_rng(1)
    queues: list[list[float]] = [[], [], []]
    for _ in range(6):
        prompts = rng.integers(3, size=5)
        rewards = rng.normal(size=(5, 2)).astype(np.float32)
        there = (rng.random((5, 2)) < 0.8).astype(np.float32)
        found, counted, memory = apply(memory, rewards * there, there, prompts)
        np.testing.assert_array_equal(counted, there)
        batch = rewards[there > 0]
        for prompt, row, known in zip(prompts, rewards, there, strict=True):
            queues[prompt] = (queues[prompt] + [r for r, k in zip(row, known, strict=True) if k])[
                -size:
            ]
        for place, prompt in enumerate(prompts):
            own = queues[prompt] if len(queues[prompt]) >= least else batch
            wanted = (rewards[place] - np.mean(own)) / (np.std(own) + 1e-6)
            kept = there[place] > 0
            np.testing.assert_allclose(np.asarray(found)[place][kept], wanted[kept], rtol=2e-4)


def test_of_more_rewards_than_a_history_holds_the_last_ones_stay():
    empty = History(jnp.zeros((2, 3)), jnp.zeros(2, jnp.int32))
    found = written(empty, jnp.arange(7.0), jnp.ones(7, bool), jnp.zeros(7, jnp.int32))
    assert sorted(np.asarray(found.rewards[0]).tolist()) == [4.0, 5.0, 6.0]
    np.testing.assert_array_equal(found.rewards[1], 0.0)
    np.testing.assert_array_equal(found.written, [7, 0])


def test_recomputed_log_probabilities_are_those_of_sampling_with_guidance():
    def model(params, noised):
        return jnp.tanh(noised.x @ params + noised.condition[:, None] + noised.time[:, None])

    step = gen.ddim(CHAIN, gen.targets.noise, eta=1.0, least=0.1, clip=3.0)
    policy = rl.denoising_policy(model, step, gen.grid(5), (2,), guidance=3.0, null=0.0)
    params, condition = jnp.eye(2), jnp.arange(4.0)

    @jax.jit
    def both(params):
        drawn = sampled(policy, params, condition, 4, KEY)
        numbers = jnp.array([[4, 1, 0, 2], [3, 3, 2, 0]])
        again = log_probs_at(policy, params, drawn.states, numbers, condition)
        return again, drawn.log_probs[numbers, jnp.arange(4)]

    np.testing.assert_allclose(*both(params), rtol=1e-4, atol=1e-4)
