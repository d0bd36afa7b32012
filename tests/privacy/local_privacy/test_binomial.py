"""Binomial draws follow their law, also where there are a million trials."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from dflax.privacy.local_privacy import binomial

DRAWS = 50_000


@pytest.fixture(scope="module")
def draw():
    return jax.jit(lambda key, n, p: binomial(key, jnp.full(DRAWS, n), p))


def p_value(drawn, n, p):
    """Of a chi-square test in 100 classes of equal probability; ranks within a number are spread."""
    spread = np.random.default_rng(0).random(len(drawn))
    ranks = stats.binom.cdf(drawn, n, p) - stats.binom.pmf(drawn, n, p) * spread
    return stats.chisquare(np.histogram(ranks, 100, (0, 1))[0]).pvalue


@pytest.mark.parametrize(
    ("n", "p"),
    [
        (1_000_000, 1 / (np.exp(4) + 1)),
        (2**30, 0.3),
        (1000, 0.95),
        (7, 0.9),
        *(
            pytest.param(n, p, marks=pytest.mark.slow)
            for n, p in ((1_000_000, 0.5), (20_000, 0.018), (21, 0.5), (100, 0.05))
        ),
    ],
)
def test_draws_follow_the_law(draw, n, p):
    p = float(np.float32(p))
    drawn = np.asarray(draw(jax.random.key(1), n, jnp.float32(p)), np.float64)
    assert drawn.min() >= 0
    assert drawn.max() <= n
    z = (drawn - n * p) / np.sqrt(n * p * (1 - p))
    assert abs(z.mean()) < 4.5 / np.sqrt(DRAWS)
    assert abs(z.var() - 1) < 4.5 * np.sqrt((2 + 1 / (n * p * (1 - p))) / DRAWS)
    assert p_value(drawn, n, p) > 1e-4


@pytest.mark.parametrize(
    ("n", "p", "sure"), [(0, 0.3, 0), (50, 0.0, 0), (50, 1.0, 50), (10**9, 1.0, 10**9)]
)
def test_what_is_certain(draw, n, p, sure):
    np.testing.assert_array_equal(draw(jax.random.key(0), n, jnp.float32(p)), sure)


@pytest.mark.parametrize(("count", "p"), [(-1, 0.5), (5, -0.1), (5, 1.5), (0.5, 0.5)])
def test_refuses(count, p):
    with pytest.raises((TypeError, ValueError), match=r"count|probability"):
        binomial(jax.random.key(0), count, p)
