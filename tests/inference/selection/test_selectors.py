"""Selectors: reductions to one another, gaps, factorisation, estimators of the host, losses."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dflax.inference import selection as sel

KEY = jax.random.key(5)
DRAW = np.random.default_rng(1)
N, D, K = 60, 3, 5
X = DRAW.normal(size=(N, D)).astype(np.float32) * [1.0, 10.0, 0.1] + [0.0, 5.0, -2.0]
X = X.astype(np.float32)
NEW = (X + DRAW.normal(size=(N, D)) * [0.3, 3.0, 0.03]).astype(np.float32)
TABLE = sel.performance(np.exp(DRAW.normal(size=(N, K))).astype(np.float32))
OBSERVED = DRAW.random((N, K)) < 0.5
OBSERVED[:, 0] |= ~OBSERVED.any(1)
GAPS = sel.performance(TABLE.seconds, OBSERVED)
WEIGHTS = (np.arange(N) < 40).astype(np.float32)
Z = np.asarray(sel.centred(TABLE).relative, np.float64)


def scores(selector, x=NEW, table=TABLE, weights=None, key=KEY):
    def both(key, weights):
        return selector.score(selector.fit(key, X, table, weights), jnp.asarray(x))

    return np.asarray(jax.jit(both)(key, np.ones(N, np.float32) if weights is None else weights))


def distances(x, y, weights=None):
    rows = X if weights is None else X[weights > 0]
    mean, deviation = rows.mean(0, dtype=np.float64), rows.std(0, dtype=np.float64)
    gap = ((x - mean) / deviation)[:, None] - ((y - mean) / deviation)[None]
    return (gap**2).sum(-1)


@pytest.mark.slow
def test_the_simplest_selectors():
    np.testing.assert_allclose(scores(sel.global_best())[0], Z.mean(0), atol=1e-6)
    np.testing.assert_allclose(
        scores(sel.global_best(), weights=WEIGHTS)[7], Z[:40].mean(0), atol=1e-6
    )
    assert (scores(sel.always(3)).argmin(1) == 3).all()
    rule = sel.by_rule(lambda x: (x[:, 0] > 0).astype(int) + 1)
    np.testing.assert_array_equal(scores(rule).argmin(1), (NEW[:, 0] > 0) + 1)
    drawn = scores(sel.random_choice(), np.repeat(NEW, 50, 0)).argmin(1)
    np.testing.assert_allclose(np.bincount(drawn, minlength=K) / len(drawn), 0.2, atol=0.03)
    one = sel.performance(np.ones((N, 1)))
    for selector in (sel.global_best(), sel.isac(3), sel.nearest(), sel.random_choice()):
        assert (scores(selector, table=one).argmin(1) == 0).all()


def test_a_method_that_nobody_tried_is_not_chosen():
    seen = OBSERVED.copy()
    seen[:, 2] = False
    seen[:, 0] = True
    table = sel.performance(TABLE.seconds, seen)
    for selector in (sel.global_best(), sel.isac(4), sel.nearest(), sel.nearest(3)):
        assert not (scores(selector, table=table).argmin(1) == 2).any()


def test_one_cluster_is_the_global_best_and_as_many_as_tasks_the_nearest_task():
    np.testing.assert_allclose(scores(sel.isac(1)), scores(sel.global_best()), atol=1e-6)
    np.testing.assert_allclose(scores(sel.isac(N)), scores(sel.nearest()), atol=1e-6)
    nearest = distances(NEW, X).argmin(1)
    np.testing.assert_allclose(scores(sel.nearest()), Z[nearest], atol=1e-6)
    three = np.argsort(distances(NEW, X), 1)[:, :3]
    np.testing.assert_allclose(scores(sel.nearest(3)), Z[three].mean(1), atol=1e-6)


@pytest.mark.slow
def test_clusters_are_a_fixed_point_of_lloyds_step_over_the_training_tasks():
    selector = sel.isac(4, restarts=3)
    fitted = jax.jit(lambda key: selector.fit(key, X, GAPS, WEIGHTS))(KEY)
    inputs = (X - fitted.standard.mean) / fitted.standard.deviation
    own = ((inputs[:, None] - fitted.centres) ** 2).sum(-1).argmin(1)[:40]
    z = np.asarray(sel.centred(GAPS).relative, np.float64)[:40]
    seen = OBSERVED[:40]
    overall = z.sum(0) / seen.sum(0)
    for cluster in range(4):
        np.testing.assert_allclose(
            inputs[:40][own == cluster].mean(0), fitted.centres[cluster], atol=1e-5
        )
        count = seen[own == cluster].sum(0)
        mean = np.where(count > 0, z[own == cluster].sum(0) / np.maximum(count, 1), overall)
        np.testing.assert_allclose(fitted.relative[cluster], mean, atol=1e-5)
    # Rows of weight 0 change nothing.
    moved = X.copy()
    moved[40:] = 77.0
    again = jax.jit(lambda key: selector.fit(key, moved, GAPS, WEIGHTS))(KEY)
    np.testing.assert_allclose(again.centres, fitted.centres, atol=1e-5)


def test_neighbours_are_training_tasks():
    nearest = distances(NEW, X[:40], WEIGHTS).argmin(1)
    found = scores(sel.nearest(), table=GAPS, weights=WEIGHTS)
    z = np.asarray(sel.centred(GAPS).relative)
    assert (found.argmin(1) == np.where(OBSERVED, z, 9)[nearest].argmin(1)).all()


@pytest.mark.slow
def test_a_factorisation_of_rank_k_less_1_is_exact():
    four = sel.factorised(TABLE, K - 1)
    np.testing.assert_allclose(four.tasks @ four.methods.T, Z, atol=1e-5)
    left, values, right = np.linalg.svd(Z, full_matrices=False)
    assert values[-1] < 1e-5
    for rank in (1, 3):
        found = sel.factorised(TABLE, rank)
        best = left[:, :rank] * values[:rank] @ right[:rank]
        np.testing.assert_allclose(found.tasks @ found.methods.T, best, atol=1e-4)
        np.testing.assert_allclose(found.methods.T @ found.methods, np.eye(rank), atol=1e-5)


def test_gaps_of_a_table_of_low_rank_are_filled():
    table = np.outer(DRAW.normal(size=N), [2.0, -1.0, -1.0, 0.5, -0.5])
    seen = np.ones((N, K), bool)
    # A pair whose mean is 0 is hidden, so that the centres of the rows stay.
    seen[::3, 3:] = False
    gaps = sel.performance(np.exp(table).astype(np.float32), seen)
    found = sel.factorised(gaps, 1, sweeps=200)
    np.testing.assert_allclose(found.tasks @ found.methods.T, table, atol=1e-3)


def test_losses_by_hand():
    f, z = DRAW.normal(size=(2, 7, K)).astype(np.float32)
    z[0, :2] = 0.25
    seen = DRAW.random((7, K)) < 0.7
    seen[1] = np.arange(K) == 2
    names = ("squared_error", "centred_squared_error", "pairwise_logistic", "softmax_of_best")
    squared, own_mean, pairs, best = (getattr(sel, name)(f, z, seen) for name in names)
    for row in range(7):
        at = np.flatnonzero(seen[row])
        a, b = f[row, at].astype(float), z[row, at].astype(float)
        np.testing.assert_allclose(squared.total[row], ((a - b) ** 2).sum(), rtol=1e-5)
        assert squared.terms[row] == len(at)
        several = len(at) > 1
        error = ((a - a.mean() - b) ** 2).sum() * several
        np.testing.assert_allclose(own_mean.total[row], error, rtol=1e-4, atol=1e-6)
        assert own_mean.terms[row] == len(at) * several
        logistic = [
            np.log1p(np.exp(-np.sign(b[i] - b[j]) * (a[i] - a[j])))
            if b[i] != b[j]
            else np.logaddexp(a[i] - a[j], 0) / 2 + np.logaddexp(a[j] - a[i], 0) / 2
            for i in range(len(at))
            for j in range(i + 1, len(at))
        ]
        np.testing.assert_allclose(pairs.total[row], sum(logistic), rtol=1e-4, atol=1e-6)
        assert pairs.terms[row] == len(logistic)
        cross = a[b.argmin()] + np.log(np.exp(-a).sum()) if several else 0.0
        np.testing.assert_allclose(best.total[row], cross, rtol=1e-4, atol=1e-6)
        assert best.terms[row] == several


@pytest.fixture(scope="module")
def simulated():
    tasks = jax.jit(lambda key: sel.random_tasks(key, 400))(KEY)
    return jax.jit(sel.descriptors)(tasks), jax.jit(sel.simulated)(KEY, tasks)


@pytest.mark.slow
def test_estimators_of_the_host_learn_what_they_are_shown(simulated):
    from sklearn.ensemble import RandomForestRegressor
    from sklearn.svm import SVC
    from sklearn.tree import DecisionTreeClassifier, DecisionTreeRegressor

    x, table = simulated
    tree, branches = DecisionTreeClassifier(), DecisionTreeRegressor()
    best = np.asarray(sel.best_method(table))
    selectors = {
        "tree": sel.classified(tree),
        "alors": sel.alors(4, estimator=branches),
        "times": sel.regressed(branches),
        "relative": sel.regressed(branches, row_centred=True),
    }
    for name, selector in selectors.items():
        # A tree that is grown to its end knows its training tasks by heart.
        told = selector.score(selector.fit(KEY, x, table), x)
        assert (np.asarray(sel.choose(told)) == best).all(), name
        assert (selector.log_seconds is not None) == (name == "times")
    fitted = selectors["times"].fit(KEY, x, table)
    told = selectors["times"].log_seconds(fitted, x)
    np.testing.assert_allclose(told, np.log(table.seconds), rtol=1e-5)
    half = np.arange(400) < 200
    machine = sel.classified(SVC())
    told = machine.score(machine.fit(KEY, x, table, half), x)
    assert set(np.unique(told)) == {0.0, 1.0}
    # The tasks left out are not seen, and the same key is the same forest.
    forest = sel.alors(3, estimator=RandomForestRegressor(3))
    other = sel.performance(jnp.where(half[:, None], table.seconds, 1.0))
    one, two = (forest.score(forest.fit(KEY, x, t, half), x) for t in (table, other))
    np.testing.assert_array_equal(one, two)


@pytest.mark.slow
def test_lightgbm_is_a_selector_where_it_is_installed(simulated):
    pytest.importorskip("lightgbm", reason="lightgbm is optional", exc_type=ImportError)
    x, table = simulated
    for selector in (
        sel.classified(sel.lightgbm_estimator("method", trees=20)),
        sel.regressed(sel.lightgbm_estimator("time", trees=60)),
    ):
        told = selector.score(selector.fit(KEY, x, table), x)
        common = np.bincount(np.asarray(sel.best_method(table))).max() / 400
        assert sel.judged(sel.choose(told), table.seconds).accuracy > common + 0.1


def test_without_lightgbm_its_estimator_says_what_is_missing(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "lightgbm", None)
    with pytest.raises(ImportError, match="lightgbm_estimator needs lightgbm"):
        sel.lightgbm_estimator("method")


def test_what_cannot_be_fitted_is_refused():
    with pytest.raises(ValueError, match="method must be in"):
        sel.always(K).fit(KEY, X, TABLE)
    with pytest.raises(ValueError, match="clusters must be at most"):
        sel.isac(N + 1).fit(KEY, X, TABLE)
    with pytest.raises(ValueError, match="neighbours must be at most"):
        sel.nearest(N + 1).fit(KEY, X, TABLE)
    with pytest.raises(ValueError, match=r"x must be real numbers of shape \[60, d\]"):
        sel.nearest().fit(KEY, X[:5], TABLE)
    with pytest.raises(TypeError, match="table must be of type Performance"):
        sel.global_best().fit(KEY, X, TABLE.seconds)
    with pytest.raises(TypeError, match="key must be one typed JAX key"):
        sel.isac(2).fit(0, X, TABLE)
    with pytest.raises(TypeError, match="without jit or vmap"):
        jax.jit(lambda x: sel.classified().fit(KEY, x, TABLE))(X)
    with pytest.raises(ValueError, match="rank must be an integer in"):
        sel.alors(K + 1).fit(KEY, X, TABLE)
