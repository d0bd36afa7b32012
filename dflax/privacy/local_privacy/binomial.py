"""Binomial counts: how many of n users answer with a bit that each sets by chance."""

import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from dflax import validation

# Below this mean, successes are counted one after another.
FEW = 10.0
HALF_LOG_2_PI = 0.5 * math.log(2 * math.pi)


def binomial(
    key: Key[Array, ""], count: Int[Array, "..."], probability: Float[Array, "..."]
) -> Int[Array, "..."]:
    """Draws of Binomial(n, p), exact up to the rounding of p and of probabilities to 24 bits.

    Hormann's transformed rejection for means of 10 and more. The test that accepts a draw compares
    probabilities in the deviance form, whose terms stay small,

        log P(x) = G(n) - G(x) - G(n - x) - D(x, np) - D(n - x, n(1 - p)),
        D(x, y) = x log(x / y) + y - x,   G(x) = log x! - x log x + x.

    `jax.random.binomial` compares sums of size n log n, of which single precision keeps too little
    for a million trials: of two million draws a chi-square test tells. It draws smaller means here.

    Args:
      key: typed key.
      count: `[...]` int32, n >= 0.
      probability: `[...]` float32 p in [0, 1], of a shape that fits.

    Returns:
      `[...]` int32.

    Raises:
      TypeError, ValueError: naming the argument.

    References:
      Hormann, The generation of binomial random variates, J. Stat. Comput. Simul. 46 (1993).
      Loader, Fast and accurate computation of binomial probabilities (2000).
    """
    validation.typed_key("key", key)
    validation.array("count", count, kind="integer", low=0, high=validation.LARGEST_COUNT)
    validation.real("probability", probability, low=0.0, high=1.0)
    few_key, many_key = jax.random.split(key)
    n, p = jnp.broadcast_arrays(jnp.asarray(count, jnp.int32), jnp.asarray(probability))
    rare = p > 0.5
    least = jnp.where(rare, 1 - p, p).astype(jnp.float32)
    mean = n.astype(jnp.float32) * least
    many = mean >= FEW
    small = jnp.where(many, 0, n).astype(jnp.float32)
    counted = jax.random.binomial(few_key, small, jnp.where(many, 0.0, least)).astype(jnp.int32)
    # Draws that are not wanted are of a law that is quickly drawn from.
    drawn = _many(many_key, jnp.where(many, n, 1000), jnp.where(many, least, 0.5))
    found = jnp.where(many, drawn, counted)
    return jnp.where(rare, n - found, found)


def _many(key: Key[Array, ""], n: Int[Array, "..."], p: Float[Array, "..."]) -> Int[Array, "..."]:
    """Transformed rejection, for p <= 1/2 and np >= 10; all entries draw until the last is accepted."""
    trials = n.astype(jnp.float32)
    mean = trials * p
    spread = jnp.sqrt(mean * (1 - p))
    b = 1.15 + 2.53 * spread
    a = -0.0873 + 0.0248 * b + 0.01 * p
    at_once = 0.92 - 4.2 / b
    alpha = (2.83 + 5.1 / b) * spread
    # Draws are counted from the whole part of the mean, so that single precision tells neighbours apart.
    base = jnp.floor(mean)
    part = mean - base + 0.5
    whole = base.astype(jnp.int32)
    mode = jnp.floor(part - 0.5 + p)
    peak = _log_probability(n, p, whole, mode, mean - base)

    def attempt(carry: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        number, found, done = carry
        word, other = jax.random.bits(jax.random.fold_in(key, number), (2, *n.shape), jnp.uint32)
        above = word >= jnp.uint32(1 << 31)
        edge = (jnp.where(above, ~word, word).astype(jnp.float32) + 0.5) * 2.0**-32
        u = jnp.where(above, 0.5 - edge, edge - 0.5)
        v = (other.astype(jnp.float32) + 0.5) * 2.0**-32
        offset = jnp.floor((2 * a / edge + b) * u + part)
        inside = jnp.abs(offset) < 2.0**30
        step = jnp.where(inside, offset, 0.0)
        x = whole + step.astype(jnp.int32)
        inside = inside & (x >= 0) & (x <= n)
        step = jnp.where(inside, step, mode)
        odds = _log_probability(n, p, whole, step, mean - base) - peak
        accepted = ((edge >= 0.07) & (v <= at_once)) | (
            jnp.log(v * alpha / (a / (edge * edge) + b)) <= odds
        )
        new = inside & accepted & ~done
        return number + 1, jnp.where(new, x, found), done | new

    start = (jnp.uint32(0), whole, jnp.zeros(n.shape, bool))
    return jax.lax.while_loop(lambda carry: ~jnp.all(carry[2]), attempt, start)[1]


def _log_probability(
    n: Int[Array, "..."],
    p: Float[Array, "..."],
    whole: Int[Array, "..."],
    step: Float[Array, "..."],
    part: Float[Array, "..."],
) -> Float[Array, "..."]:
    """Of `whole + step` successes, where the mean is `whole + part`; without the summand of n alone."""
    x = whole + step.astype(jnp.int32)
    successes, failures = x.astype(jnp.float32), (n - x).astype(jnp.float32)
    above = step - part
    mean = whole.astype(jnp.float32) + part
    return -(
        _stirling(successes)
        + _stirling(failures)
        + _deviance(successes, mean, above)
        + _deviance(failures, n.astype(jnp.float32) * (1 - p), -above)
    )


def _deviance(
    x: Float[Array, "..."], mean: Float[Array, "..."], above: Float[Array, "..."]
) -> Float[Array, "..."]:
    """The deviance x log(x / y) + y - x for y = `mean` and x - y = `above`, also where x is near y."""
    v = above / (x + mean)
    near = jnp.abs(v) < 0.1
    square = jnp.where(near, v * v, 0.0)
    series = 1 / 3 + square * (1 / 5 + square * (1 / 7 + square * (1 / 9 + square / 11)))
    direct = x * jnp.log(jnp.maximum(x, 1) / mean) - above
    return jnp.where(near, above * v + 2 * x * v * square * series, direct)


def _stirling(x: Float[Array, "..."]) -> Float[Array, "..."]:
    """Log x! - x log x + x, for whole x >= 0."""
    y = jnp.maximum(x, 1)
    square = 1 / (y * y)
    tail = (1 / 12 - square * (1 / 360 - square * (1 / 1260 - square / 1680 * 0.5))) / y
    return jnp.where(x > 0, HALF_LOG_2_PI + 0.5 * jnp.log(y) + tail, 0.0)
