"""PDPPO: its rules against sums written out, its update against a loss written out, and reductions."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from lakes import GAMMA, kernel, of_actions, of_uniform, small
from tasks import assert_trees_close

import dflax as dx
from dflax import rl

KEY = jax.random.key(0)
ITEMS, MACHINES, HORIZON, WINDOWS = 2, 2, 3, 2
INSTANCE = rl.random_instance(0, ITEMS, MACHINES)
ENVIRONMENT = rl.time_limit(rl.lot_sizing(INSTANCE), HORIZON)
NETWORKS = rl.decision_networks(ITEMS + 1, choices=MACHINES, features=(4, 4))
SEEN = jnp.zeros(ITEMS)
RATE = 1e-3
SIZES = {"environments": 2, "steps": HORIZON, "windows": WINDOWS}
OPTIMIZER = rl.separate_optimizers(optax.sgd(RATE), optax.sgd(RATE))
PARAMS = NETWORKS.init(KEY, SEEN, SEEN)


def rounds(learner, count=1, params=PARAMS, task=None, key=KEY):
    """Some rounds of one agent in one program, from its beginning."""

    @jax.jit
    def all_of_them(params, task, key):
        def one(carry, key):
            params, memory, metrics = learner.learn(key, *carry)
            return (params, memory), metrics

        memory = learner.init(key, params, task)
        return jax.lax.scan(one, (params, memory), jax.random.split(key, count))

    (params, memory), metrics = all_of_them(params, learner.task if task is None else task, key)
    return params, memory, metrics


def record(steps=200, environments=3, seed=0, **changes):
    """Random steps with a few ends."""
    draw = np.random.default_rng(seed)
    made = {
        name: draw.normal(size=(steps, environments)).astype(np.float32)
        for name in ("decided", "chance", "value", "post_value")
    }
    made["end"] = (draw.random((steps, environments)) < 0.1).astype(np.float32)
    made["beyond"] = made["end"] * 2
    made["counted"] = np.ones((steps, environments), np.float32)
    made["last"] = draw.normal(size=environments).astype(np.float32)
    return rl.Record(**{**made, **changes})


def returns(rewards, ends):
    found, later = np.zeros(rewards.shape), np.zeros(rewards.shape[1])
    for t in reversed(range(len(rewards))):
        later = found[t] = rewards[t] + GAMMA * (1.0 - ends[t]) * later
    return found


def test_the_two_critics_learn_the_parts_of_the_return():
    steps = record()
    made = rl.larger_part().estimate(steps, GAMMA)
    chance, decided = returns(steps.chance, steps.end), returns(steps.decided, steps.end)
    np.testing.assert_allclose(made.target, chance, atol=1e-5)
    np.testing.assert_allclose(made.post_target, decided, atol=1e-5)
    whole = returns(steps.chance + steps.decided, steps.end)
    np.testing.assert_allclose(made.target + made.post_target, whole, atol=1e-5)
    pre, post = chance - steps.value, decided - steps.post_value
    np.testing.assert_allclose(made.advantage, np.maximum(pre, post), atol=1e-5)
    np.testing.assert_allclose(made.metrics["post_share"], (post > pre).mean(), rtol=1e-6)
    ppo = rl.state_critic().estimate(steps, GAMMA)
    np.testing.assert_allclose(ppo.advantage, whole - steps.value, atol=1e-5)
    assert ppo.post_target is None
    one = rl.post_critic().estimate(steps, GAMMA)
    np.testing.assert_allclose(one.post_target, (whole - whole.mean()) / whole.std(), atol=1e-4)
    np.testing.assert_allclose(one.advantage, one.post_target - steps.post_value, atol=1e-5)
    assert one.target is None


def test_without_rewards_of_decisions_the_advantage_is_never_below_zero():
    zeros = np.zeros((200, 3), np.float32)
    steps = record(decided=zeros, post_value=zeros)
    made = rl.larger_part().estimate(steps, GAMMA)
    np.testing.assert_array_equal(made.post_target, 0)
    pre = returns(steps.chance, steps.end) - steps.value
    np.testing.assert_allclose(made.advantage, np.maximum(pre, 0), atol=1e-5)
    alone = rl.larger_part(use_post=False).estimate(steps, GAMMA)
    ppo = rl.state_critic().estimate(steps, GAMMA)
    np.testing.assert_allclose(alone.advantage, ppo.advantage, atol=1e-6)
    np.testing.assert_allclose(alone.target, ppo.target, atol=1e-6)


def test_the_maximum_is_optimistic_by_as_much_as_is_known():
    """Of two independent standard normal parts the mean is 1/sqrt(pi) = 0.5642."""
    zeros = np.zeros((100_000, 3), np.float32)
    steps = record(100_000, end=zeros, value=zeros, post_value=zeros)
    made = rl.larger_part().estimate(steps, 0.0)
    np.testing.assert_allclose(made.advantage.mean(), 1 / np.sqrt(np.pi), atol=0.006)
    np.testing.assert_allclose(made.metrics["post_share"], 0.5, atol=0.005)


@pytest.mark.parametrize("decay", [0.0, 0.7, 1.0])
def test_returns_through_both_critics(decay):
    steps = record(20)
    made = rl.noiseless(decay).estimate(steps, GAMMA)
    target, post_target = np.zeros((2, 20, 3))
    later, value = steps.last, steps.last
    for t in reversed(range(20)):
        going = GAMMA * (1 - steps.end[t])
        post_target[t] = (
            steps.chance[t]
            + going * (decay * later + (1 - decay) * value)
            + GAMMA * steps.beyond[t]
        )
        target[t] = steps.decided[t] + decay * post_target[t] + (1 - decay) * steps.post_value[t]
        later, value = target[t], steps.value[t]
    np.testing.assert_allclose(made.target, target, atol=1e-5)
    np.testing.assert_allclose(made.post_target, post_target, atol=1e-5)
    advantage = steps.decided + steps.post_value - steps.value
    np.testing.assert_allclose(made.advantage, advantage, atol=1e-6)


class Uniform(NamedTuple):
    """Where an action is drawn among all alike, in a lake."""

    steps: rl.Steps
    cell: np.ndarray
    arrived: np.ndarray
    after: np.ndarray


@pytest.fixture(scope="module")
def uniform():
    environment = rl.frozen_lake(small())

    @jax.jit
    def some(key):
        def act(seen, key):
            return jax.random.randint(key, seen.shape[:1], 0, 4), ()

        begun = rl.begin(environment, environment.task, key, 400)
        after, steps, _ = rl.rollout(
            environment, environment.task, act, begun, 40, key, decisions=True
        )
        return steps, jax.vmap(lambda s: environment.observe(environment.task, s))(after.state)

    steps, last = some(KEY)
    cell = np.asarray(steps.observation.argmax(-1))
    after = np.concatenate([cell[1:], np.asarray(last.argmax(-1))[None]])
    return Uniform(steps, cell, np.asarray(steps.decided.observation.argmax(-1)), after)


def test_with_exact_critics_the_noiseless_advantage_is_exact_whatever_chance_does(uniform):
    lake = small()
    value, post_value = of_uniform(lake)
    law, rewards, ends = kernel(lake)
    np.testing.assert_allclose(post_value, rewards + GAMMA * law @ np.where(ends, 0, value))
    steps = uniform.steps
    made = rl.Record(
        decided=steps.decided.reward,
        chance=steps.reward - steps.decided.reward,
        value=value[uniform.cell],
        post_value=post_value[uniform.arrived],
        end=steps.end,
        beyond=np.zeros(steps.reward.shape),
        counted=steps.counted,
        last=np.zeros(400),
    )
    exact = (of_actions(post_value) - value[:, None])[uniform.cell, steps.action]
    advantage = np.asarray(rl.noiseless().estimate(made, GAMMA).advantage)
    np.testing.assert_allclose(advantage, exact, atol=1e-5)
    # PPO's advantage of one step has the same mean, and the noise of what chance does.
    following = np.where(steps.end, 0, value[uniform.after])
    ppo = np.asarray(steps.reward) + GAMMA * following - value[uniform.cell]
    for cell, action in ((0, 1), (4, 2), (7, 0)):
        same = (uniform.cell == cell) & (np.asarray(steps.action) == action)
        noise = ppo[same].std()
        assert np.ptp(advantage[same]) < 1e-5
        assert noise > 0.02
        assert abs(ppo[same].mean() - exact[same][0]) < 4 * noise / np.sqrt(same.sum())


@pytest.fixture(scope="module")
def once():
    """A round of one epoch with plain gradient descent."""
    learner = rl.pdppo(ENVIRONMENT, NETWORKS, OPTIMIZER, epochs=1, entropy_weight=0.3, **SIZES)
    return rounds(learner)


@pytest.mark.slow
def test_an_update_is_a_step_along_a_loss_written_out(once):
    params, memory, metrics = once
    window = jax.tree.map(lambda leaf: np.asarray(leaf[-1]), rl.in_order(memory.windows))
    ends = window.end.astype(float)
    assert ends[-1].all()
    chance = returns(window.reward - window.decided.reward, ends)
    decided = returns(window.decided.reward, ends)
    before = NETWORKS.value(PARAMS, window.observation)
    post_before = NETWORKS.post_value(PARAMS, window.decided.observation)
    np.testing.assert_allclose(window.kept.value, before, atol=1e-5)
    np.testing.assert_allclose(window.kept.post_value, post_before, atol=1e-5)
    advantage = np.maximum(chance - before, decided - post_before)

    @jax.jit
    @jax.grad
    def loss(params):
        logits = NETWORKS.policy(params, window.observation).logits
        logs = jax.nn.log_softmax(logits)
        taken = jnp.take_along_axis(logs, window.action[..., None], -1)[..., 0]
        entropy = -jnp.sum(jnp.exp(logs) * logs, -1)
        ratio = jnp.exp(taken - window.kept.log_prob)
        errors = (NETWORKS.value(params, window.observation) - chance) ** 2
        others = (NETWORKS.post_value(params, window.decided.observation) - decided) ** 2
        actor = -ratio * advantage[..., None] - 0.3 * entropy
        return actor.mean() + errors.mean() + others.mean()

    expected = jax.tree.map(lambda x, g: x - RATE * g, PARAMS, loss(PARAMS))
    assert_trees_close(params, expected, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(metrics["advantage"][0], advantage.mean(), rtol=1e-4)
    np.testing.assert_allclose(metrics["value_loss"][0], ((before - chance) ** 2).mean(), rtol=1e-4)


@pytest.mark.slow
def test_in_the_first_epoch_the_ratio_is_1(once):
    _, _, metrics = once
    np.testing.assert_allclose(metrics["ratio"], 1, atol=1e-5)
    np.testing.assert_allclose(metrics["clip_fraction"], 0)


@pytest.fixture(scope="module")
def frozen():
    """Three rounds of two epochs with Adam, hidden layers fixed."""
    optimizer = rl.separate_optimizers(optax.adam(0.01), optax.adam(0.02), train_trunk=False)
    return rounds(rl.pdppo(ENVIRONMENT, NETWORKS, optimizer, epochs=2, **SIZES), 3)


@pytest.mark.slow
def test_a_frozen_trunk_stays_as_it_began(frozen):
    params, memory, metrics = frozen
    moved = jax.tree.map(lambda a, b: float(jnp.abs(a - b).max()), params, PARAMS)
    actor = moved["actor"]
    assert max(*actor["Dense_0"].values(), *actor["Dense_1"].values()) == 0
    assert actor["Dense_2"]["kernel"] > 0.01
    assert moved["critic"]["Dense_0"]["kernel"] > 0.01
    assert moved["post_critic"]["Dense_0"]["kernel"] > 0.01
    assert memory.windows.rows.reward.shape == (WINDOWS + 1, HORIZON, 2)
    assert np.asarray(memory.windows.rows.counted).sum() == 3 * HORIZON * 2
    assert np.all(metrics["episodes"] == 2)
    assert np.isfinite(metrics["loss"]).all()


def chance_alone():
    """Nothing that is decided has a known effect or a reward: f is the identity."""

    def noise(task, decided, key):
        reward = jnp.sum(decided[1]) + jax.random.normal(key)
        after = jax.random.normal(key, (ITEMS,))
        return rl.Outcome((after, jnp.zeros(MACHINES)), reward, jnp.bool_(False))

    return rl.two_stage(
        lambda task, key: (jax.random.normal(key, (ITEMS,)), jnp.zeros(MACHINES)),
        lambda task, state, action: ((state[0], action.astype(jnp.float32)), jnp.float32(0)),
        noise,
        lambda task, state: state[0],
    )


@pytest.mark.slow
def test_without_the_post_branch_and_known_rewards_it_is_ppo():
    environment = rl.time_limit(chance_alone(), HORIZON)

    def after(critics):
        learner = rl.pdppo(environment, NETWORKS, OPTIMIZER, critics=critics, epochs=2, **SIZES)
        return rounds(learner, 2)[0]

    ours, ppo = after(rl.larger_part(use_post=False)), after(rl.state_critic())
    assert_trees_close(ours, ppo, rtol=1e-5, atol=1e-6)
    assert float(jnp.abs(ppo["actor"]["Dense_2"]["bias"]).max()) > 0


@pytest.mark.slow
def test_what_is_decided_is_noted_and_is_part_of_the_reward(uniform):
    steps = uniform.steps
    near = rl.frozen_lake(small())
    seen = jax.vmap(lambda c, a: near.post(near.task, skater(c), a))
    decided, gained = seen(uniform.cell.ravel(), steps.action.ravel())
    np.testing.assert_array_equal(decided.cell, uniform.arrived.ravel())
    np.testing.assert_allclose(gained, steps.decided.reward.ravel(), rtol=1e-6)


def skater(cell):
    return rl.Skater(cell, jnp.bool_(False))


@pytest.mark.slow
def test_a_reward_that_is_none_leaves_its_episode_out():
    broken = INSTANCE._replace(lost_cost=np.full(ITEMS, 1e38), capacity=np.full(ITEMS, 1.0))
    task = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), broken)
    learner = rl.pdppo(ENVIRONMENT, NETWORKS, OPTIMIZER, epochs=1, **SIZES)
    params, _, metrics = rounds(learner, task=task)
    assert metrics["dropped"][0] > 0
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(params))


@pytest.mark.slow
def test_clips_and_entropies_are_swept_in_one_program():
    def made(clip, entropy_weight):
        learner = rl.pdppo(
            ENVIRONMENT,
            NETWORKS,
            OPTIMIZER,
            epochs=3,
            clip=clip,
            entropy_weight=entropy_weight,
            **SIZES,
        )
        return rl.alone(learner, 2)

    def begin(algorithm, key):
        return algorithm.init(key, PARAMS)

    source = dx.Population(2)
    swept = dx.sweep(
        made,
        begin,
        source,
        grid={"clip": [1e-4, 0.5], "entropy_weight": [0.0, 3.0]},
        seeds=1,
        key=KEY,
        rounds=2,
    )
    entropy = np.asarray(swept.metrics["entropy"])
    assert entropy.shape[:2] == (2, 2)
    fractions = np.asarray(swept.metrics["clip_fraction"]).reshape(2, 2, -1).mean(-1)
    assert fractions[0].min() > fractions[1].max()
    assert not np.allclose(entropy[0, 0], entropy[0, 1])


KINDS = {
    "alone": lambda learner: rl.alone(learner, 8),
    "federated": lambda learner: rl.federated(learner, 8),
    "on a ring": lambda learner: rl.gossiping(learner, 8, dx.gossip.ring(8)),
}


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_agents_on_eight_devices(kind):
    """Tasks of their own, one device each: as on one device."""
    learner = rl.pdppo(ENVIRONMENT, NETWORKS, OPTIMIZER, epochs=2, **SIZES)
    algorithm = KINDS[kind](learner)
    shares = np.linspace(0.2, 0.6, 8)
    laws = np.stack([rl.binomial_demand(ITEMS, 20, share) for share in shares])
    tasks = jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, (8, *leaf.shape)), learner.task)
    tasks = tasks._replace(demand=jnp.asarray(laws, jnp.float32))
    state = jax.jit(algorithm.init)(KEY, PARAMS, tasks)
    settings = {"rounds": 2, "key": KEY, "progress": False}
    one, told = dx.run(algorithm, state, dx.Population(8), **settings)
    many, also = dx.run(algorithm, state, dx.Population(8), mesh=dx.client_mesh(), **settings)
    assert_trees_close(jax.device_get(one), jax.device_get(many), rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(
        told.metrics["episode_return"], also.metrics["episode_return"], rtol=1e-5
    )
    if kind == "alone":
        final = np.asarray(told.metrics["episode_return"])
        assert len(np.unique(final[-1])) == 8


def test_errors():
    one_stage = rl.environment(
        lambda task, key: jnp.zeros(2),
        lambda task, state, action, key: rl.Outcome(state, 0.0, False),
        lambda task, state: state,
    )
    with pytest.raises(ValueError, match="environment must have two stages"):
        rl.pdppo(one_stage, NETWORKS, OPTIMIZER)
    with pytest.raises(ValueError, match="steps must be an integer >= 1"):
        rl.pdppo(ENVIRONMENT, NETWORKS, OPTIMIZER, steps=0)
    with pytest.raises(TypeError, match="critics"):
        rl.pdppo(ENVIRONMENT, NETWORKS, OPTIMIZER, critics=rl.larger_part)
    running = rl.begin(one_stage, (), KEY, 2)
    with pytest.raises(ValueError, match="environment must have two stages"):
        rl.rollout(one_stage, (), lambda seen, key: (0, ()), running, 2, KEY, decisions=True)
