"""Metrics, intervals, coverage and decompositions against hand numbers and NumPy in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

import dflax as dx
from dflax.inference import efficiency as ipw

RNG = np.random.default_rng(25)
M, H, Q = 3, 2, 16
ACCURACY = RNG.integers(0, 2, (M, Q)).astype(np.float32)
POWER = RNG.uniform(5, 50, (M, H, Q)).astype(np.float32)
LATENCY = RNG.uniform(0.1, 2, (M, H, Q)).astype(np.float32)
PERPLEXITY = RNG.uniform(1, 9, (M, Q)).astype(np.float32)
PRESENT = RNG.random((M, H, Q)) < 0.8
AGGREGATES = ("ratio_of_means", "mean_of_ratios")

computed = jax.jit(ipw.efficiency, static_argnames="aggregate")


def one(accuracy, power, latency=None, **options):
    """Of one model on one accelerator."""
    latency = np.ones_like(power) if latency is None else latency
    return ipw.measurements([accuracy], [[power]], [[latency]], **options)


def reference(counts=None):
    """Both aggregates by plain loops in float64."""
    found = {name: np.full((M, H), np.nan) for name in ("apw", "apj", "ppw", "ppj")}
    both = {aggregate: {k: v.copy() for k, v in found.items()} for aggregate in AGGREGATES}
    for m in range(M):
        for h in range(H):
            w = PRESENT[m, h] * (np.ones(Q) if counts is None else counts)
            acc, inverse = ACCURACY[m].astype(float), 1 / PERPLEXITY[m].astype(float)
            p = POWER[m, h].astype(float)
            e = p * LATENCY[m, h]
            for gain, name in ((acc, "ap"), (inverse, "pp")):
                for cost, unit in ((p, "w"), (e, "j")):
                    both["ratio_of_means"][name + unit][m, h] = (w @ gain) / (w @ cost)
                    both["mean_of_ratios"][name + unit][m, h] = w @ (gain / cost) / w.sum()
    return both


@pytest.mark.parametrize("aggregate", AGGREGATES)
def test_all_four_metrics_are_those_of_plain_loops(aggregate):
    lost = np.where(PRESENT, POWER, np.nan)
    measured = ipw.measurements(ACCURACY, lost, LATENCY, perplexity=PERPLEXITY, present=PRESENT)
    counts = RNG.integers(0, 4, Q).astype(np.float32)
    for weights in (None, counts):
        found = computed(measured, aggregate=aggregate, weights=weights)
        for name, wanted in reference(weights)[aggregate].items():
            np.testing.assert_allclose(getattr(found, name), wanted, rtol=1e-5)
        assert found.ipw is found.apw


def test_the_sheets_hand_numbers():
    varied = one([1.0, 1.0], [1.0, 3.0])
    assert computed(varied).apw == pytest.approx(1 / 2)
    assert computed(varied, aggregate="mean_of_ratios").apw == pytest.approx(2 / 3)
    constant = one([1.0, 0.0, 1.0], [4.0] * 3, [1.0, 2.0, 3.0])
    for aggregate in AGGREGATES:
        assert computed(constant, aggregate=aggregate).apw == pytest.approx(2 / 3 / 4)


@pytest.mark.parametrize("aggregate", AGGREGATES)
def test_power_divides_ipw_and_latency_divides_only_what_is_per_joule(aggregate):
    plain, strong, slow = (
        computed(ipw.measurements(ACCURACY, k * POWER, t * LATENCY), aggregate=aggregate)
        for k, t in ((1, 1), (4, 1), (1, 4))
    )
    np.testing.assert_allclose(strong.apw, plain.apw / 4, rtol=1e-5)
    np.testing.assert_array_equal(slow.apw, plain.apw)
    np.testing.assert_allclose(slow.apj, plain.apj / 4, rtol=1e-5)
    assert plain.ppw is None


def test_a_pair_that_was_never_measured_is_nan_and_alone():
    present = np.ones((M, H, Q), bool)
    present[1, 0] = False
    found = computed(ipw.measurements(ACCURACY, POWER, LATENCY, present=present))
    assert np.isnan(found.apw).tolist() == [[False, False], [True, False], [False, False]]


def test_metrics_of_queries_dealt_over_devices_are_the_same():
    measured = ipw.measurements(ACCURACY, POWER, LATENCY, perplexity=PERPLEXITY)
    mesh = dx.client_mesh()

    def dealt(leaf):
        axes = (*(None,) * (leaf.ndim - 1), "clients")
        return jax.device_put(leaf, NamedSharding(mesh, PartitionSpec(*axes)))

    alone, many = computed(measured), computed(jax.tree.map(dealt, measured))
    for ours, theirs in zip(alone, many, strict=True):
        np.testing.assert_allclose(theirs, ours, rtol=1e-6)


def test_intervals_cover_as_often_as_they_say_and_their_width_is_the_binomials():
    queries, rate, trials = 100, 0.3, 100

    @jax.jit
    @jax.vmap
    def interval(key):
        data_key, key = jax.random.split(key)
        right = jax.random.bernoulli(data_key, rate, (queries,)).astype(jnp.float32)
        return ipw.bootstrap(key, lambda w: w @ right / queries, queries, resamples=100)

    found = interval(jax.random.split(jax.random.key(0), trials))
    inside = np.mean((found.low <= rate) & (rate <= found.high))
    assert 0.86 <= inside <= 1.0
    np.testing.assert_allclose(
        np.mean(found.deviation), np.sqrt(rate * (1 - rate) / queries), rtol=0.05
    )


def test_a_resample_is_the_same_for_all_models_so_that_ratios_are_of_pairs():
    right, twice = np.ones((2, Q)), POWER[:1] * np.array([1, 2])[:, None, None]
    measured = ipw.measurements(right, twice, np.ones((2, H, Q)))

    @jax.jit
    def ratio(key):
        def statistic(weights):
            table = ipw.efficiency(measured, weights=weights).apw
            return {"alone": table[0], "ratio": table[0] / table[1]}

        return ipw.bootstrap(key, statistic, Q, resamples=50)

    found = ratio(jax.random.key(1))
    assert np.all(found.deviation["alone"] > 1e-4)
    np.testing.assert_allclose(found.deviation["ratio"], 0.0, atol=1e-5)
    np.testing.assert_allclose(found.estimate["ratio"], 2.0, rtol=1e-6)


def test_segment_means_are_those_of_the_members_and_nan_without_any():
    segments, weights = np.array([2, 0, 2, 0]), np.array([1.0, 1.0, 3.0, 0.0])
    values = np.array([[1.0, 2.0, 3.0, 4.0], [0.0, 1.0, 0.0, 1.0]])
    plain = ipw.segment_mean(values, segments, 3)
    np.testing.assert_allclose(plain, [[3.0, np.nan, 2.0], [1.0, np.nan, 0.0]])
    weighed = ipw.segment_mean(values[0], segments, 3, weights=weights)
    np.testing.assert_allclose(weighed, [2.0, np.nan, 2.5])


def test_coverage_is_monotone_and_a_single_models_accuracy():
    alone = [float(ipw.coverage(ACCURACY[m : m + 1])) for m in range(M)]
    np.testing.assert_allclose(alone, ACCURACY.mean(1), rtol=1e-6)
    sets = [np.arange(M) < k for k in range(M + 1)]
    grown = [float(ipw.coverage(ACCURACY, among=among)) for among in sets]
    assert grown[0] == 0
    assert all(np.diff(grown) >= 0)
    np.testing.assert_array_equal(ipw.covered(ACCURACY), ACCURACY.max(0))
    some = (np.arange(Q) < 4).astype(float)
    assert float(ipw.coverage(ACCURACY, weights=some)) == ACCURACY.max(0)[:4].mean()


def test_independent_models_cover_one_minus_the_product():
    skills, queries = np.array([-1.0, 0.0, 0.5]), 40_000
    answers = ipw.item_response(jax.random.key(2), skills, np.zeros(queries))
    rates = 1 / (1 + np.exp(-skills))
    np.testing.assert_allclose(np.mean(answers, 1), rates, atol=0.012)
    wanted = 1 - np.prod(1 - rates)
    assert float(ipw.coverage(answers)) == pytest.approx(wanted, abs=0.01)


def test_factors_multiply_to_the_total_on_every_path():
    papers = ipw.decomposition([[1.0, 1.7], [3.1, 5.27]])
    np.testing.assert_allclose(papers.total, 5.27)
    np.testing.assert_allclose(papers.model, [3.1] * 3, rtol=1e-6)
    np.testing.assert_allclose(papers.hardware, [1.7] * 3, rtol=1e-6)
    crossed = ipw.decomposition([[1.0, 3.0], [2.0, 12.0]])
    np.testing.assert_allclose(crossed.model, [2.0, 4.0, np.sqrt(8)], rtol=1e-6)
    np.testing.assert_allclose(crossed.hardware, [6.0, 3.0, np.sqrt(18)], rtol=1e-6)
    np.testing.assert_allclose(crossed.model * crossed.hardware, [12.0] * 3, rtol=1e-6)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"power": 0 * POWER}, "power must be a finite number in"),
        ({"power": POWER * np.nan}, "power must be finite numbers.*`present`"),
        ({"latency": LATENCY[:, :1]}, r"latency must be real numbers of shape \[3, 2, 16\]"),
        ({"accuracy": ACCURACY * 2}, "accuracy must be a finite number in"),
        ({"perplexity": PERPLEXITY / 10}, "perplexity must be a finite number in"),
        ({"present": np.ones((M, Q), bool)}, "present must be booleans of shape"),
        ({"energy": -POWER}, "energy must be"),
    ],
)
def test_bad_measurements_are_refused_by_name(change, message):
    given = {"accuracy": ACCURACY, "power": POWER, "latency": LATENCY} | change
    with pytest.raises(ValueError, match=message):
        ipw.measurements(**given)


def test_other_bad_arguments_are_refused_by_name():
    measured = ipw.measurements(ACCURACY, POWER, LATENCY)
    with pytest.raises(ValueError, match="aggregate must be one of"):
        ipw.efficiency(measured, aggregate="median")
    with pytest.raises(ValueError, match=r"weights must be real numbers of shape \[16\]"):
        ipw.efficiency(measured, weights=np.ones(3))
    with pytest.raises(ValueError, match="segments must be finite numbers in"):
        ipw.segment_mean(np.ones(2), np.array([0, 3]), 3)
    with pytest.raises(ValueError, match="ipw must be a finite number"):
        ipw.decomposition([[1.0, 0.0], [1.0, 1.0]])
