"""Parts of AirLLM against closed forms, and against numbers that the authors' code gives."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dflax import generative as gen
from dflax import rl
from dflax.models import Singular, apply_lora, orthogonality, rank_mask
from dflax.rl.airllm.coarse import Episode, Lesson, estimated, ppo_loss
from dflax.rl.airllm.decoders import BETAS, chain, rank_loss
from dflax.rl.airllm.link import Conditions

KEY = jax.random.key(0)
# Parameters of one unit of rank in each of the 144 projections of OPT-1.3B.
OPT = np.tile([4097] * 4 + [10241] * 2, 24)


def wave(height, seed, *shape):
    """Weights and data that another language makes as easily."""
    return height * np.sin(1.7 * np.arange(1, 1 + np.prod(shape)) + seed).reshape(shape)


def dense(*args):
    kernel, bias = args
    return {"kernel": jnp.asarray(kernel, jnp.float32), "bias": jnp.asarray(bias, jnp.float32)}


def norm(width):
    return {"scale": jnp.ones(width), "bias": jnp.zeros(width)}


def test_capacity_and_what_uniform_ranks_cost():
    ratios = np.array([-5.0, 0.0, 5.0, 10.0, 15.0])
    link = rl.radio_link(ratios, (100e6,))
    assert OPT.sum() == 884_880
    np.testing.assert_allclose(rl.capacity(10.0, 100e6), 345.943e6, rtol=1e-6)
    budgets = [float(link.budget(Conditions(jnp.int32(i), jnp.int32(0)))) for i in range(5)]
    wanted = [1_238_779, 3_125_000, 6_429_291, 10_810_724, 15_711_899]
    np.testing.assert_allclose(budgets, wanted, rtol=1e-6)
    np.testing.assert_allclose(
        np.array(budgets) / OPT.sum(), [1.40, 3.53, 7.27, 12.22, 17.76], atol=5e-3
    )
    costs = float(rl.transmitted(np.full(144, 8), OPT)) / np.array(budgets)
    np.testing.assert_allclose(costs, [5.71, 2.27, 1.10, 0.655, 0.451], atol=6e-3)


def test_what_is_sent_is_linear_in_the_ranks():
    rng = np.random.default_rng(0)
    one, two = rng.integers(0, 5, (2, 144))
    count = rl.transmitted(one, OPT), rl.transmitted(two, OPT)
    assert float(rl.transmitted(one + two, OPT)) == float(count[0]) + float(count[1])
    assert float(count[0]) == float(one @ OPT)


@pytest.mark.slow
def test_ranks_become_numbers_and_ranks_again():
    # The authors' rule on a grid without ties.
    grid = np.linspace(-1.2, 1.2, 13)
    found = rl.decode_ranks(grid, 1, 8)
    np.testing.assert_array_equal(found, [1, 1, 1, 2, 3, 3, 4, 5, 5, 6, 7, 8, 8])
    np.testing.assert_array_equal(rl.decode_ranks(np.array([-1.0, 1.0, 0.0]), 1, 8), [1, 8, 4])
    for high in (8, 16, 32, 64, 256):
        ranks = np.arange(1, high + 1)
        np.testing.assert_array_equal(
            rl.decode_ranks(rl.encode_ranks(ranks, 1, high), 1, high), ranks
        )
    shares = np.bincount(rl.decode_ranks(np.linspace(-1, 1, 70_001)[:-1], 1, 8), minlength=9)[1:]
    np.testing.assert_allclose(shares[:7], 10_000, atol=15)
    assert shares[7] <= 5
    with pytest.raises(ValueError, match="ranks must"):
        rl.encode_ranks(np.array([9]), 1, 8)


def test_statistics_of_tokens():
    tokens = np.array([[0, 1, 1, 2], [3, 3, 3, 3]])
    frequencies = np.array([1, 2, 1]) / 4
    entropy = -np.sum(frequencies * np.log2(frequencies)) / np.log2(3)
    found = rl.token_statistics(tokens, 5, padding=3, unknown=2)
    np.testing.assert_allclose(found, [entropy, 0.25], rtol=1e-6)
    np.testing.assert_allclose(rl.token_statistics(tokens[1], 5), [0, 0])


def test_the_chain_and_its_times_are_the_authors():
    path = chain()
    numbers = np.array([0, 250, 999])
    signal = np.asarray(path.signal(jnp.asarray((numbers + 1) / 1000, jnp.float32))) ** 2
    np.testing.assert_allclose(signal, [0.9999, 0.8200102, 7.334125e-4], rtol=2e-4)
    np.testing.assert_allclose(np.cumprod(1 - BETAS)[numbers], signal, rtol=2e-4)
    times = rl.ddim_times(50)
    assert len(times) == 51
    assert times[-1] == 0
    found = np.round(times[:-1] * 1000).astype(int) - 1
    np.testing.assert_array_equal(
        found[[0, 1, 2, 24, 25, 47, 48, 49]], [999, 978, 958, 509, 489, 40, 20, 0]
    )


@pytest.mark.parametrize("scale", [0.3, 1.5])
def test_a_perfect_denoiser_of_one_point_gives_the_point(scale):
    path, point = chain(), jnp.asarray([0.3, -0.9, 1.0])

    def field(noised, key):
        a, s = path.signal(noised.time)[:, None], path.noise(noised.time)[:, None]
        return (noised.x - a * point) / s

    step = gen.ddim(path, gen.targets.noise, clip=1.0)
    start = jnp.asarray([[3.0, -2.0, 0.0], [0.1, 0.1, -4.0]])
    guided = gen.guided(field, scale, 0.0)
    condition = jnp.ones((2, 1))
    run = jax.jit(lambda x: gen.sample(guided, step, x, rl.ddim_times(5), KEY, condition))
    np.testing.assert_allclose(run(start), np.tile(point, (2, 1)), atol=2e-3)


def test_ppo_is_the_authors_on_one_episode():
    policy = rl.CoarsePolicy(2, 4)
    params = {
        "Dense_0": dense(wave(0.5, 1, 7, 4), wave(0.1, 2, 4)),
        "LayerNorm_0": norm(4),
        "Dense_1": dense(wave(0.5, 3, 4, 4), wave(0.1, 4, 4)),
        "mean": dense(wave(0.5, 5, 4, 2), wave(0.1, 6, 2)),
        "value": dense(wave(0.5, 7, 4, 1), wave(0.1, 8, 1)),
        "log_deviation": jnp.full(2, -0.5),
    }
    seen = (wave(1, 9, 6, 7), wave(1, 10, 6, 2), wave(0.3, 11, 6) - 2, wave(1, 12, 6))
    episode = Episode(*(jnp.asarray(part, jnp.float32) for part in (*seen, wave(2, 13, 6))))
    lesson = Lesson(0.95, 0.95, 0.2, 0.5, 0.01, 1)
    raw = rl.gae(episode.reward, episode.value, np.eye(6)[5], 0.7, 0.95, 0.95).advantages
    wanted = [-0.7753934, -2.0486369, 0.5158522, 1.0431840, -1.7514542, -1.6630834]
    np.testing.assert_allclose(raw, wanted, rtol=1e-5)

    @jax.jit
    def run(params):
        loss = jax.value_and_grad(ppo_loss(policy, lesson), has_aux=True)
        (value, metrics), slope = loss(params, episode, *estimated(episode, lesson))
        norms = jax.tree.map(lambda leaf: jnp.sum(leaf**2), slope)
        return value, metrics, jnp.sqrt(sum(jax.tree.leaves(norms)))

    value, metrics, size = run(params)
    np.testing.assert_allclose(value, 0.49666083, rtol=1e-5)
    np.testing.assert_allclose(metrics["policy_loss"], -0.01609831, rtol=1e-4)
    np.testing.assert_allclose(metrics["value_loss"], 1.06227582, rtol=1e-5)
    np.testing.assert_allclose(metrics["entropy"], 1.83787707, rtol=1e-5)
    np.testing.assert_allclose(size, 1.05845876, rtol=1e-4)


def test_advantages_by_hand():
    ends = np.array([0.0, 1.0])
    found = rl.gae(np.ones(2), np.zeros(2), ends, 5.0, 0.95, 0.95).advantages
    np.testing.assert_allclose(found, [1.9025, 1.0], rtol=1e-6)


DENOISER = {
    "time": dense(wave(0.2, 14, 64, 4), wave(0.1, 15, 4)),
    "entrance": dense(wave(0.5, 16, 5, 4), wave(0.1, 17, 4)),
    "Dense_0": dense(wave(0.5, 18, 4, 4), wave(0.1, 19, 4)),
    "Dense_1": dense(wave(0.5, 20, 4, 4), wave(0.1, 21, 4)),
    "exit": dense(wave(0.5, 22, 4, 3), wave(0.1, 23, 3)),
} | {f"LayerNorm_{place}": norm(4) for place in range(3)}


def test_denoiser_sampling_and_loss_are_the_authors():
    """Their frequencies stand in the other order; their embedding counts steps from 0, ours from 1."""
    network, path = rl.RankDenoiser(4), chain()

    def field(noised, key):
        return network.apply({"params": DENOISER}, noised)

    z = jnp.asarray(wave(1, 24, 1, 2), jnp.float32)
    start = jnp.asarray(wave(1.5, 25, 1, 3), jnp.float32)
    clean = np.clip(wave(1, 27, 4, 3), -1, 1)
    noise, coarse = wave(1, 28, 4, 3), wave(1, 29, 4, 2) * np.array([[1], [0], [1], [1]])
    step = gen.ddim(path, gen.targets.noise, clip=1.0)

    @jax.jit
    def run():
        once = field(gen.Noised(start, jnp.full(1, 0.5), z), KEY)
        guided = gen.guided(field, 1.5, 0.0)
        drawn = gen.sample(guided, step, start, rl.ddim_times(6), KEY, condition=z)
        weights = rl.reward_weights(jnp.asarray(wave(3, 26, 4)), 0.8)
        when = jnp.asarray([0.001, 0.101, 0.501, 1.0])
        seen = gen.Noised(gen.noised(path, clean, noise, when), when, jnp.asarray(coarse))
        return once, drawn, weights, jnp.mean((field(seen, KEY) - noise) ** 2, axis=1)

    once, drawn, weights, errors = run()
    np.testing.assert_allclose(once, [[0.8426156, 0.1588842, -0.8835583]], rtol=1e-4)
    np.testing.assert_allclose(drawn, [[-0.8712481, -0.9806130, 0.9565638]], rtol=1e-3)
    np.testing.assert_allclose(weights, [1.5078379, 0.1, 0.5754242, 1.9875355], rtol=1e-5)
    np.testing.assert_allclose(np.mean(weights * errors), 0.37619607, rtol=1e-3)


@pytest.mark.slow
def test_without_reward_weight_or_with_equal_rewards_it_is_plain_diffusion():
    rewards = jnp.asarray([1.0, -3.0, 2.0, 0.5])
    np.testing.assert_array_equal(rl.reward_weights(rewards, 0.0), np.ones(4))
    np.testing.assert_allclose(rl.reward_weights(jnp.full(4, -7.3), 0.9), np.ones(4), atol=1e-5)
    network = rl.RankDenoiser(4)
    x, z = jnp.asarray(wave(1, 1, 4, 3)), jnp.asarray(wave(1, 2, 4, 2))
    loss = jax.jit(rank_loss(network, 0.1))
    plain = gen.denoising(
        lambda params, noised: network.apply({"params": params}, noised),
        chain(),
        target=gen.targets.noise,
        times=lambda key, count: (jax.random.randint(key, (count,), 0, 1000) + 1) / 1000,
        conditional=True,
        null=0.0,
        drop=0.1,
    )
    wanted = jax.jit(lambda params: plain(params, _batch(x, z), KEY)[0])(DENOISER)
    np.testing.assert_allclose(loss(DENOISER, x, z, jnp.ones(4), KEY), wanted, rtol=1e-6)
    # A mean over examples, not over weights.
    np.testing.assert_allclose(loss(DENOISER, x, z, jnp.full(4, 3.0), KEY), 3 * wanted, rtol=1e-6)


def _batch(x, z):
    from dflax.data.dataset import Batch

    return Batch(x, z)


def test_adapters_are_the_authors():
    left, right = wave(0.6, 30, 4, 3), wave(0.6, 31, 3, 5)
    own = {"w": Singular(*(jnp.asarray(a.T, jnp.float32) for a in (right, wave(1, 32, 3), left)))}
    base = {"w": jnp.asarray(wave(1, 33, 4, 5).T, jnp.float32)}
    inputs = wave(1, 34, 2, 5)

    @jax.jit
    def run(rank):
        kept = jax.tree.map(jnp.multiply, own, rank_mask(own, rank))
        weights = apply_lora(base, kept, scale=32 / 3)["w"]
        return orthogonality(own, rank), (jnp.asarray(inputs) @ weights)[1]

    wanted = {
        1: (0.22468291, [-1.11024651, -2.19411293, -2.40767275, -1.76887953]),
        2: (1.03446483, [4.90026397, 2.51799515, -4.85603930, -8.33184371]),
        3: (2.38192798, [6.43719525, 0.73844094, -7.73823434, -8.73110066]),
    }
    for rank, (penalty, outputs) in wanted.items():
        found = run(jnp.int32(rank))
        np.testing.assert_allclose(found[0], penalty, rtol=1e-5)
        np.testing.assert_allclose(found[1], outputs, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_a_ring_keeps_the_newest_rows():
    ring = rl.ring(5, {"a": jnp.zeros(2)})
    for first in (0, 3, 6):
        rows = np.repeat(np.arange(first, first + 3.0)[:, None], 2, axis=1)
        ring = rl.pushed(ring, {"a": rows})
    assert int(ring.filled) == 5
    assert set(np.asarray(ring.rows["a"])[:, 0]) == {4, 5, 6, 7, 8}
    found = np.asarray(rl.drawn(ring, KEY, 200)["a"])[:, 0]
    assert set(found) == {4, 5, 6, 7, 8}
    np.testing.assert_array_equal(rl.in_order(ring)["a"][:, 0], [4, 5, 6, 7, 8])
    young = rl.pushed(rl.ring(5, jnp.zeros(())), np.array([7.0, 8.0]))
    assert set(np.asarray(rl.drawn(young, KEY, 50))) == {7, 8}
    np.testing.assert_array_equal(rl.in_order(young), [0, 0, 0, 7, 8])
    with pytest.raises(ValueError, match="rows must be at most the capacity"):
        rl.pushed(rl.ring(1, jnp.zeros(())), np.zeros(2))
