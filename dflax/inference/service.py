"""What service requests got: latencies, service levels, goodput."""

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from dflax import validation
from dflax.algorithm import Metrics
from dflax.inference.requests import Requests

QUANTILES = (50, 95, 99)


class Served(NamedTuple):
    """When each request got its tokens.

    Attributes:
      first: `[n]` s, when its first token was there; infinity where it never was.
      last: `[n]` s, when its last token was there; infinity where it never was.
    """

    first: Float[Array, " n"]
    last: Float[Array, " n"]


class Levels(NamedTuple):
    """What a service promises. From `levels`.

    Attributes:
      ttft: s to the first token.
      tpot: s for each token after the first.
      total: s to the last token.
    """

    ttft: float | Float[Array, ""]
    tpot: float | Float[Array, ""]
    total: float | Float[Array, ""]


def levels(
    *,
    ttft: float | Float[Array, ""] = jnp.inf,
    tpot: float | Float[Array, ""] = jnp.inf,
    total: float | Float[Array, ""] = jnp.inf,
) -> Levels:
    """Service levels; what is not given is not promised.

    Args:
      ttft: s to the first token, > 0; traceable.
      tpot: s for each token after the first, > 0; traceable.
      total: s to the last token, > 0; traceable.

    Raises:
      TypeError, ValueError: naming the argument.
    """
    for name, value in (("ttft", ttft), ("tpot", tpot), ("total", total)):
        if validation.is_traced(value) or value is not jnp.inf:
            validation.real(name, value, low=0.0, low_open=True, scalar=True)
    return Levels(ttft, tpot, total)


def quantile(values: Float[Array, " n"], percent: float) -> Float[Array, ""]:
    """The nearest-rank quantile: the smallest value that `percent` % of all do not exceed.

    A request that was never served has an infinite latency, and counts.

    Args:
      values: `[n]`.
      percent: in (0, 100].

    Raises:
      TypeError, ValueError: naming the argument.
    """
    validation.real("percent", percent, low=0.0, high=100.0, low_open=True, scalar=True)
    validation.arrays("values", values)
    validation.leading_axis("values", values, least=1)
    if jnp.ndim(values) != 1:
        raise ValueError(f"values must have one axis, got shape {jnp.shape(values)}.")
    return _ranked(jnp.sort(values), percent, len(values))


def service(
    requests: Requests,
    served: Served,
    promised: Levels,
    *,
    counted: Bool[Array, " n"] | None = None,
) -> Metrics:
    """Metrics of a block of requests.

    With TTFT = first - arrived, TPOT = (last - first) / (output - 1) (0 where there is one token):

        success = share with TTFT, TPOT and last - arrived within what is promised
        goodput = successes a second, over the span from time 0 to the last token of the block

    Args:
      requests: `[n]`.
      served: `[n]`.
      promised: see `levels`.
      counted: `[n]` which rows count; default all.

    Returns:
      `success`, `served` (share that got all tokens), `goodput`, `throughput` (requests a second that
      got all), `token_throughput`, and for `ttft`, `tpot` and `total` their quantiles, as `ttft_p50`;
      infinite where so many were never served.

    Raises:
      TypeError: naming the argument.
    """
    validation.instance("requests", requests, Requests)
    validation.instance("served", served, Served)
    validation.instance("promised", promised, Levels, "Make it with dflax.inference.levels.")
    rows = requests.arrived.shape
    some = jnp.ones(rows, bool)
    if counted is not None:
        some = jnp.asarray(validation.array("counted", counted, kind="boolean", shape=rows))
    latencies = latency(requests, served)
    done = some & jnp.isfinite(served.last)
    good = done
    for values, most in zip(latencies, promised, strict=True):
        good = good & (values <= most)
    ends = jnp.max(jnp.where(done, served.last, 0.0), initial=0.0)
    span = jnp.maximum(jnp.maximum(ends, jnp.max(requests.arrived)), 1e-9)
    total = jnp.maximum(jnp.sum(some), 1)
    found: Metrics = {
        "success": jnp.sum(good) / total,
        "served": jnp.sum(done) / total,
        "goodput": jnp.sum(good) / span,
        "throughput": jnp.sum(done) / span,
        "token_throughput": jnp.sum(jnp.where(done, requests.output, 0).astype(jnp.float32)) / span,
    }
    for name, values in latencies._asdict().items():
        # Rows that do not count go behind all others.
        order = jnp.sort(jnp.where(some, values, jnp.inf))
        for percent in QUANTILES:
            found[f"{name}_p{percent}"] = _ranked(order, percent, total)
    return found


class Latencies(NamedTuple):
    """Latencies of each request, in seconds; infinite where it was never served."""

    ttft: Float[Array, " n"]
    tpot: Float[Array, " n"]
    total: Float[Array, " n"]


def latency(requests: Requests, served: Served) -> Latencies:
    """TTFT, TPOT and total latency of each request; see `service`.

    Args:
      requests: `[n]`.
      served: `[n]`.

    Raises:
      TypeError: naming the argument.
    """
    validation.instance("requests", requests, Requests)
    validation.instance("served", served, Served)
    further = jnp.maximum(requests.output - 1, 0)
    between = jnp.where(jnp.isfinite(served.last), served.last - served.first, jnp.inf)
    # One token has no time between tokens; a request that never got it has no latency at all.
    tpot = jnp.where((further == 0) & (between < jnp.inf), 0.0, between / jnp.maximum(further, 1))
    return Latencies(served.first - requests.arrived, tpot, served.last - requests.arrived)


def _ranked(
    order: Float[Array, " n"], percent: float, rows: int | Int[Array, ""]
) -> Float[Array, ""]:
    # The small amount keeps a product such as .99 * 100 from rounding up past its own rank.
    rank = jnp.ceil(percent / 100.0 * rows - 1e-4).astype(jnp.int32)
    return order[jnp.clip(rank - 1, 0, len(order) - 1)]
