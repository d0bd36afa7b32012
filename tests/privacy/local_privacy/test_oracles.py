"""Frequency oracles: hand values, privacy by enumeration, unbiasedness, variances, devices, sweeps."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import dflax as dx
from dflax.privacy import local_privacy as lp

KEY = jax.random.key(0)
LN3 = float(np.log(3))
ORACLES = {
    "k_rr": lp.k_rr,
    "k_rr without other": functools.partial(lp.k_rr, other=False),
    "oue": lp.oue,
    "sue": lp.sue,
    "olh": lp.olh,
    "blh": functools.partial(lp.olh, buckets=2),
    "hadamard": lp.hadamard_response,
    "hadamard, 2 blocks": functools.partial(lp.hadamard_response, blocks=2),
    "hadamard, 4 blocks": functools.partial(lp.hadamard_response, blocks=4),
}
UNBIASED = [name for name in ORACLES if name != "k_rr without other"]
named = pytest.mark.parametrize("name", ORACLES)


def slow(*names):
    """Variants of what is tried among the fast ones."""
    return [pytest.param(name, marks=pytest.mark.slow) for name in names]


def test_hand_values_of_k_rr():
    """p = 1/2, q = 1/6: counts (5, 3, 2, 2) of 12 are (0.75, 0.25, 0, 0)."""
    reports = jnp.repeat(jnp.arange(4), jnp.array([5, 3, 2, 2]))
    found = lp.k_rr(LN3, other=False).estimate(reports, lp.domain(4))
    np.testing.assert_allclose(found.frequency, [0.75, 0.25, 0, 0], atol=1e-6)
    np.testing.assert_allclose(found.deviation**2, 5 / 48, rtol=1e-5)
    np.testing.assert_array_equal(found.counts, [5, 3, 2, 2])
    assert found.users == 12
    # Whatever the reports, estimates add up to 1.
    reports = jax.random.randint(KEY, (101,), 0, 4)
    assert lp.k_rr(0.3, other=False).estimate(
        reports, lp.domain(4)
    ).frequency.sum() == pytest.approx(1, abs=1e-4)


def test_hand_values_of_unary_encodings_and_hashing():
    domain, nothing = lp.domain(4), jnp.zeros(4)
    for oracle in (lp.oue(LN3), lp.olh(LN3)):
        # 4 e^eps / (n (e^eps - 1)^2) = 3 / n.
        np.testing.assert_allclose(oracle.variance(nothing, 12, domain), 3 / 12, rtol=1e-5)
    assert lp.olh(LN3).bits(domain) == 32 + 2
    assert lp.oue(LN3).bits(domain) == 4
    assert lp.k_rr(LN3, other=False).bits(domain) == 2
    assert lp.k_rr(LN3).bits(domain) == 3
    assert lp.hadamard_response(LN3).bits(domain) == 3
    # A report that sets the first bit alone, p = 1/2 and q = 1/4: (1 - q) / (p - q) = 3.
    report = jnp.array([[True, False, False, False]])
    np.testing.assert_allclose(
        lp.oue(LN3).estimate(report, domain).frequency, [3, -1, -1, -1], rtol=1e-5
    )


def test_where_k_rr_is_as_exact_as_oue():
    """(d - 2 + 3) / 4n = 3 / n at d = 11 = 3 e^eps + 2."""
    nothing = jnp.zeros(11)
    domain = lp.domain(11)
    k_rr = lp.k_rr(LN3, other=False).variance(nothing, 1, domain)
    np.testing.assert_allclose(k_rr, lp.oue(LN3).variance(nothing, 1, domain), rtol=1e-5)
    assert lp.prefers_k_rr(LN3, 10)
    assert not lp.prefers_k_rr(LN3, 12)


def all_reports(name, oracle, domain):
    """Every report that there is, of hashing those of some functions."""
    padded = int(domain.padded)
    if name in ("oue", "sue"):
        bits = np.arange(2**padded)[:, None] >> np.arange(padded) & 1
        return jnp.asarray(bits.astype(bool))
    if name in ("olh", "blh"):
        buckets = 2 if name == "blh" else 4
        seed = jax.random.bits(KEY, (50,))
        return lp.Hashed(jnp.repeat(seed, buckets), jnp.tile(jnp.arange(buckets), 50))
    return jnp.arange(
        int(2 ** oracle.bits(domain)) if "hadamard" in name else padded + (name == "k_rr")
    )


@pytest.mark.slow
@named
def test_no_report_is_more_than_e_to_the_epsilon_times_as_likely(name):
    """By enumeration, over all values and two outside of the domain; likelihoods add up to 1."""
    oracle, domain = ORACLES[name](LN3), lp.domain(5)
    reports = all_reports(name, oracle, domain)
    count = jax.tree.leaves(reports)[0].shape[0]
    likelihoods = np.stack(
        [
            np.asarray(oracle.log_likelihood(reports, jnp.full(count, value), domain), np.float64)
            for value in (*range(5), 5, -1, 17)
        ]
    )
    ratios = likelihoods[:, None] - likelihoods[None]
    assert ratios.max() == pytest.approx(LN3, abs=1e-5)
    total = 50 if name in ("olh", "blh") else 1
    np.testing.assert_allclose(np.exp(likelihoods).sum(1), total, rtol=1e-5)


@pytest.mark.some(1)
@pytest.mark.parametrize(
    "name",
    [
        "k_rr",
        "oue",
        "olh",
        "hadamard, 2 blocks",
        *slow("k_rr without other", "sue", "blh", "hadamard", "hadamard, 4 blocks"),
    ],
)
def test_reports_are_as_likely_as_they_are_said_to_be(name):
    """For a value and for one outside of the domain: counts of every report against its likelihood."""
    oracle, domain, users = ORACLES[name](1.0), lp.domain(3, 4), 40_000
    respond = jax.jit(oracle.respond)
    for value in (1, -1):
        reports = respond(KEY, jnp.full(users, value), domain)
        if isinstance(reports, lp.Hashed):
            # Of hashing, how often the own bucket is told.
            told = oracle.log_likelihood(reports, jnp.full(users, value), domain)
            p = float(jnp.exp(told.max()))
            seen, likely = np.array([np.mean(told == told.max())]), np.array([p])
        else:
            rows = np.asarray(reports).reshape(users, -1)
            codes = (rows * 2 ** np.arange(rows.shape[1])).sum(1)
            _, first, counts = np.unique(codes, return_index=True, return_counts=True)
            some = jnp.asarray(np.asarray(reports)[first])
            likely = np.exp(oracle.log_likelihood(some, jnp.full(len(first), value), domain))
            seen = counts / users
            assert likely.sum() == pytest.approx(1, abs=1e-3)
        assert np.all(np.abs(seen - likely) < 5 * np.sqrt(likely / users))


VALUES = np.random.default_rng(0).choice(7, 500, p=[0.3, 0.2, 0.1, 0.1, 0.1, 0.1, 0.1]) - 1
TRUE = np.array([np.mean(value == VALUES) for value in range(5)])


@functools.cache
def many_estimates(name, literal):
    """2000 estimates of 500 users, 200 of whom have none of the 5 values, in a padded domain."""
    oracle = ORACLES[name](1.0)
    oracle = lp.literally(oracle) if literal else oracle
    domain = lp.domain(5, 8)
    many = jax.jit(jax.vmap(lambda key: oracle.simulate(key, jnp.asarray(VALUES), domain)))
    found = many(jax.random.split(KEY, 2000))
    assert not found.frequency[:, 5:].any()
    variance = oracle.variance(jnp.asarray(np.pad(TRUE, (0, 3))), len(VALUES), domain)
    return np.asarray(found.frequency[:, :5], np.float64), np.asarray(variance[:5])


FAST = [
    ("k_rr", False),
    ("oue", False),
    ("oue", True),
]
REST = [*((name, False) for name in UNBIASED if (name, False) not in FAST), ("sue", True)]


@pytest.mark.parametrize(
    ("name", "literal"), [*FAST, *(pytest.param(*one, marks=pytest.mark.slow) for one in REST)]
)
def test_estimates_are_unbiased_and_as_exact_as_said(name, literal):
    found, variance = many_estimates(name, literal)
    assert np.all(np.abs(found.mean(0) - TRUE) < 4 * np.sqrt(variance / len(found)))
    np.testing.assert_allclose(found.var(0), variance, rtol=0.15)
    # Over all values together the spread of a variance is less.
    assert np.mean(found.var(0) / variance) == pytest.approx(1, abs=0.07)


@pytest.mark.parametrize("name", ["oue", *slow("sue")])
def test_simulated_counts_have_the_law_of_literal_ones(name):
    literal, counted = many_estimates(name, True)[0], many_estimates(name, False)[0]
    for each in np.concatenate([literal, counted], 1).T:
        assert each.std() > 0
    for one, other in zip(literal.T, counted.T, strict=True):
        grid = np.quantile(one, [0.1, 0.3, 0.5, 0.7, 0.9])
        shares = [(column[:, None] <= grid).mean(0) for column in (one, other)]
        np.testing.assert_allclose(*shares, atol=0.06)


@pytest.mark.parametrize("name", ["k_rr", *slow("olh", "k_rr without other", "sue")])
def test_without_privacy_estimates_are_exact(name):
    inside = jnp.asarray(VALUES[VALUES >= 0] % 5)
    found = jax.jit(ORACLES[name](100.0).simulate)(KEY, inside, lp.domain(5))
    true = np.bincount(np.asarray(inside), minlength=5) / len(inside)
    np.testing.assert_allclose(found.frequency, true, atol=1e-6)


@pytest.mark.slow
def test_without_privacy_oue_still_tosses_a_coin_for_ones_own_bit():
    """p stays 1/2: exact is alone that nobody has what nobody has."""
    found = jax.jit(lp.oue(100.0).simulate)(KEY, jnp.asarray(VALUES) % 4, lp.domain(6))
    np.testing.assert_array_equal(found.frequency[4:], 0)
    shares = np.bincount(VALUES % 4, minlength=6) / len(VALUES)
    variance = lp.oue(100.0).variance(jnp.asarray(shares), len(VALUES), lp.domain(6))
    np.testing.assert_allclose(variance, shares / len(VALUES), rtol=1e-5)
    assert np.any(found.frequency[:4] != shares[:4].astype(np.float32))


@pytest.mark.parametrize("name", ["k_rr", "hadamard, 2 blocks", *slow("sue", "olh")])
def test_absent_rows_are_no_users(name):
    domain = lp.domain(5)
    present = jnp.arange(1000) < 500
    values = jnp.concatenate([jnp.asarray(VALUES), jnp.zeros(500, int)])
    simulate = jax.jit(ORACLES[name](100.0).simulate)
    found = simulate(KEY, values, domain, present)
    assert found.users == 500
    assert np.isfinite(found.frequency).all()
    if name != "hadamard, 2 blocks":
        np.testing.assert_allclose(found.frequency, TRUE, atol=1e-6)
    nobody = simulate(KEY, values, domain, jnp.zeros(1000, bool))
    np.testing.assert_array_equal(nobody.frequency, 0)
    np.testing.assert_array_equal(nobody.deviation, np.inf)


@pytest.mark.parametrize(
    "name",
    [
        "k_rr",
        *slow("oue", "olh", "hadamard, 4 blocks"),
    ],
)
def test_budgets_are_swept_in_one_program(name):
    budgets = jnp.array([0.5, 1.0, 4.0])
    domain = lp.domain(5)

    def at(epsilon):
        oracle = ORACLES[name](epsilon)
        return oracle.simulate(KEY, jnp.asarray(VALUES), domain).frequency

    swept, alone = jax.jit(jax.vmap(at))(budgets), jax.jit(at)
    for row, epsilon in zip(swept, budgets, strict=True):
        np.testing.assert_allclose(row, alone(epsilon), atol=1e-5)


@pytest.mark.parametrize(
    "name",
    [
        "k_rr",
        *slow("olh", "oue", "hadamard, 2 blocks"),
    ],
)
def test_users_dealt_over_devices_tell_the_same(name):
    """Each device counts its own users; what is exchanged are counts, not reports."""
    oracle, domain = ORACLES[name](1.0), lp.domain(6, 16)
    values = jax.random.randint(KEY, (512,), -1, 8)
    present = jnp.arange(512) % 5 > 0

    def simulate(key, values, present):
        return oracle.simulate(key, values, domain, present)

    alone = jax.jit(simulate)(KEY, values, present)
    mesh = dx.client_mesh()
    with jax.set_mesh(mesh):
        spread = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("clients"))
        own = jax.device_put((values, present), spread)
        program = jax.jit(simulate).lower(KEY, *own).compile()
        dealt = program(KEY, *own)
    for ours, theirs in zip(alone, dealt, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-6, atol=1e-6)
    text = program.as_text()
    assert "all-reduce" in text
    assert "all-gather" not in text


@pytest.mark.slow
def test_no_program_of_unary_encodings_has_an_entry_for_every_user_and_value():
    oracle, domain = lp.oue(1.0), lp.domain(2048)
    lowered = jax.jit(lambda key, values: oracle.simulate(key, values, domain)).lower(
        KEY, jax.ShapeDtypeStruct((100_000,), jnp.int32)
    )
    used = lowered.compile().memory_analysis().temp_size_in_bytes
    assert used < 100_000 * 2048 / 50


def test_hashing_counts_some_users_at_a_time():
    oracle, domain = lp.olh(1.0), lp.domain(1024)
    lowered = jax.jit(oracle.estimate).lower(
        lp.Hashed(
            jax.ShapeDtypeStruct((50_000,), jnp.uint32), jax.ShapeDtypeStruct((50_000,), jnp.int32)
        ),
        domain,
    )
    assert lowered.compile().memory_analysis().temp_size_in_bytes < 50_000 * 1024


def test_counts_of_hashing_are_those_of_its_supports():
    oracle, domain = lp.olh(1.0), lp.domain(700, 1024)
    values = np.random.default_rng(0).integers(-1, 700, 3000)
    reports = jax.jit(oracle.respond)(KEY, values, domain)
    found = jax.jit(oracle.estimate)(reports, domain)
    supports = jax.jit(oracle.supports)(reports, domain)
    np.testing.assert_array_equal(found.counts, supports.sum(0))


@named
def test_refuses_what_is_no_budget(name):
    for epsilon in (0.0, -1.0, float("nan"), float("inf"), "no"):
        with pytest.raises((TypeError, ValueError), match="epsilon"):
            ORACLES[name](epsilon)


@pytest.mark.parametrize("values", [[0.5], [], [[1]], ["a"]])
def test_refuses_what_are_no_values(values):
    with pytest.raises((TypeError, ValueError), match="values"):
        lp.k_rr(1.0).respond(KEY, values, lp.domain(3))


@pytest.mark.parametrize(("size", "padded"), [(0, None), (-1, 4), (5, 4), (1.5, None), (3, 0)])
def test_refuses_what_is_no_domain(size, padded):
    with pytest.raises((TypeError, ValueError), match=r"size|padded"):
        lp.domain(size, padded)


def test_refuses_blocks_and_buckets():
    with pytest.raises(ValueError, match="blocks"):
        lp.hadamard_response(1.0, blocks=3)
    with pytest.raises(ValueError, match="buckets"):
        lp.olh(1.0, buckets=1)
    with pytest.raises(TypeError, match="domain"):
        lp.oue(1.0).respond(KEY, jnp.arange(3), 3)
