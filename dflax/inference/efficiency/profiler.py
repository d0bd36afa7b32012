"""A stream of telemetry and queries, profiled as it comes: one sample or one query a step."""

from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from dflax import validation
from dflax.algorithm import Algorithm, FederatedState, Metrics
from dflax.inference.efficiency.moments import (
    Fits,
    Line,
    Moments,
    lines,
    no_fits,
    no_moments,
    pooled_fits,
    pooled_moments,
    with_points,
    with_values,
)
from dflax.inference.efficiency.telemetry import Reading
from dflax.inference.efficiency.windows import (
    Ring,
    Spread,
    empty_ring,
    ends,
    in_order,
    integral,
    spread,
    written,
)

ENERGIES = ("counter", "trapezoid", "net")
Rule = Literal["counter", "trapezoid", "net"]
QUANTITIES = ("accuracy", "power", "energy", "latency", "apw", "ppw", "apj", "ppj")
FITS = ("first_token", "energy", "latency", "power", "power_log")
ZEROS = (
    "energy",
    "power",
    "first_token",
    "latency",
    "output_tokens",
    "input_tokens",
    "total_tokens",
)
ZERO = 1e-12


class Profile(NamedTuple):
    """What is known of each node so far, leaves `[n, ...]`.

    Attributes:
      ring: its last samples.
      base: `[n]` J, the counter at the first query, or after a reset; NaN before.
      last: `[n]` J, the counter at the end of the last query; NaN before.
      moments: `[n, 8]` of `QUANTITIES`.
      fits: `[n, 5]` of `FITS`: time to the first token over input tokens; energy, latency and power over
        all tokens; power over their logarithm.
      zeros: `[n, 7]` values of `ZEROS` below 1e-12 in size, which are often no measurements.
      queries: `[n]` so far.
      missing: `[n]` of them without energy.
    """

    ring: Ring
    base: Float[Array, " n"]
    last: Float[Array, " n"]
    moments: Moments
    fits: Fits
    zeros: Int[Array, "n 7"]
    queries: Int[Array, " n"]
    missing: Int[Array, " n"]


class Summary(NamedTuple):
    """A profile in numbers; NaN for what was never seen.

    Attributes:
      seen: queries in which each of `QUANTITIES` was known.
      mean: of each of them.
      deviation: standard deviation of each, of one query.
      ipw: mean accuracy / mean power, 1/W.
      apj: mean accuracy / mean energy, 1/J.
      energy: J between the base of the counter and the end of the last query.
      lines: of each of `FITS`.
      zeros: of each of `ZEROS`, how many.
    """

    seen: dict[str, Array]
    mean: dict[str, Array]
    deviation: dict[str, Array]
    ipw: Array
    apj: Array
    energy: Array
    lines: dict[str, Line]
    zeros: dict[str, Array]


class _Query(NamedTuple):
    """What one query came to, for one node."""

    power: Spread
    gauges: Spread
    energy: Float[Array, ""]
    counter: Float[Array, ""]
    trapezoid: Float[Array, ""]
    latency: Float[Array, ""]
    per_token: Float[Array, ""]
    throughput: Float[Array, ""]


def streaming_profiler(
    *,
    nodes: int = 1,
    buffer: int = 600,
    horizon: float | Float[Array, ""] = 30.0,
    energy: Rule = "counter",
    idle_watts: float | Float[Array, ""] = 0.0,
    gauges: int = 0,
) -> Algorithm:
    """Power, energy and latency of queries from samples of a meter, and what they are on the whole.

    The window of a query are the samples with start <= t <= end, of the last `horizon` seconds.

        counter     E = max(e_end - e_start, 0) in the first query, then e_end less that of the query
                    before, so what is spent between two queries is the later one's; a negative
                    difference is a reset: E is missing, and the count begins anew
        trapezoid   E = integral of P over [start, end], straight between samples
        net         E = that, less idle_watts * latency

    With "counter" a query's power is the mean of the window's samples, however far apart they are, and
    missing in a window without samples. With the others it is E / latency, and a window between two
    samples has it, too. All three energies are in the metrics.

    Ratios of a query (accuracy / power and the like) count where they are finite. Sums are centred, so
    float32 serves; times reach a day at a resolution of 8 ms.

    Args:
      nodes: n >= 1, profiled side by side; rows come from `fleet_telemetry`.
      buffer: B >= 2 samples that are kept; 600 are 30 s at 50 ms.
      horizon: s, > 0; traceable.
      energy: which of the three a query's energy is.
      idle_watts: >= 0; traceable.
      gauges: G >= 0, other columns of the samples.

    Returns:
      An `Algorithm` for the rows of `telemetry`: `init(key)`, and in the state's `clients` a `Profile`,
      which `summary` reads. Metrics, NaN but in the rows where a query ends, `[n]` each: `energy`,
      `energy_counter`, `energy_trapezoid` J; `power`, `power_least`, `power_most`, `power_median` W;
      `latency` s; `per_token` ms, `throughput` tokens/s; `gauges` `[n, G]`, their means in the window.

    Raises:
      TypeError, ValueError: naming the argument.

    References:
      Saad-Falcon, Narayan et al., Intelligence per Watt, arXiv 2511.07885, and its harness, github
      HazyResearch/intelligence-per-watt.
    """
    validation.integer("nodes", nodes, low=1)
    validation.integer("buffer", buffer, low=2)
    validation.real("horizon", horizon, low=0.0, low_open=True, scalar=True)
    validation.choice("energy", energy, ENERGIES)
    validation.real("idle_watts", idle_watts, low=0.0, scalar=True)
    validation.integer("gauges", gauges, low=0)

    def init(key: Key[Array, ""], params: Any = ()) -> FederatedState:
        ring = jax.tree.map(
            lambda leaf: jnp.broadcast_to(leaf, (nodes, *leaf.shape)), empty_ring(buffer, gauges)
        )
        unknown, none = jnp.full(nodes, jnp.nan), jnp.zeros(nodes, jnp.int32)
        profile = Profile(
            ring,
            unknown,
            unknown,
            no_moments((nodes, len(QUANTITIES))),
            no_fits((nodes, len(FITS))),
            jnp.zeros((nodes, len(ZEROS)), jnp.int32),
            none,
            none,
        )
        return FederatedState(jnp.int32(0), (), profile)

    def finished(profile: Profile, row: Reading) -> tuple[Profile, _Query]:
        return jax.vmap(lambda own, seen: _finished(own, seen, horizon, energy, idle_watts))(
            profile, row
        )

    def step(state: FederatedState, round: tuple[Reading, Array]) -> tuple[FederatedState, Metrics]:
        row, _ = round
        if row.time.shape != (nodes,) or row.gauges.shape != (nodes, gauges):
            raise ValueError(
                f"nodes and gauges must be those of the telemetry, {row.gauges.shape}, got "
                f"{(nodes, gauges)}."
            )
        samples = row.sampled, row.time, row.power, row.counter, row.gauges
        profile = state.clients._replace(ring=jax.vmap(written)(state.clients.ring, *samples))
        shapes = jax.eval_shape(finished, profile, row)[1]
        blank = jax.tree.map(lambda leaf: jnp.full(leaf.shape, jnp.nan, leaf.dtype), shapes)
        # Nothing but the ring moves until some query ends.
        profile, query = jax.lax.cond(
            jnp.any(row.ended), finished, lambda profile, row: (profile, blank), profile, row
        )
        metrics = {
            "energy": query.energy,
            "energy_counter": query.counter,
            "energy_trapezoid": query.trapezoid,
            "power": query.power.mean,
            "power_least": query.power.least,
            "power_most": query.power.most,
            "power_median": query.power.median,
            "latency": query.latency,
            "per_token": query.per_token,
            "throughput": query.throughput,
            "gauges": query.gauges.mean,
        }
        return FederatedState(state.round + 1, (), profile), metrics

    return Algorithm(init, step)


def summary(profile: Profile, *, pooled: bool = True) -> Summary:
    """Means, deviations, lines and warnings of a profile.

    Args:
      profile: the `clients` of a state of `streaming_profiler`.
      pooled: whether over the queries of all nodes, or `[n]` for each node.

    Raises:
      TypeError: naming the argument.
    """
    validation.instance("profile", profile, Profile, "It is the `clients` of a profiler's state.")
    validation.flag("pooled", pooled)
    moments, fits, zeros = profile.moments, profile.fits, profile.zeros
    energy = jnp.maximum(profile.last - profile.base, 0.0)
    if pooled:
        moments, fits, zeros = pooled_moments(moments), pooled_fits(fits), zeros.sum(0)
        energy = jnp.nansum(energy)
    mean = jnp.where(moments.seen > 0, moments.mean, jnp.nan)
    deviation = jnp.sqrt(moments.squares / (moments.seen - 1.0))
    deviation = jnp.where(moments.seen > 1, deviation, jnp.nan)

    def named(names: tuple[str, ...], values: Any) -> dict[str, Any]:
        return {
            name: jax.tree.map(lambda leaf, at=at: leaf[..., at], values)
            for at, name in enumerate(names)
        }

    means = named(QUANTITIES, mean)
    return Summary(
        named(QUANTITIES, moments.seen),
        means,
        named(QUANTITIES, deviation),
        means["accuracy"] / means["power"],
        means["accuracy"] / means["energy"],
        energy,
        named(FITS, lines(fits)),
        named(ZEROS, zeros),
    )


def _finished(
    profile: Profile, row: Reading, horizon: Any, rule: str, idle: Any
) -> tuple[Profile, _Query]:
    """One node after a row; as it was, and NaN, where no query ended."""
    profile, query = _measured(profile, row, horizon, rule, idle)
    total = row.input_tokens + row.output_tokens
    power, energy = query.power.mean, query.energy
    gain, worth = row.accuracy, 1.0 / row.perplexity
    ratios = gain / power, worth / power, gain / energy, worth / energy
    values = jnp.stack([gain, power, energy, query.latency, *ratios])
    moments = with_values(profile.moments, values, row.ended & jnp.isfinite(values))
    x = jnp.stack([row.input_tokens, total, total, total, jnp.log(total)])
    y = jnp.stack([row.first_token, energy, query.latency, power, power])
    nothing = jnp.array([False, False, False, True, True]) & (jnp.abs(y) < ZERO)
    known = row.ended & jnp.isfinite(x) & jnp.isfinite(y) & ~nothing
    fits = with_points(profile.fits, x, y, known)
    counted = jnp.stack(
        [energy, power, row.first_token, query.latency, row.output_tokens, row.input_tokens, total]
    )
    zeros = profile.zeros + (row.ended & (jnp.abs(counted) < ZERO))
    missing = profile.missing + (row.ended & jnp.isnan(energy))
    after = profile._replace(
        moments=moments,
        fits=fits,
        zeros=zeros,
        queries=profile.queries + row.ended,
        missing=missing,
    )
    return after, jax.tree.map(lambda leaf: jnp.where(row.ended, leaf, jnp.nan), query)


def _measured(
    profile: Profile, row: Reading, horizon: Any, rule: str, idle: Any
) -> tuple[Profile, _Query]:
    """Energy and power of the query that ends in this row, and the counter's new base."""
    ring = in_order(profile.ring)
    kept = ring.time >= ring.time[-1] - horizon
    inside = kept & (row.start <= ring.time) & (ring.time <= row.end)
    first, final = ends(ring.counter, inside)
    valid = jnp.isfinite(first) & jnp.isfinite(final) & (first >= 0) & (final >= 0) & row.ended
    begun = ~jnp.isnan(profile.last)
    delta = jnp.where(begun, final - profile.last, jnp.maximum(final - first, 0.0))
    reset = begun & (delta < 0)
    counter = jnp.where(valid & ~reset, delta, jnp.nan)
    base = jnp.where(jnp.isnan(profile.base), first, jnp.where(reset, final, profile.base))
    latency = jnp.maximum(row.end - row.start, 0.0)
    times = jnp.where(kept, ring.time, -jnp.inf)
    trapezoid = integral(times, ring.power, row.start, row.end)
    energy = {"counter": counter, "trapezoid": trapezoid, "net": trapezoid - idle * latency}[rule]
    power = spread(ring.power, inside)
    if rule != "counter":
        power = power._replace(mean=energy / latency)
    gauges = jax.vmap(spread, in_axes=(1, None))(ring.gauges, inside)
    tokens = row.output_tokens
    generated = (tokens > 0) & (latency > 0)
    query = _Query(
        power,
        gauges,
        energy,
        counter,
        trapezoid,
        latency,
        jnp.where(generated, 1000.0 * latency / tokens, jnp.nan),
        jnp.where(generated, tokens / latency, jnp.nan),
    )
    after = profile._replace(
        base=jnp.where(valid, base, profile.base), last=jnp.where(valid, final, profile.last)
    )
    return after, query
