"""Paths, targets, losses and samplers against closed forms, and the doors of what takes arrays."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import dflax as dx
from dflax.data.dataset import Batch
from dflax.generative import targets

G = dx.generative
KEY = jax.random.key(0)
PATHS = {
    "rectified": G.rectified(),
    "cosine": G.cosine(),
    "variance preserving": G.variance_preserving(),
    "discrete": G.discrete(np.linspace(1e-3, 0.2, 50)),
}
TARGETS = (targets.noise, targets.data, targets.v, targets.velocity)
RNG = np.random.default_rng(0)


def examples(count=4, width=3, dtype=np.float32):
    return (RNG.normal(size=(count, width)).astype(dtype) for _ in range(2))


@pytest.mark.some(1)
@pytest.mark.parametrize("name", PATHS)
def test_paths_begin_at_the_data_and_their_rates_are_their_derivatives(name):
    path = PATHS[name]
    ends = jnp.array([0.0, 1.0])
    np.testing.assert_allclose(path.signal(ends)[0], 1.0, atol=1e-6)
    np.testing.assert_allclose(path.noise(ends)[0], 0.0, atol=1e-6)
    t, h = jnp.array([0.215, 0.511, 0.915]), 2e-3
    for found, schedule in zip(path.rates(t), (path.signal, path.noise), strict=True):
        slope = (schedule(t + h) - schedule(t - h)) / (2 * h)
        np.testing.assert_allclose(found, slope, rtol=2e-2, atol=2e-3)
    if name != "rectified":
        np.testing.assert_allclose(path.signal(t) ** 2 + path.noise(t) ** 2, 1.0, rtol=1e-5)


def test_the_discrete_path_is_ddpms_products():
    betas = np.linspace(1e-3, 0.2, 50)
    t = jnp.arange(1, 51) / 50
    np.testing.assert_allclose(PATHS["discrete"].signal(t) ** 2, np.cumprod(1 - betas), rtol=1e-4)


@pytest.mark.some(1)
@pytest.mark.parametrize("name", PATHS)
@pytest.mark.parametrize("target", TARGETS)
def test_every_target_stands_for_data_and_noise(name, target):
    path, (data, noise) = PATHS[name], examples()
    t = jnp.array([0.2, 0.5, 0.7, 0.9])
    x = G.noised(path, data, noise, t)
    told = targets.value(target, path, data, noise, t)
    for found, right in zip(targets.solved(target, path, told, x, t), (data, noise), strict=True):
        np.testing.assert_allclose(found, right, atol=1e-2 if target is targets.noise else 2e-4)


def test_the_named_targets_are_those_of_their_papers():
    data, noise = examples()
    t = jnp.array([0.0, 0.3, 0.6, 1.0])
    straight, round_ = PATHS["rectified"], PATHS["cosine"]
    value = functools.partial(targets.value, data=data, noise=noise, time=t)
    np.testing.assert_allclose(value(targets.velocity, straight), noise - data, atol=1e-6)
    np.testing.assert_array_equal(value(targets.noise, round_), noise)
    np.testing.assert_array_equal(value(targets.data, round_), data)
    angle = np.pi * np.asarray(t)[:, None] / 2
    wanted = np.cos(angle) * noise - np.sin(angle) * data
    np.testing.assert_allclose(value(targets.v, round_), wanted, atol=1e-6)
    # On the cosine path the velocity is v but for the speed.
    np.testing.assert_allclose(value(targets.velocity, round_), np.pi / 2 * wanted, atol=1e-5)


@pytest.mark.slow
def test_the_loss_is_the_mean_square_and_drops_conditions():
    data, labels = jnp.ones((4000, 2)), jnp.zeros(4000, jnp.int32)
    batch = Batch(data, labels, None)

    def told(params, noised):
        return params["c"] + jnp.broadcast_to(noised.condition[:, None], noised.x.shape)

    # Predicts c for everyone, and c + 5 where the condition is dropped; the target is x_0 = 1.
    loss = G.denoising(
        told, G.rectified(), target=targets.data, conditional=True, null=5, drop=0.25
    )
    value, metrics = loss({"c": jnp.float32(1.0)}, batch, KEY)
    np.testing.assert_allclose(value, 0.25 * 25, rtol=0.06)
    assert value == metrics["loss"]

    def nothing(params, noised):
        return 0 * noised.x + params["c"]

    # Of a network that says 0: E |eps - 1|^2 = 2 for each entry; weights and times come in.
    zero = {"c": jnp.float32(0.0)}
    plain = G.denoising(nothing, G.rectified())
    np.testing.assert_allclose(plain(zero, batch, KEY)[0], 2.0, rtol=0.05)
    weighed = G.denoising(
        nothing, G.rectified(), times=G.uniform(0.2, 0.4), weight=lambda t: 10 * t
    )
    np.testing.assert_allclose(weighed(zero, batch, KEY)[0], 6.0, rtol=0.06)
    # Evaluation is the same each time; a masked example does not count.
    assert plain(zero, batch)[0] == plain(zero, batch)[0]
    masked = batch._replace(inputs=data.at[0].set(1e6), mask=jnp.ones(4000).at[0].set(0))
    np.testing.assert_allclose(plain(zero, masked, KEY)[0], 2.0, rtol=0.05)


def test_times_follow_their_laws():
    t = G.logit_normal(0.5, 0.3)(KEY, 20_000)
    logits = np.log(t / (1 - t))
    np.testing.assert_allclose([logits.mean(), logits.std()], [0.5, 0.3], atol=0.02)
    t = G.uniform(0.1, 0.4)(KEY, 1000)
    assert 0.1 <= t.min() < 0.11
    assert 0.39 < t.max() <= 0.4


def test_the_exact_field_of_one_gaussian_is_the_sheets_formula():
    mean, variance = np.array([[1.0, -2.0]]), 0.3
    field = G.exact(G.mixture(mean, variance), G.rectified())
    x, t = np.array([[0.5, 0.1]], np.float32), np.float32(0.6)
    v = (1 - t) ** 2 * variance + t**2
    wanted = ((t - (1 - t) * variance) / v) * (x - (1 - t) * mean) - mean
    found = jax.jit(field)(G.Noised(x, jnp.array([t])), KEY)
    np.testing.assert_allclose(found, wanted, rtol=1e-5)


def test_the_hand_example():
    points = G.mixture(np.array([[-1.0], [1.0]]))
    seen = G.Noised(jnp.array([[0.25]]), jnp.array([0.5]))
    path, labels = G.rectified(), np.array([0, 1])

    @jax.jit
    def both(seen):
        shares = jnp.exp(G.log_responsibilities(points, labels, 2, path, seen))
        return G.exact(points, path)(seen, KEY), shares

    velocity, share = both(seen)
    np.testing.assert_allclose(velocity, -0.424234, rtol=1e-5)
    np.testing.assert_allclose(share, [[1 - 0.731059, 0.731059]], rtol=1e-5)


GAUSSIANS = G.mixture(
    np.array([[2.0, 0.0], [-1.0, 1.0]]), np.array([0.1, 0.4]), np.array([0.3, 0.7])
)


@functools.cache
def drawn(name, step, target=targets.velocity, steps=100):
    """4,000 samples of the mixture by its exact field."""
    path = PATHS[name]
    made = {
        "euler": lambda: G.euler(path, target),
        "heun": lambda: G.heun(path, target),
        "ddim": lambda: G.ddim(path, target),
        "ddpm": lambda: G.ddim(path, target, eta=1.0),
    }[step]()
    field = G.exact(GAUSSIANS, path, target)
    start = jax.random.normal(jax.random.key(1), (4000, 2))
    times = G.grid(steps, last=0.002)
    return np.asarray(jax.jit(lambda x: G.sample(field, made, x, times, KEY))(start))


@pytest.mark.some(2)
@pytest.mark.parametrize(
    ("name", "step", "target"),
    [
        ("rectified", "euler", targets.velocity),
        ("rectified", "heun", targets.velocity),
        ("cosine", "ddim", targets.noise),
        ("rectified", "ddpm", targets.data),
        ("variance preserving", "ddpm", targets.v),
    ],
)
def test_samplers_reproduce_the_mixture(name, step, target):
    x = drawn(name, step, target)
    mean = 0.3 * np.array([2.0, 0.0]) + 0.7 * np.array([-1.0, 1.0])
    right = x[:, 0] > 0.7
    np.testing.assert_allclose(x.mean(0), mean, atol=0.06)
    np.testing.assert_allclose(right.mean(), 0.3, atol=0.03)
    np.testing.assert_allclose(x[right].var(0), 0.1, atol=0.035)
    np.testing.assert_allclose(x[~right].var(0), 0.4, atol=0.06)


def test_ddim_without_noise_is_euler_on_the_straight_path():
    np.testing.assert_allclose(
        drawn("rectified", "ddim", steps=7), drawn("rectified", "euler", steps=7), atol=2e-4
    )


def test_heun_is_of_second_order():
    # One Gaussian: x = (1 - t) m + sqrt(v(t) / v(1)) (x_1 - 0) in closed form.
    path, mean, variance = G.rectified(), np.array([[1.5]]), 0.5
    field = G.exact(G.mixture(mean, variance), path)
    start = jnp.array([[0.3], [-1.2]])
    wanted = mean + np.sqrt(variance) * np.asarray(start)
    errors = [
        np.abs(G.sample(field, step, start, G.grid(n), KEY) - wanted).max()
        for step in (G.euler(path), G.heun(path))
        for n in (10, 40)
    ]
    assert errors[0] / errors[1] == pytest.approx(4, rel=0.3)
    assert errors[2] / errors[3] == pytest.approx(16, rel=0.4)


def test_the_deviation_at_eta_one_is_ddpms_posterior():
    betas = np.linspace(1e-3, 0.2, 50)
    powers = np.cumprod(1 - betas)
    step = G.ddim(PATHS["discrete"], targets.noise, eta=1.0)
    now, before = jnp.array([30.0]) / 50, jnp.array([29.0]) / 50
    seen = G.Noised(jnp.ones((1, 2)), now)
    law = step.move(lambda noised, key: 0.5 * noised.x, seen, before, KEY)
    posterior = betas[29] * (1 - powers[28]) / (1 - powers[29])
    np.testing.assert_allclose(law.deviation**2, posterior, rtol=1e-3)
    # DDPM's mean: (x - beta / sqrt(1 - abar) eps) / sqrt(alpha).
    mean = (1 - betas[29] / np.sqrt(1 - powers[29]) * 0.5) / np.sqrt(1 - betas[29])
    np.testing.assert_allclose(law.mean, mean, rtol=1e-4)


def test_log_probabilities_are_those_of_the_steps():
    path, times = G.rectified(), G.grid(5)
    step = G.ddim(path, eta=0.8, least=0.05)
    field = G.exact(GAUSSIANS, path)
    start = jax.random.normal(KEY, (3, 2))
    went = jax.jit(lambda x: G.trajectory(field, step, x, times, KEY))(start)
    ended = jax.jit(lambda x: G.sample(field, step, x, times, KEY))(start)
    np.testing.assert_allclose(went.states[-1], ended, rtol=1e-5, atol=1e-6)
    again = jax.jit(lambda states: G.log_probs(field, step, states, times, KEY))(went.states)
    np.testing.assert_allclose(again, went.log_probs, rtol=1e-4, atol=1e-4)
    # By hand, of the third step.
    import scipy.stats

    t, earlier = jnp.full(3, times[2]), jnp.full(3, times[3])
    law = jax.jit(lambda x: step.move(field, G.Noised(x, t), earlier, KEY))(went.states[2])
    sigma = 0.8 * 0.4 * np.sqrt(1 - (0.4 * 0.4 / (0.6 * 0.6)) ** 2)
    np.testing.assert_allclose(law.deviation, sigma, rtol=1e-5)
    by_hand = scipy.stats.norm.logpdf(went.states[3], law.mean, sigma).sum(1)
    np.testing.assert_allclose(went.log_probs[2], by_hand, rtol=1e-4)

    # A policy gradient finds its way to the parameters, at the states alone.
    def total(shift):
        def moved(noised, key):
            return field(noised, key) + shift

        return G.log_probs(moved, step, went.states, times, KEY).sum()

    slope = jax.jit(jax.grad(total))(0.0)
    assert np.isfinite(slope)
    assert abs(slope) > 0


def test_clipping_cuts_the_predicted_data_alone():
    step = G.ddim(G.rectified(), targets.data, clip=0.5)
    seen = G.Noised(jnp.full((1, 1), 2.0), jnp.array([0.5]))
    law = step.move(lambda noised, key: noised.x, seen, jnp.array([0.25]), KEY)
    # x_0 = 2 becomes 0.5; eps = (2 - 0.5 * 2) / 0.5 = 2 stays.
    np.testing.assert_allclose(law.mean, 0.75 * 0.5 + 0.25 * 2.0, rtol=1e-6)


def test_guidance_exaggerates_the_condition():
    def told(noised, key):
        return jnp.broadcast_to(noised.condition[:, None].astype(jnp.float32), noised.x.shape)

    seen = G.Noised(jnp.zeros((2, 1)), jnp.ones(2), jnp.array([3, 7]))
    found = [G.guided(told, scale, 1)(seen, KEY)[:, 0] for scale in (0.0, 1.0, 2.5)]
    np.testing.assert_allclose(found, [[1, 1], [3, 7], [6, 16]])


def test_an_optimiser_remembers_the_average_of_what_it_made():
    optimizer = G.averaging(optax.sgd(0.5), 0.9)
    params, average = jnp.array([4.0]), np.array([4.0])
    state = optimizer.init(params)
    for _ in range(3):
        updates, state = optimizer.update(params, state, params)
        params = optax.apply_updates(params, updates)
        average = 0.9 * average + 0.1 * np.asarray(params)
    np.testing.assert_allclose(G.average_of((state, 3)), average, rtol=1e-6)
    with pytest.raises(TypeError, match="optimizer_state must hold one average, got 0"):
        G.average_of(optax.sgd(0.1).init(params))


ONES, STRAIGHT = np.ones((2, 1)), G.rectified()


def same(noised, key):
    return noised.x


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: G.noised(STRAIGHT, ONES, ONES, np.array([0.5, 1.2])), "time must be finite .*1.2"),
        (lambda: G.sample(same, G.euler(STRAIGHT), ONES, [1.5, 0.0], KEY), "times must be finite"),
        (lambda: G.sample(same, G.euler(STRAIGHT), ONES, [0.0, 1.0], KEY), "times must fall"),
        (lambda: G.trajectory(same, G.ddim(STRAIGHT), ONES, G.grid(2), KEY), "step must draw"),
        (
            lambda: G.trajectory(same, G.ddim(STRAIGHT, eta=1.0), ONES, G.grid(2), KEY),
            "times must end above 0",
        ),
        (lambda: G.denoising(same, STRAIGHT, drop=0.1), "drop must be 0"),
        (lambda: G.uniform(0.5, 0.5), "low must be below high"),
    ],
)
def test_doors(call, message):
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize(
    ("model", "x"),
    [
        (dx.models.TimeMLP(8, classes=3), (5,)),
        pytest.param(dx.models.DiT(2, 8, 1, 2, classes=3), (4, 4, 1), marks=pytest.mark.slow),
        pytest.param(
            dx.models.UNet((4, 8), classes=3, groups=4), (4, 4, 1), marks=pytest.mark.slow
        ),
    ],
)
def test_networks_read_input_time_and_class(model, x):
    seen = G.Noised(jnp.ones((2, *x)), jnp.array([0.3, 0.3]), jnp.array([1, 1]))
    params = jax.jit(model.init)(KEY, seen)["params"]
    # Off the zeros that gates and last layers start from.
    params = jax.tree.map(
        lambda leaf: leaf + 0.1 * jnp.cos(jnp.arange(leaf.size)).reshape(leaf.shape), params
    )
    told = jax.jit(lambda n: model.apply({"params": params}, n))
    same = told(seen)
    assert same.shape == seen.x.shape
    np.testing.assert_allclose(same[0], same[1], rtol=1e-5)
    for other in (
        seen._replace(time=jnp.array([0.3, 0.6])),
        seen._replace(condition=jnp.array([1, 2])),
        seen._replace(x=seen.x.at[1].add(0.5)),
    ):
        found = told(other)
        assert np.abs(found[0] - found[1]).max() > 1e-4
    with pytest.raises(ValueError, match="condition must be class numbers"):
        jax.eval_shape(model.init, KEY, seen._replace(condition=None))
