import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from dflax import participation
from dflax.participation import distinct


def draws(rule, clients, count, seed=0):
    keys = jax.random.split(jax.random.key(seed), count)
    index = jnp.arange(count, dtype=jnp.int32)
    return jax.jit(jax.vmap(lambda key, t: rule(key, t, clients)))(keys, index)


def test_everyone_comes():
    cohort = participation.everyone()(jax.random.key(0), jnp.int32(0), 5)
    assert cohort.clients is None
    assert cohort.reports is None
    assert cohort.effort is None


def test_uniform_draws_every_pair_equally_often():
    cohorts = np.sort(draws(participation.uniform(2), 5, 20_000).clients, axis=1)
    pairs, counts = np.unique(cohorts, axis=0, return_counts=True)
    assert len(pairs) == 10
    assert (pairs[:, 0] < pairs[:, 1]).all()
    assert stats.chisquare(counts).pvalue > 1e-4


@pytest.mark.parametrize("population", [50, 5000])
def test_distinct_numbers_are_distinct_and_uniform_on_both_paths(population):
    keys = jax.random.split(jax.random.key(1), 2000)
    chosen = np.asarray(jax.jit(jax.vmap(lambda key: distinct(key, 25, population)))(keys))
    assert all(len(set(row)) == 25 for row in chosen)
    assert chosen.min() >= 0
    assert chosen.max() < population
    for column in (0, 24):
        counts = np.bincount(chosen[:, column] * 10 // population, minlength=10)
        assert stats.chisquare(counts).pvalue > 1e-4


def test_distinct_can_take_the_whole_large_population():
    chosen = distinct(jax.random.key(2), 4100, 4100)
    assert sorted(chosen.tolist()) == list(range(4100))


def test_bernoulli_joins_with_its_probability_and_respects_capacity():
    full = draws(participation.bernoulli(0.3), 20, 4000)
    assert abs(full.reports.mean() - 0.3) < 0.01
    cut = draws(participation.bernoulli(0.3, capacity=4), 20, 4000)
    assert cut.clients.shape == (4000, 4)
    assert all(len(set(row)) == 4 for row in np.asarray(cut.clients))
    np.testing.assert_allclose(
        np.asarray(cut.reports).sum(1).mean(),
        np.minimum(stats.binom(20, 0.3).rvs(200_000, random_state=0), 4).mean(),
        atol=0.05,
    )


def test_bernoulli_nonempty_has_the_conditional_law():
    cohorts = np.asarray(draws(participation.bernoulli(0.5, nonempty=True), 2, 12_000).reports)
    kinds = np.bincount((cohorts @ np.array([2, 1])).astype(int), minlength=4)
    assert kinds[0] == 0
    assert stats.chisquare(kinds[1:]).pvalue > 1e-4


def test_weighted_prefers_heavy_clients_and_never_draws_weight_zero():
    weights = np.array([0.0, 1.0, 2.0, 5.0])
    first = np.asarray(draws(participation.weighted(1, weights), 4, 8000).clients)[:, 0]
    counts = np.bincount(first, minlength=4)
    assert counts[0] == 0
    assert stats.chisquare(counts[1:], 8000 * weights[1:] / 8).pvalue > 1e-4


def test_availability_invites_only_who_is_there():
    table = np.array([[1, 1, 0, 0, 0], [0, 0, 1, 1, 1], [0, 0, 0, 0, 0]], bool)
    cohorts = draws(participation.availability(2, table), 5, 300)
    for t, (ids, reports) in enumerate(zip(cohorts.clients, cohorts.reports, strict=True)):
        present = set(np.flatnonzero(table[t % 3]))
        counted = {int(i) for i, r in zip(ids, reports, strict=True) if r > 0}
        assert counted <= present
        assert len(counted) == min(2, len(present))


def test_dropout_and_stragglers_compose_and_sweep():
    rule = participation.stragglers(
        participation.dropout(participation.uniform(10), 0.25), 0.5, least=0.2
    )
    cohorts = draws(rule, 30, 2000)
    assert abs(float(cohorts.reports.mean()) - 0.75) < 0.01
    slow = np.asarray(cohorts.effort)[np.asarray(cohorts.effort) < 1]
    assert abs(slow.size / 20_000 - 0.5) < 0.02
    assert slow.min() >= 0.2
    assert abs(slow.mean() - 0.6) < 0.01

    def reporting(rate):
        inner = participation.dropout(participation.everyone(), rate)
        return inner(jax.random.key(3), jnp.int32(0), 1000).reports.mean()

    shares = jax.vmap(reporting)(jnp.array([0.0, 0.5, 1.0]))
    assert shares[0] == 1.0
    assert 0.4 < shares[1] < 0.6
    assert shares[2] == 0.0


def test_least_can_differ_from_client_to_client():
    rule = participation.stragglers(participation.everyone(), 1.0, least=np.array([1.0, 0.5, 0.0]))
    effort = np.asarray(draws(rule, 3, 500).effort)
    assert (effort[:, 0] == 1).all()
    assert effort[:, 1].min() >= 0.5
    assert effort[:, 2].min() < 0.1


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: participation.uniform(0), "cohort must be an integer >= 1, got 0"),
        (lambda: participation.uniform(2.0), "cohort must be an integer >= 1, got 2.0"),
        (lambda: participation.bernoulli(1.5), r"probability must be a finite number in \[0, 1\]"),
        (lambda: participation.bernoulli(0.0, nonempty=True), r"in \(0, 1\], got 0.0"),
        (lambda: participation.bernoulli(0.5, capacity=0), "capacity must be an integer >= 1"),
        (
            lambda: participation.weighted(3, [1.0, 0.0]),
            "at least cohort=3 positive entries, got 1",
        ),
        (lambda: participation.weighted(1, [1.0, -1.0]), "probabilities must be a finite number"),
        (
            lambda: participation.availability(1, np.ones(3)),
            r"shape \[rounds, clients\], got \(3,\)",
        ),
        (
            lambda: participation.dropout(participation.everyone(), float("nan")),
            "probability must be",
        ),
        (lambda: participation.stragglers(participation.everyone(), 0.1, 2.0), "least must be"),
        (lambda: participation.bernoulli(np.ones(3)), "probability must be a single real number"),
        (lambda: participation.bernoulli(0.5, nonempty="no"), "nonempty must be True or False"),
        (lambda: participation.weighted(1, np.ones((2, 3))), r"shape \[clients\], got \(2, 3\)"),
        (lambda: participation.weighted(1, 1.0), r"shape \[clients\], got \(\)"),
        (
            lambda: participation.availability(1, np.ones((0, 3))),
            r"shape \[rounds, clients\], got \(0, 3\)",
        ),
        (lambda: participation.availability(1, np.full((2, 3), 0.5)), "zeros and ones, got .*0.5"),
        (lambda: participation.availability(1, np.full((2, 3), np.nan)), "table must be a finite"),
        (lambda: participation.availability(1, -np.ones((2, 3))), "table must be a finite"),
        (lambda: participation.availability(1, [["a"]]), "table must be a real number"),
        (lambda: participation.dropout(3, 0.1), r"participation must be a function.*uniform\(10\)"),
        (
            lambda: participation.dropout(participation.everyone(), np.ones(2)),
            "probability must be a single",
        ),
        (lambda: participation.stragglers(None, 0.1), "participation must be a function"),
        (
            lambda: participation.stragglers(participation.everyone(), np.ones(2)),
            "probability must be a single",
        ),
        (
            lambda: participation.stragglers(participation.everyone(), 0.1, np.zeros((2, 2))),
            "least must be one number",
        ),
        (lambda: distinct(jax.random.key(0), 4, 3), r"count must be an integer in \[1, 3\], got 4"),
        (lambda: distinct(jax.random.key(0), 9000, 8000), "count must be.*draw fewer"),
        (lambda: distinct(jax.random.key(0), 0, 3), "count must be an integer"),
        (lambda: distinct(0, 1, 3), "key must be one typed JAX key"),
        (
            lambda: distinct(jax.random.key(0), 3, 2**40),
            r"population must be an integer in \[1, 2147483647\], got 1099511627776",
        ),
        (lambda: participation.bernoulli(True), "probability must be a real number .* got True"),
        (lambda: participation.bernoulli(0.5 + 0.1j), "probability must be a real number"),
        (
            lambda: participation.weighted(1, np.ones(3, np.complex64)),
            "probabilities must be a real number",
        ),
        (lambda: participation.weighted(1, []), "probabilities must be an array of at least one"),
        (
            lambda: participation.dropout(participation.everyone(), np.True_),
            "probability must be a real number",
        ),
        (
            lambda: participation.stragglers(participation.everyone(), 0.1, [False, True]),
            "least must be a real number",
        ),
    ],
)
def test_bad_arguments_are_refused(make, message):
    with pytest.raises((TypeError, ValueError), match=message):
        make()


def test_a_cohort_larger_than_the_federation_is_refused():
    with pytest.raises(ValueError, match=r"cohort must be an integer in \[1, 5\].*got 6"):
        participation.uniform(6)(jax.random.key(0), jnp.int32(0), 5)
    with pytest.raises(ValueError, match="one entry per client, 5, got 2"):
        participation.weighted(1, [1.0, 1.0])(jax.random.key(0), jnp.int32(0), 5)


def test_small_draws_are_the_start_of_a_stable_sort():
    bits = jax.random.randint(jax.random.key(1), (100,), 0, 40).astype(jnp.uint32)
    chosen = participation._ranked(bits, 60)
    np.testing.assert_array_equal(chosen, np.argsort(np.asarray(bits), kind="stable")[:60])


def test_the_largest_population_is_drawn_from_without_overflow():
    draws = jax.jit(jax.vmap(lambda key: distinct(key, 5, participation.LARGEST)))(
        jax.random.split(jax.random.key(0), 200)
    )
    assert int(draws.min()) >= 0
    assert int(draws.max()) > 2**30
    assert all(len(set(row)) == 5 for row in np.asarray(draws).tolist())


@pytest.mark.some(2)
@pytest.mark.parametrize(
    "rule",
    [
        participation.bernoulli(0.5),
        participation.bernoulli(0.5, nonempty=True),
        participation.bernoulli(0.5, capacity=3),
        participation.weighted(3, np.ones(6)),
        participation.availability(3, np.ones((2, 6), bool)),
        participation.present(np.ones((2, 6))),
        participation.dropout(participation.uniform(3), 0.3),
        participation.stragglers(participation.everyone(), 0.3, np.full(6, 0.5)),
    ],
)
def test_rules_draw_under_strict_promotion_and_in_float64(rule):
    key, number = jax.random.key(0), jnp.int32(1)
    with jax.numpy_dtype_promotion("strict"):
        first = jax.jit(lambda rule: rule(key, number, 6))(rule)
    with jax.enable_x64(True):
        again = jax.jit(lambda rule: rule(key, number, 6))(rule)
    if first.clients is not None:
        assert again.clients.dtype == first.clients.dtype == np.int32
