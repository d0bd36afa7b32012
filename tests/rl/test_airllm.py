"""AirLLM as rounds: environment, episodes, rules, fine-tuning, devices, sweeps, what is refused."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from tasks import regression, softmax_loss

import dflax as dx
from dflax import rl
from dflax.rl.airllm.environment import Environment

KEY = jax.random.key(0)
WEIGHTS, DECAYS, SIZES = np.array([1.0, 2.0, 0.5]), np.array([1.0, 3.0, 2.0]), np.array([3, 3, 5])
CLOSED = rl.separable(WEIGHTS, DECAYS, SIZES, 4)
# At 0 dB 1000 parameters fit into a second of 32 kHz.
LINK = rl.radio_link((0.0,), (32e3,))
NARROW = rl.radio_link((-10.0, 10.0), (300.0,))


def air(link=NARROW, **options):
    decoder = rl.diffusion_decoder(
        **({"coarse": 2, "hidden": 4, "steps": 2, "updates": 2, "batch_size": 4} | options),
        capacity=16,
        warm_up=8,
    )
    return rl.airllm(CLOSED, link, decoder=decoder, horizon=4, hidden=4, agents=8)


@pytest.fixture(scope="module")
def run():
    """Four episodes of eight agents."""
    algorithm, source = air(), dx.Population(8)
    start = jax.jit(algorithm.init)(KEY)
    return algorithm, source, start, *dx.run(algorithm, start, source, rounds=4, key=KEY)


@pytest.mark.slow
def test_an_episode_rewards_what_it_says(run):
    _, _, _, state, history = run
    found = history.metrics
    np.testing.assert_allclose(
        found["reward"], -found["task_loss"] - 0.1 * found["cost"], rtol=1e-5
    )
    np.testing.assert_allclose(found["steps_under"].sum(1), 4)
    np.testing.assert_allclose(found["reward_under"].sum(1), 4 * found["reward"], rtol=1e-5)
    np.testing.assert_allclose(found["violations_under"].sum(1), 4 * found["violations"], rtol=1e-5)
    # At -10 dB no more than one parameter fits.
    np.testing.assert_allclose(found["unreachable"], found["steps_under"][:, 0] / 4, rtol=1e-6)
    assert np.all(found["violations"] >= found["unreachable"] - 1e-6)
    np.testing.assert_array_equal(np.isnan(found["denoising_loss"]), [True, False, False, False])
    replay = state.clients.memory.replay
    np.testing.assert_array_equal(replay.pushed, np.full(8, 16))
    assert np.all(np.abs(replay.rows.coarse) <= 1)
    assert np.all(np.abs(replay.rows.x) <= 1)
    ranks = np.asarray(state.clients.memory.surroundings.ranks)
    assert ranks.min() >= 1
    assert ranks.max() <= 4


@pytest.mark.slow
def test_eight_devices_give_what_one_gives(run):
    algorithm, source, start, wanted, _ = run
    state, _ = dx.run(algorithm, start, source, rounds=4, key=KEY, mesh=dx.client_mesh())
    for one, many in zip(
        jax.tree.leaves(wanted.server.params), jax.tree.leaves(state.server.params), strict=True
    ):
        np.testing.assert_allclose(one, many, rtol=1e-4, atol=1e-5)


def stepped(task, link, params, ranks, batch=None, price=0.1, state=None):
    environment = Environment(task, link, 1, task.rank, price, 10.0)

    def one(params, ranks, batch):
        before = environment.start(KEY, params) if state is None else state
        return before, *environment.step(before, params, ranks, batch, KEY)

    return jax.jit(one)(params, jnp.asarray(ranks), batch)


def test_what_fits_is_paid_for_and_what_does_not_is_not_sent():
    ranks = np.array([1, 4, 2])
    loss = np.sum(WEIGHTS * np.exp(-ranks / DECAYS))
    cost = float(ranks @ SIZES) / 1000
    _, after, found = stepped(CLOSED, LINK, (), ranks)
    np.testing.assert_allclose(found.reward, -loss - 0.1 * cost, rtol=1e-6)
    assert not found.violated
    assert float(found.transmitted) == ranks @ SIZES
    np.testing.assert_array_equal(after.sent, ranks)
    tight = rl.radio_link((0.0,), (32 * 24.0,))
    _, after, found = stepped(CLOSED, tight, (), ranks)
    np.testing.assert_allclose(found.reward, -10.1 * 25 / 24, rtol=1e-6)
    assert found.violated
    assert not found.unreachable
    assert float(found.transmitted) == 0
    np.testing.assert_array_equal(after.sent, [2, 2, 2])
    # Free of charge the reward is the loss alone.
    np.testing.assert_allclose(
        stepped(CLOSED, LINK, (), ranks, price=0.0)[2].reward, -loss, rtol=1e-6
    )


TASK = regression(clients=2, examples=40)
MODEL = {"first": {"kernel": jnp.eye(5)}, "head": TASK.params}


def network_loss(params, batch, key=None):
    hidden = jnp.tanh(batch.inputs @ params["first"]["kernel"])
    return softmax_loss(params["head"], batch._replace(inputs=hidden), key)


TUNING = rl.adapter_tuning(
    network_loss,
    optax.adamw(0.05),
    MODEL,
    3,
    where=lambda path: path == "first/kernel",
    head=lambda path: path.startswith("head"),
)


@pytest.mark.slow
def test_fine_tuning_starts_at_the_base_and_stands_still_where_nothing_fits():
    batch = TASK.data.fetch(jnp.arange(8))
    assert TUNING.sizes.tolist() == [11]
    assert TUNING.rank == 3
    before, after, found = stepped(TUNING, LINK, MODEL, [2], batch)
    np.testing.assert_allclose(found.loss, network_loss(MODEL, batch)[0], rtol=1e-6)
    assert np.any(np.asarray(jax.tree.leaves(after.task.head)[0]) != 0)
    # The head began at 0, so that the adapter moves from the second step on.
    _, again, more = stepped(TUNING, LINK, MODEL, [2], batch, state=after)
    assert float(more.loss) < float(found.loss)
    values = np.asarray(again.task.adapter["first"]["kernel"].values)
    assert np.all(values[:2] != 0)
    assert values[2] == 0
    assert np.all(np.asarray(again.task.importance)[0, 2:] == 0)
    tuned = TUNING.model(after.task, MODEL, jnp.array([2]))
    np.testing.assert_allclose(network_loss(tuned, batch)[0], more.loss, rtol=1e-5)
    narrow = rl.radio_link((0.0,), (32 * 12.0,))
    before, after, found = stepped(TUNING, narrow, MODEL, [2], batch)
    assert found.violated
    jax.tree.map(np.testing.assert_array_equal, before.task, after.task)


@pytest.mark.slow
def test_rules_and_rounds_with_data():
    source = dx.Federation(TASK.data, TASK.partition, local_steps=3, batch_size=4)
    algorithm = rl.fixed_ranks(TUNING, LINK, rl.uniform_ranks(2), horizon=3, agents=2)
    state, history = dx.run(
        algorithm, jax.jit(algorithm.init)(KEY, MODEL), source, rounds=3, key=KEY
    )
    np.testing.assert_array_equal(history.metrics["transmitted"], 22)
    assert history.metrics["task_loss"][2] < history.metrics["task_loss"][0]
    models = rl.tuned_models(TUNING, state)
    assert models["first"]["kernel"].shape == (2, 5, 5)
    with pytest.raises(ValueError, match="local_steps of the federation must be the horizon"):
        rl.fixed_ranks(TUNING, LINK, rl.uniform_ranks(2), horizon=2, agents=2).step(
            state, source.draw(KEY, jnp.int32(0))
        )
    with pytest.raises(TypeError, match="the round must have data"):
        algorithm.step(state, dx.Population(2).draw(KEY, jnp.int32(0)))


def test_what_rules_choose():
    link = rl.radio_link((0.0,), (32 * 24.0,))
    environment = Environment(CLOSED, link, 1, 4, 0.1, 10.0)
    state = environment.start(KEY, ())
    assert rl.largest_uniform()(environment, state, KEY).tolist() == [2, 2, 2]
    # Gains by hand: 0.63, 0.23 of the first, 0.57, 0.41, 0.29 of the second, 0.20 of the third.
    assert rl.important_ranks(5 / 3)(environment, state, KEY).tolist() == [2, 3, 1]
    found = rl.random_ranks()(environment, state, KEY)
    assert found.min() >= 1
    assert found.max() <= 4
    with pytest.raises(ValueError, match="rank must be in"):
        rl.uniform_ranks(5)(environment, state, KEY)


@pytest.mark.slow
def test_an_episode_without_numbers_is_dropped_and_counted():
    broken = CLOSED._replace(
        step=lambda state, params, ranks, batch, key: ((), jnp.float32(jnp.nan))
    )
    algorithm = rl.airllm(broken, LINK, decoder=rl.identity_decoder(), horizon=2, hidden=2)
    start = algorithm.init(KEY)
    state, metrics = jax.jit(algorithm.step)(start, dx.Population(1).draw(KEY, jnp.int32(0)))
    assert float(metrics["episodes_dropped"]) == 1
    jax.tree.map(np.testing.assert_array_equal, state.server.params, start.server.params)
    jax.tree.map(
        np.testing.assert_array_equal, state.clients.memory.policy, start.clients.memory.policy
    )


def test_what_cannot_be_sent_or_has_no_such_rank_is_refused():
    with pytest.raises(ValueError, match="link must carry the smallest ranks"):
        air(link=rl.radio_link((0.0,), (100.0,)))
    with pytest.raises(ValueError, match="high must be"):
        rl.airllm(CLOSED, LINK, high=5)
    with pytest.raises(ValueError, match="horizon must be"):
        rl.airllm(CLOSED, LINK, horizon=0)


@pytest.mark.slow
def test_weights_guidance_and_price_are_swept_in_one_program():
    def made(reward_weight, guidance, price):
        decoder = rl.diffusion_decoder(
            coarse=2,
            hidden=4,
            steps=2,
            capacity=16,
            warm_up=4,
            reward_weight=reward_weight,
            guidance=guidance,
        )
        return rl.airllm(CLOSED, LINK, decoder=decoder, price=price, horizon=4, hidden=4)

    swept = dx.sweep(
        made,
        lambda algorithm, key: algorithm.init(key),
        dx.Population(1),
        grid={"reward_weight": [0.0, 0.5], "guidance": [1.0, 2.0], "price": [0.0, 1.0]},
        seeds=2,
        key=KEY,
        rounds=3,
    )
    found = swept.metrics
    assert found["reward"].shape == (2, 2, 2, 2, 3)
    paid = found["task_loss"] + np.array([0.0, 1.0])[:, None, None] * found["cost"]
    np.testing.assert_allclose(found["reward"], -paid, rtol=1e-5)
    losses = found["denoising_loss"]
    assert np.any(losses[0, 0] != losses[1, 0])
    assert np.all(np.isfinite(losses))


@pytest.mark.slow
def test_ppo_learns_to_send_what_fits():
    tight = rl.radio_link((0.0,), (32 * 20.0,))
    algorithm = rl.airllm(
        CLOSED,
        tight,
        decoder=rl.identity_decoder(),
        discount=0.0,
        hidden=32,
        optimizer=optax.adam(3e-3),
    )
    run = jax.jit(
        lambda key: dx.rollout(algorithm, algorithm.init(key), dx.Population(1), key, 300)
    )
    found = run(KEY)[1]["violations"]
    assert found[:10].mean() > 0.3
    assert found[-30:].mean() < 0.1
