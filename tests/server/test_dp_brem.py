"""DP-BREM by its oracles and in float64 NumPy, and what a liar or a record can move."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from tasks import assert_trees_close, half_square, quadratics, regression, softmax_loss

import dflax as dx
from dflax import aggregation, attacks, channel, privacy, recipes
from dflax.aggregation import Combining

KEY = jax.random.key(0)
N, D = 5, 3
FAR = 1e9
QUIET = {"record_clip": FAR, "radius": FAR, "noise": 0.0}


def rolled(method, source, start, rounds, key=KEY):
    """The states after every round, and metrics."""

    def step(state, index):
        state, metrics = method.step(state, source.draw(key, index))
        return state, (state, metrics)

    state = method.init(key, start)
    return jax.jit(lambda state: jax.lax.scan(step, state, jnp.arange(rounds))[1])(state)


@functools.cache
def poisson(probability=0.5, clients=N):
    task = regression(clients=clients, examples=150, seed=3)
    partition = privacy.poisson_sampled(task.partition, probability)
    federation = dx.Federation(
        task.data, partition, batch_size=privacy.places(partition, probability), local_steps=1
    )
    return task, federation


@pytest.mark.slow
def test_1_without_noise_clips_and_momentum_it_is_full_batch_descent():
    task = quadratics(N, D)
    method = dx.server.dp_brem(half_square, N, rate=0.3, beta=0.0, **QUIET)
    states, _ = rolled(method, task.federation(), jnp.ones(D), 6)
    mean = task.centers.mean(0)
    wanted = mean + 0.7 ** np.arange(1, 7)[:, None] * (1 - mean)
    np.testing.assert_allclose(states.server.params, wanted, rtol=0, atol=2e-6)


def test_2_and_3_unclipped_momentum_is_the_clients_mean_plus_this_rounds_noise_alone():
    """The centre cancels; the noise of a round is N(0, (sigma R / n)^2), and not added up."""
    rounds, sigma, record = 400, 0.2, 2.0
    task = quadratics(N, D, seed=1)
    options = {"record_clip": record, "radius": FAR, "rate": 1e-6}

    @jax.jit
    def run(noise):
        method = dx.server.dp_brem(half_square, N, noise=noise, **options)
        return rolled(method, task.federation(), jnp.zeros(D), rounds)[0]

    for noise in (0.0, sigma):
        states = run(noise)
        apart = np.asarray(states.server.memory - states.clients.memory.mean(1))
        # The centre's 1e9 is a radius, and never added.
        if not noise:
            np.testing.assert_allclose(apart, 0, atol=2e-6)
        else:
            np.testing.assert_allclose(apart.std(), sigma * record / N, rtol=0.08)
            drift = np.abs(apart[-50:]).mean() / np.abs(apart[:50]).mean()
            assert 0.7 < drift < 1.4
            follow = np.corrcoef(apart[:-1].ravel(), apart[1:].ravel())[0, 1]
            assert abs(follow) < 0.12


def combine(rule, state, messages):
    return jax.jit(rule.apply)(
        jnp.asarray(messages), jnp.ones(len(messages)), state, Combining(KEY)
    )[:2]


def rule_of(radius):
    return aggregation.recentred(aggregation.norm_bounding(radius))


def test_4_momentum_moves_by_the_radius_where_all_send_the_same():
    rule = rule_of(0.3)
    state = rule.init(jnp.zeros(D))
    before = jnp.zeros(D)
    for _ in range(4):
        after, state = combine(rule, state, np.tile([3.0, -4.0, 12.0], (N, 1)))
        np.testing.assert_allclose(np.linalg.norm(after - before), 0.3, rtol=1e-6)
        before = after


@pytest.mark.parametrize("seed", range(5))
def test_5_one_liar_moves_the_momentum_by_two_radii_over_n(seed):
    rng = np.random.default_rng(seed)
    rule = rule_of(0.5)
    state = rule.init(jnp.zeros(D))
    _, state = combine(rule, state, rng.normal(size=(N, D)))
    found = []
    messages = rng.normal(size=(N, D))
    for lie in (rng.normal(size=D), 1e6 * rng.normal(size=D), [1e30, 0, 0], np.zeros(D)):
        messages[2] = lie
        found.append(np.asarray(combine(rule, state, messages)[0]))
    widest = max(np.linalg.norm(a - b) for a in found for b in found)
    assert 0 < widest <= 2 * 0.5 / N + 1e-6


@pytest.mark.parametrize("radius", [0.05, FAR])
def test_6_a_record_in_one_round_moves_the_sum_by_its_share_of_the_momentum(radius):
    """The bound (1 - beta) beta^(t - s) 2 R / b, its release being the same otherwise.

    Server noise of the run is replayed so that the public centre and model stay as they were: the
    difference is of what one round's sum would be before noise.
    """
    rounds, beta, record, s = 12, 0.8, 0.7, 3
    generator = np.random.default_rng(0)
    gradients = generator.normal(size=(rounds, N, D)) * 0.3
    bound_of_record = 2 * record / 4.0
    other = gradients.copy()
    move = generator.normal(size=D)
    other[s, 1] += bound_of_record * move / np.linalg.norm(move)
    centre, momenta, changed = np.zeros(D), np.zeros((N, D)), np.zeros((N, D))
    rule = aggregation.norm_bounding(radius)
    for t in range(rounds):
        momenta = (1 - beta) * gradients[t] + beta * momenta
        changed = (1 - beta) * other[t] + beta * changed
        one, two = (
            N * np.asarray(combine(rule, (), (m - centre).astype(np.float32))[0])
            for m in (momenta, changed)
        )
        limit = (1 - beta) * beta ** (t - s) * bound_of_record if t >= s else 0.0
        distance = np.linalg.norm(one - two)
        assert distance <= limit + 2e-6
        if radius == FAR and t >= s:
            np.testing.assert_allclose(distance, limit, rtol=1e-3, atol=2e-6)
        centre = centre + one / N + 0.1 * generator.normal(size=D)


def test_7_by_hand():
    rule = rule_of(2.0)
    messages = np.array([[1.0, 0.0], [0.0, 1.0], [10.0, 0.0]])
    out, state = combine(rule, rule.init(jnp.zeros(2)), messages)
    np.testing.assert_allclose(out, [1, 1 / 3], rtol=1e-6)
    out, _ = combine(rule, state, messages)
    np.testing.assert_allclose(out, [1.33287656, 0.41977], rtol=1e-5)


def test_recentred_norm_bounding_is_one_step_of_centred_clipping():
    rng = np.random.default_rng(0)
    ours, theirs = rule_of(0.7), aggregation.centred_clipping(0.7)
    state, other = ours.init(jnp.zeros(D)), theirs.init(jnp.zeros(D))
    for _ in range(5):
        messages = rng.normal(size=(N, D))
        one, state = combine(ours, state, messages)
        two, other = combine(theirs, other, messages)
        np.testing.assert_allclose(one, two, atol=1e-6)


@functools.cache
def brem_steps():
    """A round with a trusted server and one with secure aggregation, of the share that is sampled."""
    secure = privacy.secure_aggregation(KEY, N, bound=0.2, scale_bits=16)
    options = {
        "rate": 0.5,
        "record_clip": 1.0,
        "radius": 0.2,
        "noise": 0.05,
        "channel": attacks.inner_product(1, 5.0),
    }

    @jax.jit
    def both(sampling, state, round):
        trusted = dx.server.dp_brem(softmax_loss, N, joint=True, sampling=sampling, **options)
        jointly = dx.server.dp_brem_plus(softmax_loss, N, secure, sampling=sampling, **options)
        return trusted.step(state, round), jointly.step(state, round)

    return both, dx.server.dp_brem(softmax_loss, N, joint=True, **options).init


@pytest.mark.slow
@pytest.mark.parametrize("sampling", [1.0, 0.5])
def test_8_with_secure_aggregation_one_round_is_the_same_up_to_rounding(sampling):
    """From the same state and noise, under attack as well: 2^-(s + 1) per coordinate."""
    task, federation = poisson()
    both, init = brem_steps()
    draw = jax.jit(federation.draw)
    state, largest = init(KEY, task.params), 0.0
    # The states are of one structure, but for what secure aggregation remembers: nothing.
    for t in range(6):
        (after, told), (other, heard) = both(sampling, state, draw(KEY, t))
        gap = jax.tree.map(
            lambda a, b: np.abs(a - b).max(), after.server.memory, other.server.memory
        )
        largest = max(largest, *jax.tree.leaves(gap))
        assert heard["proofs_refused"] == heard["rounds_dropped"] == 0
        assert heard["messages_sampled"] == told["messages_sampled"]
        state = after
    assert 0 < largest <= 2.0**-17 + 1e-7


@pytest.mark.slow
def test_a_trajectory_is_that_of_the_pseudo_code_in_float64():
    """Poisson samples, clipped records, momentum, the clients' clip, schedules; without noise."""
    task, federation = poisson()
    rounds, beta = 8, 0.7
    rate = optax.linear_schedule(0.8, 0.1, rounds)
    record = optax.linear_schedule(1.0, 0.3, rounds)
    radius = optax.linear_schedule(0.2, 0.06, rounds)
    method = dx.server.dp_brem(
        softmax_loss, N, rate=rate, record_clip=record, radius=radius, noise=0.0, beta=beta
    )
    states, metrics = rolled(method, federation, task.params, rounds)
    inputs = np.asarray(task.data.inputs, np.float64)
    labels = np.eye(3)[np.asarray(task.data.labels)]
    expected = 0.5 * np.asarray(task.partition.sizes)
    x, centre, momenta = np.zeros((6, 3)), np.zeros((6, 3)), np.zeros((N, 6, 3))
    cut = 0
    for t in range(rounds):
        minibatches = np.asarray(federation.draw(KEY, t).assignments.minibatches)[:, 0]
        R, C = 1.0 - 0.7 * t / rounds, 0.2 * (1 - 0.7 * t / rounds)
        for i in range(N):
            rows = minibatches[i][minibatches[i] >= 0]
            a = np.c_[inputs[rows], np.ones(len(rows))]
            scores = np.exp(a @ x)
            slopes = scores / scores.sum(1, keepdims=True) - labels[rows]
            each = a[:, :, None] * slopes[:, None, :]
            norms = np.linalg.norm(each.reshape(len(rows), -1), axis=1)
            g = (each * np.minimum(1, R / norms)[:, None, None]).sum(0) / expected[i]
            momenta[i] = (1 - beta) * g + beta * momenta[i]
        away = momenta - centre
        norms = np.linalg.norm(away.reshape(N, -1), axis=1)
        cut += (norms > C).sum()
        centre = centre + (away * np.minimum(1, C / norms)[:, None, None]).mean(0)
        x = x - (0.8 - 0.7 * t / rounds) * centre
    assert 0 < cut < N * rounds
    assert float(metrics["messages_clipped"].sum()) == cut
    found = jax.tree.map(lambda leaf: np.asarray(leaf)[-1], states.server.params)
    np.testing.assert_allclose(np.r_[found["w"], found["b"][None]], x, rtol=0, atol=3e-6)


def test_everybody_keeps_momentum_whoever_is_sampled_and_one_at_least_is():
    task = quadratics(N, D)
    method = dx.server.dp_brem(half_square, N, rate=1e-9, sampling=0.05, beta=0.5, **QUIET)
    states, metrics = rolled(method, task.federation(), jnp.zeros(D), 40)
    seen = np.asarray(metrics["messages_sampled"])
    assert seen.min() == 1
    assert set(np.asarray(metrics["clients_reporting"])) == {N}
    # phi_i -> the gradient -c_i of everybody.
    np.testing.assert_allclose(states.clients.memory[-1], -task.centers, atol=1e-4)
    # The public momentum is that of the one who was seen.
    last = np.asarray(states.server.memory)[seen == 1][-1]
    away = np.linalg.norm(last + task.centers, axis=1)
    assert away.min() < 1e-3


def test_who_does_not_cut_its_message_is_refused():
    task = quadratics(N, D)
    secure = privacy.secure_aggregation(KEY, N, bound=4.0)
    options = {"rate": 1e-9, "record_clip": FAR, "radius": 0.5, "noise": 0.0, "beta": 0.0}
    method = dx.server.dp_brem_plus(half_square, N, secure, uncut=[0, 3], **options)
    start, source = method.init(KEY, jnp.zeros(D)), task.federation()
    state, metrics = jax.jit(method.step)(start, source.draw(KEY, 0))
    gradients = -task.centers
    longer = np.linalg.norm(gradients, axis=1) > 0.5
    assert longer[[0, 3]].all()
    assert metrics["proofs_refused"] == 2
    assert metrics["messages_clipped"] == longer.sum() - 2
    kept = gradients[[1, 2, 4]]
    short = kept * np.minimum(1, 0.5 / np.linalg.norm(kept, axis=1))[:, None]
    np.testing.assert_allclose(state.server.memory, short.mean(0), atol=2.0**-16)


def test_in_a_round_that_secure_aggregation_drops_nothing_is_opened():
    task = quadratics(N, D)
    secure = privacy.secure_aggregation(KEY, N, bound=4.0, answering=0.0)
    method = dx.server.dp_brem_plus(
        half_square, N, secure, rate=0.1, record_clip=1.0, radius=0.5, noise=1.0
    )
    states, metrics = rolled(method, task.federation(), jnp.ones(D), 3)
    np.testing.assert_array_equal(metrics["rounds_dropped"], 1)
    np.testing.assert_array_equal(states.server.memory, 0)


def test_noise_is_on_the_sum_of_those_who_count():
    """Deviation sigma R / |I|, where a message that is not finite does not count."""
    d = 20_000
    rule = privacy.noisy_mean(aggregation.norm_bounding(1.0), 0.6)
    messages = jnp.zeros((4, d)).at[1].set(jnp.nan)
    weights = jnp.asarray([1.0, 1.0, 1.0, 0.0])
    out, _, metrics = jax.jit(rule.apply)(messages, weights, (), Combining(KEY))
    np.testing.assert_allclose(np.std(out), 0.6 / 2, rtol=0.02)
    assert metrics["messages_dropped"] == 1
    nobody, _, _ = jax.jit(rule.apply)(messages, jnp.zeros(4), (), Combining(KEY))
    np.testing.assert_array_equal(nobody, 0)
    joint = privacy.noisy_mean(aggregation.mean(), 0.6, joint=True)
    run = jax.jit(joint.apply)
    first = run(jnp.zeros((4, d)), jnp.ones(4), (), Combining(KEY))[0]
    other = run(jnp.zeros((4, d)), weights, (), Combining(KEY))[0]
    np.testing.assert_allclose(np.std(first), 0.15, rtol=0.02)
    # One word less in the sum is another key.
    assert abs(np.corrcoef(first, other)[0, 1]) < 0.05


@pytest.mark.slow
def test_a_sweep_over_noise_clips_radius_and_momentum_is_one_program():
    task, federation = poisson()

    def end(noise, record, radius, beta, sampling):
        method = dx.server.dp_brem(
            softmax_loss,
            N,
            rate=0.5,
            record_clip=record,
            radius=radius,
            noise=noise,
            beta=beta,
            sampling=sampling,
        )
        state = method.init(KEY, task.params)
        return dx.rollout(method, state, federation, KEY, 4)[0].server.params

    points = jnp.asarray(
        [[0.0, 1.0, 0.2, 0.9, 1.0], [0.1, 0.5, 0.1, 0.0, 0.6], [0.3, 2.0, 0.4, 0.5, 1.0]]
    )
    swept = jax.jit(jax.vmap(lambda p: end(*p)))(points)
    alone = jax.jit(lambda p: end(*p))
    for place, point in enumerate(points):
        assert_trees_close(
            jax.tree.map(lambda leaf, i=place: leaf[i], swept), alone(point), rtol=0, atol=2e-6
        )


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    ["dp_brem_plus", *(pytest.param(n, marks=pytest.mark.slow) for n in ("dp_brem", "dp_rsa"))],
)
def test_on_eight_devices_it_is_the_same(name):
    task, federation = poisson(clients=8)
    options = {"rate": 0.4, "record_clip": 1.0, "noise": 0.05}
    if name != "dp_rsa":
        options |= {"radius": 0.2, "sampling": 0.7}
    given = (softmax_loss, 8)
    if name == "dp_brem_plus":
        given += (privacy.secure_aggregation(KEY, 8, bound=0.2),)
    method = getattr(dx.server, name)(*given, **options)
    start = method.init(KEY, task.params)
    alone, history = dx.run(method, start, federation, rounds=3, key=KEY)
    dealt, metrics = dx.run(method, start, federation, rounds=3, key=KEY, mesh=dx.client_mesh())
    assert_trees_close(
        (dealt.server, dealt.clients), (alone.server, alone.clients), rtol=1e-4, atol=1e-5
    )
    assert_trees_close(metrics.metrics, history.metrics, rtol=1e-4, atol=1e-5)


def test_dp_rsa_is_its_pseudo_code():
    task = quadratics(N, D)
    method = dx.server.dp_rsa(
        half_square, N, rate=0.2, record_clip=FAR, noise=0.0, penalty=0.05, decay=0.1
    )
    states, _ = rolled(method, task.federation(), jnp.ones(D), 12)
    x, own = np.ones(D), np.ones((N, D))
    for _ in range(12):
        sent = x - own
        own = own - 0.2 * (own - task.centers + 0.05 * np.sign(own - x))
        x = x - 0.2 * 0.05 * (0.1 * x + np.sign(sent).sum(0))
    np.testing.assert_allclose(states.server.params[-1], x, atol=2e-6)
    np.testing.assert_allclose(states.clients.memory[-1], own, atol=2e-6)


@pytest.mark.slow
def test_dp_rsa_moves_by_signs_alone_whatever_is_sent():
    task = quadratics(N, D)
    method = dx.server.dp_rsa(
        half_square,
        N,
        rate=0.2,
        record_clip=1.0,
        noise=0.0,
        channel=channel.only(channel.gaussian_noise(1e6), [0, 1]),
    )
    states, _ = rolled(method, task.federation(), jnp.zeros(D), 5)
    steps = np.diff(np.asarray(states.server.params), axis=0)
    assert np.abs(steps).max() <= 0.2 * 0.01 * (N + 0.004) + 1e-7


BASELINES = {
    "dp_momentum": {},
    "dp_fedsgd": {"radius": 0.5},
    "dp_median": {},
    "local_dp_momentum": {"radius": 0.5},
    "distributed_dp": {"limit": 0.2},
}


@pytest.mark.some(2)
@pytest.mark.parametrize("name", BASELINES)
def test_a_baseline_is_its_pseudo_code_without_noise(name):
    task, record, rounds = quadratics(N, D), 0.8, 6
    method = getattr(recipes, name)(
        half_square, N, rate=0.3, record_clip=record, noise=0.0, **BASELINES[name]
    )
    states, _ = rolled(method, task.federation(), jnp.ones(D), rounds)
    x, momenta, centre = np.ones(D), np.zeros((N, D)), np.zeros(D)
    beta = 0.9 if name in ("dp_momentum", "local_dp_momentum") else 0.0

    def cut(rows, radius):
        return rows * np.minimum(1, radius / np.linalg.norm(rows, axis=1))[:, None]

    for _ in range(rounds):
        momenta = (1 - beta) * cut(x - task.centers, record) + beta * momenta
        if name == "dp_fedsgd":
            centre = cut(momenta, 0.5).mean(0)
        elif name == "dp_median":
            centre = np.median(momenta, axis=0)
        elif name == "local_dp_momentum":
            centre = centre + cut(momenta - centre, 0.5).mean(0)
        elif name == "distributed_dp":
            centre = np.clip(momenta, -0.2, 0.2).mean(0)
        else:
            centre = momenta.mean(0)
        x = x - 0.3 * centre
    np.testing.assert_allclose(states.server.params[-1], x, rtol=0, atol=3e-6)


@pytest.mark.some(2)
@pytest.mark.parametrize(
    ("name", "deviation"),
    [
        ("dp_momentum", 0.5 * 2.0 / N),
        pytest.param("dp_fedsgd", 0.5 * 2.0 / N, marks=pytest.mark.slow),
        pytest.param("dp_median", 0.5 * 2.0, marks=pytest.mark.slow),
        ("local_dp_momentum", 0.1 * 0.5 * 2.0 / np.sqrt(N)),
        ("distributed_dp", 0.3 * 0.5 * 2.0 / np.sqrt(N)),
    ],
)
def test_a_baseline_has_the_noise_that_it_says(name, deviation):
    """All clients at their optimum: the first public momentum is noise alone, of 20,000 numbers."""
    d = 20_000
    data = dx.data.Dataset(jnp.zeros((N, d)), jnp.zeros(N, jnp.int32))
    source = dx.Federation(
        data,
        dx.data.from_indices([np.array([i]) for i in range(N)]),
        batch_size=1,
        local_steps=1,
        weights=jnp.ones(N),
    )
    options = BASELINES[name] | ({"radius": FAR} if "radius" in BASELINES[name] else {})
    options |= {"limit": FAR} if name == "distributed_dp" else {}
    method = getattr(recipes, name)(half_square, N, rate=0.1, record_clip=2.0, noise=0.5, **options)
    state, _ = jax.jit(method.step)(method.init(KEY, jnp.zeros(d)), source.draw(KEY, 0))
    np.testing.assert_allclose(np.std(state.server.memory), deviation, rtol=0.03)


def test_a_schedule_follows_the_round():
    rule = aggregation.scheduled(lambda t: aggregation.norm_bounding(1.0 / (1 + t)))
    for t in (0, 3):
        out, _, _ = jax.jit(rule.apply)(jnp.full((2, 1), 9.0), jnp.ones(2), (), Combining(KEY, t))
        np.testing.assert_allclose(out, 1 / (1 + t))


def test_numbers_beyond_a_limit_are_cut_one_by_one():
    rule = aggregation.coordinate_clipping(aggregation.mean(), 2.0)
    out, _, _ = rule.apply(jnp.asarray([[0.0, 3.0], [2.0, 1.0]]), jnp.ones(2), (), Combining(KEY))
    np.testing.assert_allclose(out, [1, 1.5])


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"noise": -1.0}, "noise must be"),
        ({"record_clip": 0.0}, "record_clip must be"),
        ({"radius": lambda t: -1.0}, "radius must be"),
        ({"beta": 1.0}, "beta must be"),
        ({"sampling": 0.0}, "sampling must be"),
    ],
)
def test_wrong_numbers_are_refused(change, words):
    options = {"rate": 0.1, "record_clip": 1.0, "radius": 1.0, "noise": 1.0}
    with pytest.raises(ValueError, match=words):
        dx.server.dp_brem(half_square, N, **(options | change))


def test_two_local_steps_and_a_bound_below_the_radius_are_refused():
    task = quadratics(N, D)
    method = dx.server.dp_brem(half_square, N, rate=0.1, **QUIET)
    with pytest.raises(ValueError, match="local_steps must be 1"):
        method.step(method.init(KEY, jnp.ones(D)), task.federation(2).draw(KEY, 0))
    secure = privacy.secure_aggregation(KEY, N, bound=0.1)
    with pytest.raises(ValueError, match=r"bound of at least the radius 0.5, got 0.1"):
        dx.server.dp_brem_plus(
            half_square, N, secure, rate=0.1, record_clip=1.0, radius=0.5, noise=1.0
        )


def test_expected_sizes_are_the_sampling_rate_times_the_sizes():
    task, federation = poisson()
    np.testing.assert_allclose(
        federation.partition.expected, 0.5 * np.asarray(task.partition.sizes)
    )
    uneven = dataclasses.replace(federation.partition, probability=jnp.linspace(0.1, 0.5, N))
    np.testing.assert_allclose(
        uneven.expected, np.linspace(0.1, 0.5, N) * np.asarray(task.partition.sizes), rtol=1e-6
    )
