"""Expectation truncation against sums over all states in float64 NumPy, and bars that are found."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.optimize import linear_sum_assignment
from scipy.stats import multivariate_normal
from tasks import assert_trees_close

import dflax as dx
from dflax import sparse_coding as sc
from dflax.sparse_coding.expectation_truncation import evidence
from dflax.sparse_coding.spike_and_slab import inverse

KEY = jax.random.key(0)
D, H, N = 6, 4, 40
RNG = np.random.default_rng(2)
WEIGHTS = np.abs(RNG.normal(size=(D, H))) * 3 + 0.5
SIGNED = WEIGHTS * RNG.choice([-1, 1], (D, H))
CAUSES = RNG.random((N, H)) < 0.35
EXAMPLES = CAUSES @ WEIGHTS.T + RNG.normal(size=(N, D))
PRIOR, NOISE = 0.3, 1.2


def federation(examples=EXAMPLES, clients=1, seed=0):
    labels = np.zeros(len(examples), np.int64)
    # In the examples' own precision.
    with jax.enable_x64(examples.dtype == np.float64):
        data = dx.data.Dataset(jnp.asarray(examples), jnp.asarray(labels, jnp.int32))
        partition = dx.data.iid(labels, clients, seed=seed)
        return dx.Federation(data, partition, batch_size=4, local_steps=1)


def learned(model, coding, steps=1, temperature=1.0, cut=False, source=None, **options):
    """The codings after some steps, in float64, and the metrics."""
    with jax.enable_x64(True):
        source = federation() if source is None else source
        schedule = sc.annealing(max(steps, 1), temperature, cut=cut)
        algorithm = sc.expectation_truncation(model, schedule, batch_size=16, **options)
        coding = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float64), coding)
        state = algorithm.init(KEY, coding)
        run = jax.jit(lambda s, f: dx.rollout(algorithm, s, f, KEY, steps))
        state, metrics = run(state, source)
        return jax.tree.map(np.asarray, (state.server.params, metrics))


def binary(dictionary=WEIGHTS):
    return sc.Discrete(dictionary, np.array([1 - PRIOR, PRIOR]), np.array(NOISE))


def states(values=(0.0, 1.0)):
    return np.array(list(itertools.product(values, repeat=H)))


def shown(kind, W, s, rho):
    """f(W, s) of one state."""
    if kind == "linear":
        return W @ s
    if kind == "mca":
        return ((s * W**rho).sum(1)) ** (1 / rho)
    t = (s * np.sign(W) * np.abs(W) ** rho).sum(1)
    return np.sign(t) * np.abs(t) ** (1 / rho)


def exact(kind, W, values, probabilities, sigma, rho=1.0, y=EXAMPLES):
    """Posteriors `[N, states]` over all states, and the mean log-evidence."""
    all_states = states(values)
    prior = np.array([np.prod([probabilities[values.index(v)] for v in s]) for s in all_states])
    f = np.array([shown(kind, W, s, rho) for s in all_states])
    log = np.log(prior) - ((y[:, None] - f) ** 2).sum(-1) / (2 * sigma**2)
    log = log - D / 2 * np.log(2 * np.pi * sigma**2)
    top = log.max(1, keepdims=True)
    total = np.log(np.exp(log - top).sum(1)) + top[:, 0]
    return all_states, np.exp(log - total[:, None]), total.mean(), f


@pytest.mark.some(2)
@pytest.mark.parametrize(
    ("model", "values"),
    [
        (sc.bsc(H, H, H), (0.0, 1.0)),
        (sc.tsc(H, H, H), (0.0, -1.0, 1.0)),
        (sc.dsc(H, H, H, (1.0, 2.0)), (0.0, 1.0, 2.0)),
    ],
    ids=["bsc", "tsc", "dsc"],
)
def test_with_all_states_a_step_is_exact_em(model, values):
    V = len(values) - 1
    probabilities = [1 - PRIOR] + [PRIOR / V] * V
    coding = sc.Discrete(WEIGHTS, np.array(probabilities), np.array(NOISE))
    found, metrics = learned(model, coding)
    s, q, evidence, f = exact("linear", WEIGHTS, values, probabilities, NOISE)
    mean, second = q @ s, np.einsum("ns,sh,sk->hk", q, s, s)
    np.testing.assert_allclose(
        found.dictionary, (EXAMPLES.T @ mean) @ np.linalg.inv(second), rtol=1e-6
    )
    counts = np.array([(q @ (s == v).sum(1)).sum() for v in values]) / (N * H)
    if V > 1 and model.truncation.patterns.max() > 1 and values == (0.0, -1.0, 1.0):
        counts = np.array([counts[0], *[(1 - counts[0]) / 2] * 2])
    np.testing.assert_allclose(found.prior, counts, rtol=1e-8)
    error = (q * ((EXAMPLES[:, None] - f) ** 2).sum(-1)).sum() / (D * N)
    assert found.noise == pytest.approx(np.sqrt(error), rel=1e-8)
    assert metrics["bound"][0] == pytest.approx(evidence, rel=1e-8)
    assert metrics["kept"][0] == N


@pytest.mark.parametrize("kind", ["mca", "mmca"])
def test_with_all_states_maximal_causes_are_the_sums_over_them(kind):
    W = WEIGHTS if kind == "mca" else SIGNED
    model, rho = {"mca": (sc.mca(H, H, H), 21.0), "mmca": (sc.mmca(H, H, H), 6.0)}[kind]
    found, metrics = learned(model, binary(W))
    s, q, evidence, f = exact(kind, W, (0.0, 1.0), (1 - PRIOR, PRIOR), NOISE, rho)
    # Where nothing is active, there are no shares.
    size = np.where(f == 0, np.inf, np.abs(f))[:, :, None]
    a = s[:, None] * (np.abs(W) / size) ** (rho - 1)
    if kind == "mmca":
        a = np.minimum(a, s[:, None])
    shares = np.einsum("ns,sdh->dh", q, a)
    means = np.einsum("ns,sdh,nd->dh", q, a, EXAMPLES) / shares
    if kind == "mmca":
        trust = np.maximum(1 - np.exp(-shares / 2.5), 0.2)
        means = trust * means + (1 - trust) * W
    np.testing.assert_allclose(found.dictionary, means, rtol=1e-6)
    assert found.prior[1] == pytest.approx((q @ s.sum(1)).mean() / H, rel=1e-8)
    assert metrics["bound"][0] == pytest.approx(evidence, rel=1e-8)


def slabs(diagonal=True):
    rng = np.random.default_rng(5)
    root = rng.normal(size=(H, H)) * 0.2
    Psi = np.diag(rng.random(H) + 0.5) + (0 if diagonal else root @ root.T)
    return sc.SpikeAndSlab(
        WEIGHTS, rng.random(H) * 0.3 + 0.2, rng.normal(size=H), Psi, np.array(NOISE**2)
    )


@pytest.mark.some(1)
@pytest.mark.parametrize("diagonal", [True, False])
def test_with_all_supports_spike_and_slab_is_exact_em(diagonal):
    coding = slabs(diagonal)
    W, prior, mu, Psi, variance = (np.asarray(x) for x in coding)
    found, metrics = learned(sc.gsc(H, H, H, diagonal=diagonal), coding)
    logs, means, seconds = [], [], []
    for s in states().astype(bool):
        Ws, Ps = W[:, s], Psi[np.ix_(s, s)]
        C = variance * np.eye(D) + Ws @ Ps @ Ws.T
        log = np.log(np.where(s, prior, 1 - prior)).sum()
        logs.append(log + multivariate_normal(Ws @ mu[s], C).logpdf(EXAMPLES))
        gain = Ps @ Ws.T @ np.linalg.inv(C)
        v = np.zeros((N, H))
        v[:, s] = mu[s] + (EXAMPLES - Ws @ mu[s]) @ gain.T
        vv = v[:, :, None] * v[:, None]
        vv[:, np.ix_(s, s)[0], np.ix_(s, s)[1]] += Ps - gain @ Ws @ Ps
        means.append(v)
        seconds.append(vv)
    logs = np.stack(logs, 1)
    total = np.log(np.exp(logs).sum(1))
    q = np.exp(logs - total[:, None])
    v = np.einsum("ns,snh->nh", q, np.array(means))
    vv = np.einsum("ns,snhk->hk", q, np.array(seconds))
    active = q @ states()
    new = (EXAMPLES.T @ v) @ np.linalg.inv(vv)
    np.testing.assert_allclose(found.dictionary, new, rtol=1e-6)
    np.testing.assert_allclose(found.prior, active.mean(0), rtol=1e-7)
    mean = v.sum(0) / active.sum(0)
    np.testing.assert_allclose(found.mean, mean, rtol=1e-7)
    spread = np.diagonal(vv) / active.sum(0) - mean**2
    if diagonal:
        np.testing.assert_allclose(found.covariance, np.diag(spread), rtol=1e-6, atol=1e-12)
    else:
        assert np.linalg.eigvalsh(found.covariance).min() > 0
        assert np.abs(found.covariance - np.diag(np.diagonal(found.covariance))).max() > 1e-3
    error = (EXAMPLES**2).sum() - 2 * (EXAMPLES.T @ v * new).sum() + (new.T @ new * vv).sum()
    assert found.variance == pytest.approx(error / (D * N), rel=1e-7)
    assert metrics["bound"][0] == pytest.approx(total.mean(), rel=1e-8)


@pytest.mark.parametrize("name", ["bsc", "gsc"])
def test_exact_em_never_loses(name):
    model = {"bsc": sc.bsc, "gsc": sc.gsc}[name](H, H, H)
    start = slabs() if name == "gsc" else binary(WEIGHTS + RNG.normal(size=(D, H)))
    _, metrics = learned(model, start, 30)
    assert np.all(np.diff(metrics["bound"]) > -1e-9)
    assert metrics["bound"][-1] > metrics["bound"][0] + 0.1


@pytest.mark.slow
def test_models_that_contain_each_other_agree():
    one, _ = learned(sc.bsc(H, H, H), binary(), 3)
    two, _ = learned(sc.dsc(H, H, H, (1.0,)), binary(), 3)
    assert_trees_close(one, two, rtol=1e-6, atol=1e-9)
    point = sc.SpikeAndSlab(
        WEIGHTS, np.full(H, PRIOR), np.ones(H), np.eye(H) * 1e-9, np.array(NOISE**2)
    )
    thin, _ = learned(sc.gsc(H, H, H), point)
    once, _ = learned(sc.bsc(H, H, H), binary())
    np.testing.assert_allclose(thin.dictionary, once.dictionary, rtol=1e-4)


@pytest.mark.slow
def test_values_by_hand():
    coding = sc.Discrete(np.ones((1, 1)), np.array([0.5, 0.5]), np.array(1.0))
    model = sc.bsc(1, 1, 1)
    joints = model.joints(
        jax.tree.map(jnp.asarray, coding), jnp.ones((1, 1)), jnp.zeros((1, 1), int), jnp.ones(())
    )
    odds = joints.alone[0, 0, 0] - joints.none[0]
    assert jax.nn.sigmoid(odds) == pytest.approx(0.6225, abs=1e-4)
    A, B = sc.mass_within(sc.truncation(2, 1, 1), 0.5)
    assert (float(A), float(B)) == (0.75, 0.5)
    assert len(sc.truncation(10, 8, 5).patterns) == 28 + 56 + 70 + 56
    assert len(sc.truncation(10, 7, 5, values=2).patterns) == 84 + 280 + 560 + 672
    schedule = sc.annealing(10, 5.0)
    np.testing.assert_allclose(
        np.asarray(schedule.temperature)[[0, 4, 8, 9]], [5, 3, 1, 1], rtol=1e-6
    )
    np.testing.assert_allclose(np.asarray(schedule.cut)[[0, 3, 7]], [0, 0.45, 1], rtol=1e-6)


@pytest.mark.slow
def test_examples_of_many_causes_are_cut_away():
    """The N_use of the largest evidence are kept, whoever owns them."""
    model = sc.bsc(H, 3, 2)
    A, _ = sc.mass_within(model.truncation, PRIOR)
    use = int(N * float(A))
    _, metrics = learned(model, binary(), 3, cut=True)
    assert metrics["kept"].tolist() == [N, *metrics["kept"][1:]]
    schedule = sc.Annealing(jnp.ones(1), jnp.ones(1))
    for clients in (1, 5):
        with jax.enable_x64(True):
            algorithm = sc.expectation_truncation(model, schedule, batch_size=7)
            coding = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float64), binary())
            state = algorithm.init(KEY, coding)
            after, metrics = jax.jit(algorithm.step)(
                state, federation(clients=clients).draw(KEY, 0)
            )
            joints = model.joints(
                coding, jnp.asarray(EXAMPLES), model.candidates(coding, jnp.asarray(EXAMPLES)), 1.0
            )
            scores = np.sort(np.asarray(evidence(joints)))[::-1]
            assert metrics["kept"] == pytest.approx(use)
            assert after.server.memory == pytest.approx(scores[use - 1], rel=1e-12)
            W = np.asarray(after.server.params.dictionary)
        reference = W if clients == 1 else reference
        np.testing.assert_allclose(W, reference, rtol=1e-10)


@pytest.mark.parametrize(
    "name",
    ["bsc", *(pytest.param(name, marks=pytest.mark.slow) for name in ("mca", "gsc"))],
)
def test_who_owns_which_example_makes_no_difference(name):
    model = {"bsc": sc.bsc(H, 3, 2), "mca": sc.mca(H, 3, 2), "gsc": sc.gsc(H, 3, 2)}[name]
    start = slabs() if name == "gsc" else binary()
    one, first = learned(model, start, 2, cut=True)
    many, second = learned(model, start, 2, cut=True, source=federation(clients=8, seed=3))
    assert_trees_close(one, many, rtol=1e-9, atol=1e-11)
    assert_trees_close(first["bound"], second["bound"], rtol=1e-10)


@pytest.mark.slow
def test_a_mesh_gives_what_a_single_device_gives():
    model = sc.bsc(H, 3, 2)
    algorithm = sc.expectation_truncation(model, sc.annealing(4, 2.0), batch_size=8)
    source = federation(EXAMPLES.astype(np.float32), clients=8)
    coding = sc.discrete_start(KEY, EXAMPLES, model)
    one, _ = dx.run(algorithm, algorithm.init(KEY, coding), source, rounds=4, key=KEY)
    mesh = dx.client_mesh()
    eight, _ = dx.run(algorithm, algorithm.init(KEY, coding), source, rounds=4, key=KEY, mesh=mesh)
    assert_trees_close(one.server.params, eight.server.params, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_temperatures_sweep_as_one_program():
    model, source = sc.bsc(H, 3, 2), federation(EXAMPLES.astype(np.float32))
    coding = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), binary())

    def run(temperature):
        algorithm = sc.expectation_truncation(model, sc.annealing(3, temperature, cut=False))
        state = algorithm.init(KEY, coding)
        return dx.rollout(algorithm, state, source, KEY, 3)[0].server.params.dictionary

    found = jax.jit(jax.vmap(run))(jnp.array([1.0, 4.0]))
    np.testing.assert_allclose(found[1], jax.jit(run)(4.0), rtol=1e-4)
    assert np.abs(found[0] - found[1]).max() > 1e-3


@pytest.mark.slow
def test_lost_statistics_are_of_nobody():
    """With half of the clients lost the step is that of the others' examples."""
    source = federation(clients=4)
    model = sc.bsc(H, H, H)
    gone = np.asarray(source.partition.as_lists()[1])
    rest = np.setdiff1d(np.arange(N), gone)
    with jax.enable_x64(True):
        algorithm = sc.expectation_truncation(model, sc.annealing(1, cut=False), batch_size=16)
        coding = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float64), binary())
        round = source.draw(KEY, 0)
        round = round._replace(weights=round.weights.at[1].set(0.0))
        after, _ = jax.jit(algorithm.step)(algorithm.init(KEY, coding), round)
        got = jax.tree.map(np.asarray, after.server.params)
    expected, _ = learned(model, binary(), source=federation(EXAMPLES[rest]))
    assert_trees_close(got, expected, rtol=1e-9)


def bars(seed, kind="linear", count=500):
    """5 x 5 images of horizontal and vertical bars of size 10, two of ten on average."""
    rng = np.random.default_rng(seed)
    W = np.zeros((5, 5, 10))
    for i in range(5):
        W[i, :, i] = W[:, i, 5 + i] = 10
    W = W.reshape(25, 10)
    s = rng.random((count, 10)) < 0.2
    y = s @ W.T if kind == "linear" else (s[:, None] * W).max(-1)
    return W, (y + 2 * rng.normal(size=y.shape)).astype(np.float32)


@functools.cache
def recovered(name, seed, steps):
    model = {"bsc": sc.bsc(10, 5, 3), "mca": sc.mca(10, 5, 3)}[name]
    W, y = bars(seed, "linear" if name == "bsc" else "max")
    temperature = {"bsc": 5.0, "mca": 4.0}[name]
    algorithm = sc.expectation_truncation(model, sc.annealing(steps, temperature), batch_size=50)
    run = jax.jit(lambda s, f: dx.rollout(algorithm, s, f, KEY, steps))
    # A start may end in a local optimum: the best of three by their bounds.
    ends = []
    for start in jax.random.split(jax.random.key(seed), 3):
        state = algorithm.init(KEY, sc.discrete_start(start, y, model))
        state, metrics = run(state, federation(y, clients=2))
        ends.append((float(metrics["bound"][-1]), state.server.params))
    bound, coding = max(ends, key=lambda end: end[0])
    apart = np.abs(np.asarray(coding.dictionary)[:, :, None] - W[:, None]).mean(0)
    rows, columns = linear_sum_assignment(apart)
    return apart[rows, columns], coding, bound


@pytest.mark.slow
def test_bars_are_found():
    for seed in (0, 1):
        apart, coding, _ = recovered("bsc", seed, 50)
        assert (apart < 1).sum() == 10
        assert float(1 - coding.prior[0]) == pytest.approx(0.2, rel=0.12)
        assert float(coding.noise) == pytest.approx(2.0, rel=0.05)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: sc.bsc(4, 5, 2), "candidates must be"),
        (lambda: sc.bsc(4, 2, 3), "most must be"),
        (lambda: sc.truncation(60, 40, 12), "candidates and most must make at most"),
        (lambda: sc.dsc(4, 3, 2, (1.0, 0.0)), "values must be distinct"),
        (lambda: sc.mca(4, 3, 2, sharpest=1.0), "sharpest must be"),
        (lambda: sc.annealing(3, 0.5), "temperature must be"),
        (lambda: sc.discrete_start(KEY, np.ones((5, 3)), sc.bsc(4, 3, 2)), "data must hold"),
        (lambda: sc.expectation_truncation("bsc", sc.annealing(2)), "model must be"),
    ],
)
def test_bad_arguments_are_refused(make, message):
    with pytest.raises((TypeError, ValueError), match=message):
        make()


def test_small_inverses():
    roots = np.random.default_rng(0).normal(size=(7, 3, 4, 4))
    matrices = roots @ np.swapaxes(roots, -1, -2) + np.eye(4)
    with jax.enable_x64(True):
        found, logs = inverse(jnp.asarray(matrices))
    np.testing.assert_allclose(found, np.linalg.inv(matrices), rtol=1e-10, atol=1e-12)
    np.testing.assert_allclose(logs, np.linalg.slogdet(matrices)[1], rtol=1e-10)
