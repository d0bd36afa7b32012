"""Routers, their errors, savings and frontiers against hand numbers and closed forms."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dflax.inference import efficiency as ipw

KEY = jax.random.key(7)
#                      q:  0    1    2    3
ACCURACY = np.array([[1.0, 0.0, 1.0, 0.0], [1.0, 1.0, 0.0, 0.0]])
COST = np.array([[2.0, 2.0, 2.0, 3.0], [5.0, 4.0, 1.0, 2.0]])
CLOUD = np.array([10.0, 20.0, 30.0, 40.0])
LOCAL, REMOTE = {"energy": COST, "flops": 2 * COST}, {"energy": CLOUD, "flops": CLOUD}

came_to = jax.jit(ipw.outcome, static_argnames="retry")
imperfect = jax.jit(ipw.imperfect, static_argnames="error")


def savings(route, **options):
    return came_to(route, ACCURACY, LOCAL, REMOTE, **options)


def test_the_oracle_asks_the_cheapest_that_is_right():
    route = ipw.oracle(ACCURACY, COST)
    assert route.local.tolist() == [1, 1, 1, 0]
    assert route.model.tolist() == [0, 1, 0, 1]
    found = savings(route)
    np.testing.assert_allclose(found.savings["energy"], 1 - (2 + 4 + 2 + 40) / 100, rtol=1e-6)
    np.testing.assert_allclose(found.savings["flops"], 1 - (4 + 8 + 4 + 40) / 100, rtol=1e-6)
    assert (float(found.quality), float(found.local)) == (1.0, 0.75)


def test_an_error_that_asks_the_cloud_saves_in_proportion_and_keeps_quality():
    route = ipw.oracle(ACCURACY, COST)
    whole = savings(route).savings["energy"]
    shares = np.linspace(0, 1, 6)
    found = jax.vmap(lambda a: savings(imperfect(route, a)))(shares)
    np.testing.assert_allclose(found.savings["energy"], shares * whole, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(found.quality, 1.0)
    papers = {80.4: 64.32, 77.3: 61.84, 73.8: 59.04}
    left = np.array([[[100 - best]] for best in papers])
    one = jax.jit(
        jax.vmap(
            lambda cost: ipw.outcome(
                ipw.imperfect(ipw.oracle(np.ones((1, 1)), cost), 0.8),
                np.ones((1, 1)),
                cost,
                np.full(1, 100.0),
            )
        )
    )(left)
    np.testing.assert_allclose(100 * one.savings, list(papers.values()), rtol=1e-6)


def test_a_flip_loses_quality_or_pays_twice():
    route = ipw.oracle(ACCURACY, COST)
    flipped = savings(imperfect(route, 0.0, error="flip"))
    # Queries 0 to 2 go to the cloud, and 3 to the cheapest model, which is wrong.
    assert float(flipped.quality) == 0.75
    np.testing.assert_allclose(flipped.savings["energy"], 1 - (60 + 2) / 100, rtol=1e-6)
    again = savings(imperfect(route, 0.0, error="flip"), retry=True)
    assert float(again.quality) == 1.0
    np.testing.assert_allclose(again.savings["energy"], 1 - (60 + 2 + 40) / 100, rtol=1e-4)
    same = savings(imperfect(route, 1.0, error="flip"))
    assert jax.tree.all(jax.tree.map(np.array_equal, same, savings(route)))
    half = savings(imperfect(route, 0.5, error="flip"), cloud_accuracy=0.9)
    np.testing.assert_allclose(half.quality, (3 * 0.95 + 0.45) / 4, rtol=1e-6)


def test_draws_are_on_the_mean_what_their_probabilities_say():
    route = imperfect(ipw.oracle(ACCURACY, COST), 0.7, error="flip")
    keys = jax.random.split(KEY, 4000)
    found = jax.jit(jax.vmap(lambda key: savings(ipw.drawn(key, route))))(keys)
    wanted = savings(route)
    np.testing.assert_allclose(
        np.mean(found.savings["energy"]), wanted.savings["energy"], atol=0.01
    )
    np.testing.assert_allclose(np.mean(found.quality), wanted.quality, atol=0.01)


def test_a_threshold_asks_the_cheapest_confident_model():
    confidence = np.array([[0.9, 0.2, 0.6, 0.1], [0.95, 0.8, 0.7, 0.3]])
    route = ipw.above(confidence, COST, 0.5)
    assert route.local.tolist() == [1, 1, 1, 0]
    assert route.model.tolist() == [0, 1, 1, 1]
    swept = jax.jit(lambda t: ipw.frontier(confidence, ACCURACY, LOCAL, REMOTE, t, by="energy"))(
        jnp.array([0.0, 0.5, 1.1])
    )
    assert swept.local.tolist() == [1.0, 0.75, 0.0]
    np.testing.assert_allclose(swept.quality, [0.25, 0.75, 1.0])
    np.testing.assert_allclose(swept.savings["energy"][2], 0.0, atol=1e-6)


@pytest.mark.parametrize("hidden", [(), (8,)])
def test_a_learned_router_finds_what_decides(hidden):
    rng = np.random.default_rng(0)
    features = rng.normal(size=(600, 3)) * [1, 10, 1] + [0, 5, 0]
    right = np.stack([features[:, 1] > 5, features[:, 0] > 0]).astype(float)

    @jax.jit
    def learn(features, right, unseen):
        router = ipw.learned(KEY, features, right, hidden=hidden, steps=200)
        return ipw.confidence(router, unseen)

    found = learn(features[:400], right[:, :400], features[400:])
    assert found.shape == (2, 200)
    assert np.mean((found > 0.5) == right[:, 400:]) > 0.95


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: ipw.oracle(ACCURACY, COST[:1]), r"cost must be real numbers of shape \[2, 4\]"),
        (lambda: ipw.imperfect(ipw.oracle(ACCURACY, COST), 1.2), "accuracy must be"),
        (
            lambda: ipw.imperfect(ipw.oracle(ACCURACY, COST), 1.0, error="retry"),
            "error must be one of 'cloud', 'flip'",
        ),
        (
            lambda: ipw.outcome(ipw.oracle(ACCURACY, COST), ACCURACY, LOCAL, {"energy": CLOUD}),
            "cloud must have the kinds of cost that local has",
        ),
        (
            lambda: ipw.outcome(ipw.oracle(ACCURACY, COST), ACCURACY[:, :2], COST, CLOUD),
            "route must be of the 2 queries",
        ),
        (
            lambda: ipw.frontier(ACCURACY, ACCURACY, LOCAL, REMOTE, np.ones(1), by="price"),
            "by must be one of 'energy', 'flops'",
        ),
        (lambda: ipw.learned(KEY, np.ones((3, 2)), np.ones((1, 2))), "accuracy must be"),
    ],
)
def test_bad_arguments_are_refused_by_name(call, message):
    with pytest.raises(ValueError, match=message):
        call()
