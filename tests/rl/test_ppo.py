"""PPO, and agents alone, federated and among neighbours."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from corridors import target

import dflax as dx

rl = dx.rl
KEY = jax.random.key(0)
AGENTS = 8
NETWORK = rl.ActorCritic(2, (8,), gaussian=True)
SIZES = {"environments": 4, "steps": 8, "epochs": 2, "minibatches": 2}


def networks(params, seen):
    return NETWORK.apply({"params": params}, seen)


def made(key):
    return NETWORK.init(key, jnp.zeros((1, 2)))["params"]


def learner(clip=0.2, entropy_weight=0.0, rate=1e-2, **sizes):
    return rl.ppo(
        target(),
        networks,
        optax.adam(rate),
        clip=clip,
        entropy_weight=entropy_weight,
        **SIZES | sizes,
    )


def test_one_update_by_hand():
    """One epoch of one batch with SGD: the gradient of the loss as the docstring has it."""
    sizes = {"environments": 3, "steps": 4, "epochs": 1, "minibatches": 1}
    rate, gamma, lam, c_v, c_e = 0.1, 0.9, 0.8, 0.5, 0.01
    agent = rl.ppo(
        target(3),
        networks,
        optax.sgd(rate),
        discount=gamma,
        decay=lam,
        value_weight=c_v,
        entropy_weight=c_e,
        **sizes,
    )
    params, task = made(KEY), jnp.zeros(2)
    memory = agent.init(KEY, params, task)
    after, kept, _ = jax.jit(agent.learn)(KEY, params, memory)

    act_key, _ = jax.random.split(KEY)

    def act(seen, key):
        policy, value = networks(params, seen)
        action = policy.draw(key)
        return action, (policy.log_prob(action), value)

    value = lambda seen: networks(params, seen)[1]  # noqa: E731
    running, steps, _ = rl.rollout(target(3), task, act, memory.running, 4, act_key, value=value)
    log_old, v_old = (np.asarray(x, np.float64) for x in steps.kept)
    # The same rewards, ends and bootstraps, by a loop over time.
    reward = np.asarray(steps.reward + gamma * steps.beyond, np.float64)
    end = np.asarray(steps.end, np.float64)
    later_value = np.asarray(value(running.state.state - task), np.float64)
    advantage, later = np.zeros((4, 3)), np.zeros(3)
    for t in reversed(range(4)):
        delta = reward[t] + gamma * (1 - end[t]) * later_value - v_old[t]
        later = delta + gamma * lam * (1 - end[t]) * later
        advantage[t], later_value = later, v_old[t]
    goal = advantage + v_old
    scaled = (advantage - advantage.mean()) / advantage.std()

    def loss(params):
        policy, v = networks(params, steps.observation)
        ratio = jnp.exp(policy.log_prob(steps.action) - log_old)
        gain = jnp.minimum(ratio * scaled, jnp.clip(ratio, 0.8, 1.2) * scaled)
        return -gain.mean() + c_v * 0.5 * ((v - goal) ** 2).mean() - c_e * policy.entropy().mean()

    wanted = jax.tree.map(lambda p, g: p - rate * g, params, jax.grad(loss)(params))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-6), after, wanted)
    jax.tree.map(np.testing.assert_array_equal, kept.running, running)


def test_steps_that_do_not_count_change_nothing():
    """An episode that is dropped leaves the update that the others make."""

    def broken(task, state, action, key):
        return rl.Outcome(state + 1, jnp.nan, False)

    environment = rl.environment(lambda task, key: jnp.zeros(2), broken, lambda task, state: state)
    agent = rl.ppo(environment, networks, optax.sgd(0.1), entropy_weight=0.0, **SIZES)
    params = made(KEY)
    after, _, metrics = jax.jit(agent.learn)(KEY, params, agent.init(KEY, params, ()))
    jax.tree.map(np.testing.assert_array_equal, after, params)
    assert metrics["dropped"] == 32
    assert metrics["episodes"] == 0


def run(algorithm, params, rounds=2, mesh=None, tasks=None):
    population = dx.Population(AGENTS)
    state = algorithm.init(KEY, params, tasks)
    return dx.run(algorithm, state, population, rounds=rounds, key=KEY, mesh=mesh, progress=False)


ALGORITHMS = {
    "alone": lambda agent: rl.alone(agent, AGENTS),
    "federated": lambda agent: rl.federated(agent, AGENTS),
    "gossiping": lambda agent: rl.gossiping(agent, AGENTS, dx.gossip.ring(AGENTS)),
}


@pytest.mark.slow
@pytest.mark.some(1)
@pytest.mark.parametrize("kind", ALGORITHMS)
def test_eight_devices_are_one(kind):
    algorithm = ALGORITHMS[kind](learner())
    one, history = run(algorithm, made(KEY))
    many, other = run(algorithm, made(KEY), mesh=dx.client_mesh())
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=1e-4),
        (one.server, one.clients),
        (many.server, many.clients),
    )
    np.testing.assert_allclose(history.metrics["loss"], other.metrics["loss"], atol=1e-3)


@pytest.mark.slow
def test_a_server_holds_the_mean_of_what_agents_learned():
    algorithm = rl.federated(learner(), AGENTS)
    state = algorithm.init(KEY, made(KEY))
    round = dx.Population(AGENTS).draw(KEY, 0)
    after, _ = jax.jit(algorithm.step)(state, round)
    own, _, _ = jax.jit(jax.vmap(learner().learn, (0, None, 0)))(
        round.assignments.key, state.server.params, state.clients.memory
    )
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b.mean(0), atol=1e-5),
        after.server.params,
        own,
    )


@pytest.mark.slow
def test_who_is_not_invited_stays():
    algorithm = rl.alone(learner(), AGENTS)
    state = algorithm.init(KEY, made)
    population = dx.Population(AGENTS, participation=dx.participation.uniform(3))
    round = population.draw(KEY, 0)
    after, _ = jax.jit(algorithm.step)(state, round)
    moved = np.asarray(
        jax.tree.leaves(after.clients.params)[0] != jax.tree.leaves(state.clients.params)[0]
    )
    invited = np.isin(np.arange(AGENTS), round.cohort)
    np.testing.assert_array_equal(moved.reshape(AGENTS, -1).any(1), invited)


def test_tasks_are_the_agents_own():
    tasks = jnp.linspace(-1.0, 1.0, AGENTS)[:, None] * jnp.ones(2)
    algorithm = rl.alone(learner(), AGENTS)
    state = algorithm.init(KEY, made, tasks)
    np.testing.assert_array_equal(state.clients.memory.task, tasks)
    with pytest.raises(ValueError, match="tasks must have the structure of the task"):
        algorithm.init(KEY, made, (tasks, tasks))


@pytest.mark.slow
def test_it_is_swept():
    def factory(clip, rate):
        return rl.alone(learner(clip=clip, rate=rate), 2)

    grid = {"clip": [0.01, 0.3], "rate": [1e-2]}
    swept = dx.sweep(
        factory,
        lambda algorithm, key: algorithm.init(key, made(KEY)),
        dx.Population(2),
        grid=grid,
        rounds=2,
        key=KEY,
    )
    losses = np.asarray(swept.metrics["loss"]).reshape(2, -1)
    alone = factory(0.3, 1e-2)
    key = jax.random.fold_in(KEY, 0)
    _, history = dx.run(
        alone, alone.init(key, made(KEY)), dx.Population(2), rounds=2, key=key, progress=False
    )
    np.testing.assert_allclose(losses[1], np.asarray(history.metrics["loss"]).ravel(), atol=1e-4)
    assert not np.allclose(losses[0], losses[1])


@pytest.mark.slow
def test_it_learns():
    algorithm = rl.alone(learner(rate=3e-3, steps=32, epochs=4), AGENTS)
    _, history = run(algorithm, made, rounds=80)
    gained = np.asarray(history.metrics["episode_return"])
    # Standing still at a random place costs about 0.77 a step, 6 in an episode of 8.
    assert (gained[:5].mean(0) < -5.0).all()
    assert (gained[-5:].mean(0) > -3.0).all()


@pytest.mark.parametrize("minibatches", [3, 0])
def test_minibatches_divide_the_steps(minibatches):
    with pytest.raises(ValueError, match="minibatches must"):
        learner(minibatches=minibatches)
