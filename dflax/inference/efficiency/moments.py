"""Means, deviations and straight lines of a stream, from centred sums that float32 bears."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float


class Moments(NamedTuple):
    """Welford's running sums of k quantities.

    Attributes:
      seen: `[..., k]` values so far.
      mean: `[..., k]`.
      squares: `[..., k]` sum of squared distances from the mean.
    """

    seen: Float[Array, "... k"]
    mean: Float[Array, "... k"]
    squares: Float[Array, "... k"]


class Fits(NamedTuple):
    """Running sums of k least-squares lines y = a + b x.

    Attributes:
      x: moments of x.
      y: moments of y.
      products: `[..., k]` sum of (x - mean x)(y - mean y).
    """

    x: Moments
    y: Moments
    products: Float[Array, "... k"]


class Line(NamedTuple):
    """Least-squares lines, `[..., k]` each; NaN with under two points or under two distinct x.

    Attributes:
      seen: points.
      slope: b.
      intercept: a.
      r2: 1 - SS_res / SS_tot; 1 where all y are the same.
      mean: of y; NaN without points alone.
    """

    seen: Float[Array, "... k"]
    slope: Float[Array, "... k"]
    intercept: Float[Array, "... k"]
    r2: Float[Array, "... k"]
    mean: Float[Array, "... k"]


def no_moments(shape: tuple[int, ...]) -> Moments:
    """Of nothing yet."""
    return Moments(jnp.zeros(shape), jnp.zeros(shape), jnp.zeros(shape))


def no_fits(shape: tuple[int, ...]) -> Fits:
    """Of nothing yet."""
    return Fits(no_moments(shape), no_moments(shape), jnp.zeros(shape))


def with_values(moments: Moments, values: Float[Array, " k"], known: Bool[Array, " k"]) -> Moments:
    """The sums with one more value of each quantity that is known."""
    count = moments.seen + known
    away = jnp.where(known, values - moments.mean, 0.0)
    mean = moments.mean + away / jnp.maximum(count, 1.0)
    after = jnp.where(known, values - mean, 0.0)
    return Moments(count, mean, moments.squares + away * after)


def with_points(
    fits: Fits, x: Float[Array, " k"], y: Float[Array, " k"], known: Bool[Array, " k"]
) -> Fits:
    """The sums with one more point of each line whose x and y are known."""
    across, along = with_values(fits.x, x, known), with_values(fits.y, y, known)
    away = jnp.where(known, x - fits.x.mean, 0.0) * jnp.where(known, y - along.mean, 0.0)
    return Fits(across, along, fits.products + away)


def pooled_moments(moments: Moments) -> Moments:
    """Those of the values of all nodes, whose axis leads."""
    count = moments.seen.sum(0)
    mean = (moments.seen * moments.mean).sum(0) / jnp.maximum(count, 1.0)
    apart = moments.seen * (moments.mean - mean) ** 2
    return Moments(count, mean, (moments.squares + apart).sum(0))


def pooled_fits(fits: Fits) -> Fits:
    """Those of the points of all nodes, whose axis leads."""
    x, y = pooled_moments(fits.x), pooled_moments(fits.y)
    apart = fits.x.seen * (fits.x.mean - x.mean) * (fits.y.mean - y.mean)
    return Fits(x, y, (fits.products + apart).sum(0))


def lines(fits: Fits) -> Line:
    """The lines.

    Where all x (or y) are the same, their distances from the mean are exactly zero.
    """
    slope = fits.products / fits.x.squares
    explained = fits.products * slope / fits.y.squares
    r2 = jnp.where(fits.y.squares == 0.0, 1.0, explained)
    found = Line(fits.x.seen, slope, fits.y.mean - slope * fits.x.mean, r2, jnp.zeros_like(slope))
    some = (fits.x.seen >= 2) & (fits.x.squares > 0)
    found = jax.tree.map(lambda leaf: jnp.where(some, leaf, jnp.nan), found)
    mean = jnp.where(fits.y.seen > 0, fits.y.mean, jnp.nan)
    return found._replace(seen=fits.x.seen, mean=mean)
