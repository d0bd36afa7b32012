"""The last seconds of telemetry in a ring, and what a query's window of it says."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int


class Ring(NamedTuple):
    """The last B samples of one node.

    Attributes:
      time: `[B]` s; -inf where nothing is yet.
      power: `[B]` W, NaN where missing.
      counter: `[B]` J, NaN where missing.
      gauges: `[B, G]` temperatures, memory, ...; NaN where missing.
      written: `[]` samples so far.
    """

    time: Float[Array, " B"]
    power: Float[Array, " B"]
    counter: Float[Array, " B"]
    gauges: Float[Array, "B G"]
    written: Int[Array, ""]


class Spread(NamedTuple):
    """Of the samples in a window, all counted alike however far apart they are; NaN without any.

    Attributes:
      mean: their mean.
      least: the smallest.
      most: the largest.
      median: the middle one, or the mean of the two.
    """

    mean: Float[Array, "..."]
    least: Float[Array, "..."]
    most: Float[Array, "..."]
    median: Float[Array, "..."]


def empty_ring(size: int, gauges: int) -> Ring:
    """A ring without samples."""
    nothing = jnp.full(size, jnp.nan)
    return Ring(
        jnp.full(size, -jnp.inf),
        nothing,
        nothing,
        jnp.full((size, gauges), jnp.nan),
        jnp.int32(0),
    )


def written(
    ring: Ring,
    sampled: Bool[Array, ""],
    time: Float[Array, ""],
    power: Float[Array, ""],
    counter: Float[Array, ""],
    gauges: Float[Array, " G"],
) -> Ring:
    """The ring with a sample in the place of the oldest, if there is one."""
    place = ring.written % ring.time.shape[0]

    def put(column: Array, value: Array) -> Array:
        return column.at[place].set(jnp.where(sampled, value, column[place]))

    return Ring(
        put(ring.time, time),
        put(ring.power, power),
        put(ring.counter, counter),
        put(ring.gauges, gauges),
        ring.written + sampled,
    )


def in_order(ring: Ring) -> Ring:
    """The same samples, the oldest first."""
    turned = -(ring.written % ring.time.shape[0])

    def roll(column: Array) -> Array:
        return jnp.roll(column, turned, axis=0)

    return Ring(
        roll(ring.time), roll(ring.power), roll(ring.counter), roll(ring.gauges), ring.written
    )


def spread(values: Float[Array, "B"], inside: Bool[Array, "B"]) -> Spread:
    """Mean, least, most and median of the values inside a window that are not missing."""
    known = inside & ~jnp.isnan(values)
    count = jnp.sum(known)
    ordered = jnp.sort(jnp.where(known, values, jnp.inf))
    middle = (ordered[(count - 1) // 2] + ordered[count // 2]) / 2
    mean = jnp.sum(jnp.where(known, values, 0.0)) / count
    most = jnp.max(jnp.where(known, values, -jnp.inf))
    found = Spread(mean, ordered[0], most, middle)
    return jax.tree.map(lambda leaf: jnp.where(count > 0, leaf, jnp.nan), found)


def ends(
    values: Float[Array, "B"], inside: Bool[Array, "B"]
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """The first and the last value inside that is not missing; NaN without any."""
    known = inside & ~jnp.isnan(values)
    some, last = jnp.any(known), known.shape[0] - 1 - jnp.argmax(known[::-1])
    first, final = values[jnp.argmax(known)], values[last]
    return jnp.where(some, first, jnp.nan), jnp.where(some, final, jnp.nan)


def integral(
    time: Float[Array, "B"],
    power: Float[Array, "B"],
    start: Float[Array, ""],
    end: Float[Array, ""],
) -> Float[Array, ""]:
    """Joules from `start` to `end` by the trapezoid rule; NaN without samples.

    Power is a straight line between samples, also at the ends of the window, and constant before the
    first sample and after the last. So a window between two samples has its energy, too.
    """
    known = jnp.isfinite(time) & ~jnp.isnan(power)
    # Missing samples stand where the next known one stands: their stretches have no length.
    places = jnp.where(known, jnp.arange(time.shape[0]), time.shape[0])
    later = jnp.flip(jax.lax.cummin(jnp.flip(places)))
    last = time.shape[0] - 1 - jnp.argmax(known[::-1])
    own = jnp.where(later < time.shape[0], later, last)
    t, p = time[own] - start, power[own]
    span = end - start
    begins, stops = jnp.clip(t[:-1], 0.0, span), jnp.clip(t[1:], 0.0, span)
    slope = (p[1:] - p[:-1]) / jnp.maximum(t[1:] - t[:-1], 1e-30)
    middle = p[:-1] + slope * ((begins + stops) / 2 - t[:-1])
    inner = jnp.sum(jnp.where(stops > begins, (stops - begins) * middle, 0.0))
    before, after = jnp.clip(t[0], 0.0, span), jnp.clip(t[-1], 0.0, span)
    total = inner + before * p[0] + (span - after) * p[-1]
    return jnp.where(jnp.any(known), total, jnp.nan)
