"""Rounds of LOOP and its kin: by hand in NumPy, with missing rewards, adapters, clients and devices."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import dflax as dx
from dflax import generative as gen
from dflax import rl

KEY = jax.random.key(3)
STEP = gen.ddim(gen.discrete(np.linspace(0.01, 0.2, 10)), gen.targets.noise, eta=1.0, least=0.1)
SHIFTS = np.array([0.0, 4.0, -2.0], np.float32)


def network(params, noised):
    """A perceptron that reads the prompt."""
    seen = jnp.concatenate([noised.x, noised.time[:, None], noised.condition], axis=1)
    return jnp.tanh(seen @ params["first"]["kernel"]) @ params["second"]["kernel"]


PARAMS = {
    "first": {"kernel": 0.3 * jax.random.normal(jax.random.key(1), (6, 8))},
    "second": {"kernel": 0.3 * jax.random.normal(jax.random.key(2), (8, 2))},
}
PROMPTS = jnp.eye(3)
POLICY = rl.denoising_policy(network, STEP, gen.grid(4), (2,), logprob_reduction="mean")


def close(x, prompts):
    return 1.0 - jnp.abs(x[:, 0] - prompts)


def rolled(algorithm, rounds=1, params=PARAMS, clients=1, local_steps=1, mesh=None, **given):
    state = algorithm.init(KEY, params, PROMPTS, **given)
    source = dx.Population(clients, local_steps=local_steps)
    run = jax.jit(lambda s, f: dx.rollout(algorithm, s, f, KEY, rounds))
    if mesh is None:
        return run(state, source)
    with jax.set_mesh(mesh):
        return run(state, source)


def same(one, other, **tolerances):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, **tolerances), one, other)


# One step to N(theta_c, 1): what a round does is written out below.


def constant(params, noised):
    return jnp.broadcast_to(params, noised.x.shape)


ONE_STEP = rl.denoising_policy(
    constant,
    gen.Step(
        lambda field, noised, earlier, key: gen.Gaussian(
            field(noised, key), jnp.ones(noised.x.shape[0])
        ),
        random=True,
        floored=True,
    ),
    np.array([1.0, 0.5]),
    (1,),
)


def by_hand(x, rewards, rate, epochs, clip):
    """LOOP on N(theta, 1) from theta = 0 with one minibatch, NaN left out."""
    theta, there = 0.0, np.isfinite(rewards)
    advantages = np.zeros_like(x)
    counted = np.zeros_like(x)
    for group in range(len(x)):
        for k in range(x.shape[1]):
            others = [j for j in range(x.shape[1]) if j != k and there[group, j]]
            if there[group, k] and others:
                counted[group, k] = 1.0
                advantages[group, k] = rewards[group, k] - rewards[group, others].mean()
    for _ in range(epochs):
        ratio = np.exp(-0.5 * (x - theta) ** 2 + 0.5 * x**2)
        cut = ((ratio > 1 + clip) & (advantages > 0)) | ((ratio < 1 - clip) & (advantages < 0))
        slope = counted * np.where(cut, 0.0, ratio * advantages * (x - theta))
        theta += rate * slope.sum() / counted.sum()
    return theta


@pytest.mark.some(1)
@pytest.mark.parametrize(
    ("clip", "missing"), [(0.1, 0), (1e6, 0), (0.1, 3)], ids=["clipped", "not clipped", "NaN"]
)
def test_a_round_of_loop_is_that_of_the_equations(clip, missing):
    told = []

    def reward(x, prompts):
        found = (SHIFTS[prompts] + np.sin(3 * x[:, 0])).astype(np.float32)
        found[:missing] = np.nan
        told.append((x[:, 0].astype(np.float64), found.astype(np.float64)))
        return found

    algorithm = rl.loop(
        ONE_STEP,
        rl.black_box(reward),
        optax.sgd(0.5),
        **{"prompts": 3, "samples": 4, "clip": clip, "minibatches": 1, "epochs": 3},
    )
    state, metrics = rolled(algorithm, params=jnp.zeros(1))
    x, rewards = (column.reshape(3, 4) for column in told[-1])
    wanted = by_hand(x, rewards, 0.5, 3, clip)
    np.testing.assert_allclose(float(state.server.params[0]), wanted, rtol=2e-5)
    # The last of a group of three that are missing has nobody to be compared with.
    assert float(metrics["samples_dropped"][0]) == (4 if missing else 0)
    assert float(metrics["reward_calls"][0]) == 12
    np.testing.assert_allclose(metrics["reward"][0], np.nanmean(rewards), rtol=1e-5)


@pytest.mark.slow
def test_the_first_minibatch_of_loop_is_rloos_step():
    options = {"prompts": 4, "samples": 4}
    one, metrics = rolled(
        rl.loop(POLICY, close, optax.sgd(1.0), minibatches=1, steps_at_once=2, **options)
    )
    other, _ = rolled(rl.rloo(POLICY, close, optax.sgd(1.0), steps_at_once=4, **options))
    moved = jax.tree.map(jnp.subtract, one.server.params, PARAMS)
    assert float(optax.tree.norm(moved)) > 1e-3
    same(one.server.params, other.server.params, rtol=1e-4, atol=1e-6)
    assert float(metrics["clip_fraction"][0]) == 0.0
    assert abs(float(metrics["ratio"][0]) - 1) < 1e-5


@pytest.mark.some(1)
@pytest.mark.parametrize(("name", "moves"), [("loop", False), ("ddpo", True), ("reinforce", True)])
def test_a_constant_of_a_prompt_changes_leave_one_out_alone(name, moves):
    @jax.jit
    def ended(scale):
        def reward(x, prompts):
            return close(x, prompts) + scale * jnp.asarray(SHIFTS)[prompts]

        options = {"prompts": 4, "samples": 4, "steps_at_once": 4}
        algorithm = getattr(rl, name)(POLICY, reward, optax.sgd(0.3), **options)
        state = algorithm.init(KEY, PARAMS, PROMPTS)
        return algorithm.step(state, dx.Population(1).draw(KEY, jnp.int32(0)))[0].server.params

    apart = float(optax.tree.norm(jax.tree.map(jnp.subtract, ended(0.0), ended(1.0))))
    assert float(optax.tree.norm(jax.tree.map(jnp.subtract, ended(0.0), PARAMS))) > 1e-3
    assert apart > 1e-3 if moves else apart < 1e-5


@pytest.mark.slow
def test_chunks_of_time_steps_add_up():
    options = {"prompts": 2, "samples": 4, "minibatches": 2}
    one, other = (
        rolled(rl.loop(POLICY, close, optax.sgd(0.3), steps_at_once=c, **options))[0]
        for c in (1, 4)
    )
    same(one.server.params, other.server.params, rtol=1e-4, atol=1e-6)


def test_a_share_of_the_time_steps_is_drawn_for_each_trajectory():
    from dflax.rl.denoising.updates import Update, chosen_steps

    update = Update(0.2, True, 1, 1, 3, 1)
    chosen = np.asarray(chosen_steps(6, update, 50, KEY)).reshape(3, 50)
    assert all(len(set(column)) == 3 for column in chosen.T)
    assert set(chosen.ravel()) == set(range(6))
    assert len({tuple(sorted(column)) for column in chosen.T}) > 5


@pytest.mark.slow
def test_where_no_reward_arrives_nothing_moves():
    algorithm = rl.loop(
        POLICY, lambda x, c: jnp.full(x.shape[0], jnp.nan), prompts=2, samples=2, steps_at_once=4
    )
    state, metrics = rolled(algorithm, rounds=2)
    same(state.server.params, PARAMS, rtol=0, atol=0)
    assert np.asarray(metrics["samples_dropped"]).tolist() == [4, 4]
    assert np.isnan(np.asarray(metrics["reward"])).all()


@pytest.mark.slow
def test_an_adapters_gradient_is_that_of_the_weights_through_it():
    adapter = dx.models.lora(jax.random.key(9), PARAMS, rank=2)
    algorithm = rl.rloo(POLICY, close, optax.sgd(1.0), prompts=4, samples=4, steps_at_once=4)
    full, _ = rolled(algorithm)
    low, _ = rolled(algorithm, params=adapter, frozen=PARAMS)
    same(low.server.memory.frozen, PARAMS, rtol=0, atol=0)
    for name in PARAMS:
        moved = full.server.params[name]["kernel"] - PARAMS[name]["kernel"]
        own, before = low.server.params[name]["kernel"], adapter[name]["kernel"]
        np.testing.assert_allclose(own.up, before.down.T @ moved, rtol=1e-3, atol=1e-5)
        np.testing.assert_allclose(own.down, before.down, atol=1e-6)


def test_clients_with_private_prompts_are_averaged():
    """Two clients, three local rounds each, written out; nobody draws the other's prompts."""
    told = []

    def reward(x, prompts):
        told.append((x[:, 0].astype(np.float64), prompts))
        return (SHIFTS[prompts] + np.sin((1 + prompts) * x[:, 0])).astype(np.float32)

    algorithm = rl.loop(
        ONE_STEP,
        rl.black_box(reward),
        optax.sgd(0.5),
        **{"prompts": 2, "samples": 3, "clip": 0.1, "minibatches": 1, "clients": 2, "at_once": 2},
    )
    laws = np.array([[1.0, 0, 0], [0, 1.0, 1.0]])
    state, metrics = rolled(algorithm, params=jnp.zeros(1), clients=2, laws=laws)
    x, prompts = told[-1]
    assert set(prompts[:6]) == {0}
    assert set(prompts[6:]) <= {1, 2}
    ends = []
    for own in range(2):
        rows = slice(6 * own, 6 * own + 6)
        rewards = SHIFTS[prompts[rows]] + np.sin((1 + prompts[rows]) * x[rows])
        ends.append(by_hand(x[rows].reshape(2, 3), rewards.reshape(2, 3), 0.5, 1, 0.1))
    np.testing.assert_allclose(float(state.server.params[0]), np.mean(ends), rtol=1e-5)
    assert float(metrics["reward_calls"][0]) == 12


@pytest.mark.slow
def test_a_client_does_as_many_local_rounds_as_its_population_says():
    algorithm = rl.loop(POLICY, close, prompts=2, samples=2, minibatches=2, steps_at_once=4)
    state, metrics = rolled(algorithm, local_steps=3)
    counts = [leaf for leaf in jax.tree.leaves(state.clients.memory.optimizer) if leaf.ndim == 1]
    steps = [int(count[0]) for count in counts if count.dtype == jnp.int32]
    assert steps
    assert set(steps) == {6}
    assert float(metrics["reward_calls"][0]) == 12


@pytest.mark.slow
def test_devices_do_not_matter():
    adapter = dx.models.lora(jax.random.key(9), PARAMS, rank=2)
    algorithm = rl.loop(
        POLICY,
        close,
        optax.sgd(0.3),
        **{"prompts": 2, "samples": 2, "minibatches": 2, "steps_at_once": 4, "clients": 8},
    )
    given = {"params": adapter, "frozen": PARAMS, "clients": 8, "laws": np.ones((8, 3))}
    one, metrics = rolled(algorithm, rounds=2, **given)
    other, again = rolled(algorithm, rounds=2, mesh=dx.client_mesh(), **given)
    same(one.server.params, other.server.params, rtol=1e-4, atol=1e-6)
    same(metrics["reward"], again["reward"], rtol=1e-4)


@pytest.mark.slow
def test_a_sweep_over_clip_ranges_and_rates_is_each_run():
    def factory(clip, rate):
        return rl.loop(POLICY, close, optax.sgd(rate), prompts=2, samples=4, clip=clip)

    grid = {"clip": [0.01, 0.3], "rate": [0.1, 0.5]}
    start = lambda algorithm, key: algorithm.init(key, PARAMS, PROMPTS)  # noqa: E731
    source = dx.Population(1)
    swept = dx.sweep(factory, start, source, grid=grid, key=KEY, rounds=3, progress=False)
    own = jax.random.fold_in(KEY, 0)
    for place, (clip, rate) in enumerate([(0.01, 0.1), (0.01, 0.5), (0.3, 0.1), (0.3, 0.5)]):
        algorithm = factory(clip, rate)
        state, _ = dx.run(
            algorithm, start(algorithm, own), source, rounds=3, key=own, progress=False
        )
        found = jax.tree.map(
            lambda leaf, p=place: leaf.reshape(4, *leaf.shape[3:])[p], swept.states
        )
        same(found.server.params, state.server.params, rtol=1e-3, atol=1e-5)


@pytest.mark.slow
def test_memory_is_that_of_one_chunk_of_time_steps():
    def bytes_of(chunk):
        policy = rl.denoising_policy(wide, STEP, gen.grid(16), (2,))
        algorithm = rl.rloo(policy, close, optax.sgd(0.1), prompts=32, steps_at_once=chunk)
        state = algorithm.init(KEY, big, PROMPTS)
        drawn = dx.Population(1).draw(KEY, jnp.int32(0))
        program = jax.jit(algorithm.step).lower(state, drawn).compile()
        return program.memory_analysis().temp_size_in_bytes

    big = {"first": jnp.zeros((2, 256)), "second": jnp.zeros((256, 2))}

    def wide(params, noised):
        return jnp.tanh(jnp.tanh(noised.x @ params["first"])) @ params["second"]

    assert bytes_of(1) < 0.3 * bytes_of(16)


@pytest.mark.slow
def test_black_boxes_answer_on_many_devices():
    algorithm = rl.loop(
        ONE_STEP,
        rl.black_box(lambda x, prompts: np.sin(x[:, 0]) + prompts),
        optax.sgd(0.3),
        **{"prompts": 2, "samples": 2, "minibatches": 1, "clients": 8},
    )
    given = {"params": jnp.zeros(1), "clients": 8}
    one, _ = rolled(algorithm, **given)
    other, _ = rolled(algorithm, mesh=dx.client_mesh(), **given)
    same(one.server.params, other.server.params, rtol=1e-4)


OPTIONS = {"prompts": 2, "samples": 2}
BAD = [
    (lambda: rl.loop(POLICY, close, samples=1), "samples .*group of one"),
    (lambda: rl.rloo(POLICY, close, samples=1), "samples .*group of one"),
    (lambda: rl.loop(POLICY, close, **OPTIONS, minibatches=3), "minibatches must divide the 4"),
    (lambda: rl.loop(POLICY, close, **OPTIONS, steps_at_once=3), "steps_at_once must divide the 4"),
    (lambda: rl.loop(POLICY, close, **OPTIONS, trained_steps=5), "trained_steps"),
    (lambda: rl.rloo(POLICY, close, **OPTIONS, epochs=2), "clip must be given"),
    (lambda: rl.baselines.prompt_statistics(4, 5), "least"),
    (
        lambda: rl.denoising_policy(network, gen.ddim(gen.cosine(), eta=0.0), gen.grid(4), (2,)),
        "step must draw",
    ),
    (
        lambda: rl.denoising_policy(network, gen.ddim(gen.cosine(), eta=1.0), gen.grid(4), (2,)),
        "times must end above 0",
    ),
    (lambda: rl.denoising_policy(network, STEP, gen.grid(4), (2,), guidance=2.0), "null"),
    (lambda: rolled(rl.loop(POLICY, close, **OPTIONS), laws=np.zeros(3)), "laws"),
    (
        lambda: rolled(rl.loop(POLICY, lambda x, c: x, **OPTIONS, minibatches=1)),
        "reward must return",
    ),
]


@pytest.mark.parametrize(("call", "said"), BAD, ids=[said for _, said in BAD])
def test_bad_input_is_refused_by_name(call, said):
    with pytest.raises((TypeError, ValueError), match=said):
        call()
