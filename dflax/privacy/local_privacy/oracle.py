"""A frequency oracle: how a user answers under local privacy, and what is estimated from answers."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec
from jaxtyping import Array, Bool, Float, Int, Key, PyTree

from dflax import validation
from dflax.clients import CLIENTS, client_devices
from dflax.participation import Count

# A table of users and values that is made at once has at most so many entries.
AT_ONCE = 1 << 20


class Domain(NamedTuple):
    """The values 0, ..., d - 1 that are asked about.

    Attributes:
      size: `[]` int32, d >= 1; it may be traced.
      padded: D >= d, static. Arrays by value have length D; what lies beyond d is 0 or False.
    """

    size: Int[Array, ""]
    padded: Count

    @property
    def valid(self) -> Bool[Array, " D"]:
        """`[D]` which entries are values."""
        return jnp.arange(int(self.padded)) < self.size

    def holds(self, values: Int[Array, "..."]) -> Bool[Array, "..."]:
        """Which values are of the domain."""
        return (values >= 0) & (values < self.size)


def domain(size: int | Int[Array, ""], padded: int | None = None) -> Domain:
    """The values 0, ..., d - 1.

    Args:
      size: d >= 1; may be traced where `padded` is given.
      padded: D >= d, the length of arrays by value; d itself by default.

    Raises:
      TypeError, ValueError: naming the argument.
    """
    if padded is None:
        validation.integer("size", size, low=1, fix="Of a traced size say a bound, padded.")
        padded = int(size)
    validation.integer("padded", padded, low=1)
    most = validation.LARGEST_COUNT
    given = validation.array("size", size, kind="integer", shape=(), low=1, high=most)
    if not validation.is_traced(given) and int(given) > padded:
        raise ValueError(f"padded must be at least size, {int(given)}, got {padded}.")
    return Domain(jnp.asarray(given, jnp.int32), Count(padded))


class Estimates(NamedTuple):
    """What is estimated from the reports of n users.

    Attributes:
      frequency: `[D]` unbiased estimates of the share of users with each value; they may be negative.
        0 where nobody reported.
      deviation: `[D]` standard deviation of the estimate of a value that nobody has; infinite where
        nobody reported.
      counts: `[D]` int32, reports that support each value.
      users: `[]` int32, n.
    """

    frequency: Float[Array, " D"]
    deviation: Float[Array, " D"]
    counts: Int[Array, " D"]
    users: Int[Array, ""]


class FrequencyOracle(NamedTuple):
    """A locally private protocol for frequencies, as pure functions of a `Domain`.

    Each user reports once: whatever two values it may have, no report is more than e^epsilon times as
    likely under the one as under the other. That includes values outside of the domain, negative ones
    for example: their users answer, too, and support no value more than chance does. Somebody who did
    not answer would tell that it has none of the values.

    Attributes:
      respond: `respond(key, values, domain) -> reports`: of `[n]` int32 values the n users' reports, a
        pytree of leaves `[n, ...]`.
      estimate: `estimate(reports, domain, present=None) -> Estimates`. `present` `[n]` bool says which
        rows are users; None: all.
      simulate: `simulate(key, values, domain, present=None) -> Estimates`: what `estimate` makes of
        what they `respond`, exact in distribution, without the reports where they are large.
      supports: `supports(reports, domain) -> [n, D]` bool: which values each report speaks for.
      log_likelihood: `log_likelihood(reports, values, domain) -> [n]`: of each report given the
        value, natural logarithm, up to what does not depend on the value.
      variance: `variance(frequency, users, domain) -> [D]`: of the estimates, where `frequency` `[D]`
        are the shares in truth.
      bits: `bits(domain) -> []` float: of one report.
    """

    respond: Callable[..., PyTree[Array]]
    estimate: Callable[..., Estimates]
    simulate: Callable[..., Estimates]
    supports: Callable[[PyTree[Array], Domain], Bool[Array, "n D"]]
    log_likelihood: Callable[..., Float[Array, " n"]]
    variance: Callable[..., Float[Array, " D"]]
    bits: Callable[[Domain], Float[Array, ""]]


class Support(NamedTuple):
    """How likely a report supports a value, in a pure protocol.

    Attributes:
      own: `[]` p, the user's own value.
      other: `[]` q, any other.
    """

    own: Float[Array, ""]
    other: Float[Array, ""]


def literally(oracle: FrequencyOracle) -> FrequencyOracle:
    """The oracle whose simulation makes every report, to compare with.

    Raises:
      TypeError: no oracle.
    """
    require_oracle("oracle", oracle)

    def simulate(
        key: Key[Array, ""],
        values: Int[Array, " n"],
        domain: Domain,
        present: Bool[Array, " n"] | None = None,
    ) -> Estimates:
        return oracle.estimate(oracle.respond(key, values, domain), domain, present)

    return oracle._replace(simulate=simulate)


def require_oracle(name: str, value: Any) -> None:
    """Refuse what is no `FrequencyOracle`."""
    fix = "Make one in dflax.privacy.local_privacy, for example k_rr(1.0)."
    validation.instance(name, value, FrequencyOracle, fix)


def require_epsilon(name: str, value: Any) -> None:
    """Refuse a privacy budget that is not one finite number above 0."""
    fix = "Without any privacy nothing need be estimated; 100 is as good as none."
    validation.real(name, value, low=0.0, low_open=True, scalar=True, fix=fix)


def require_values(values: Any, domain: Any) -> Int[Array, " n"]:
    """Values as int32; refuses what are no whole numbers in a row, and what is no `Domain`."""
    fix = "Make one with dflax.privacy.local_privacy.domain(d)."
    validation.instance("domain", domain, Domain, fix)
    fix = "Users without any of the values have -1."
    given = validation.array(
        "values", values, kind="integer", shape=("n",), low=-(2**31), high=2**31 - 1, fix=fix
    )
    return jnp.asarray(given, jnp.int32)


def pure_estimates(
    counts: Int[Array, " D"], users: Int[Array, ""], domain: Domain, support: Support
) -> Estimates:
    """Frequency (c / n - q) / (p - q), and deviation sqrt(q (1 - q) / n) / (p - q) at frequency 0."""
    p, q = support
    n = users.astype(jnp.float32)
    some, valid = users > 0, domain.valid
    at_least = jnp.maximum(n, 1)
    frequency = jnp.where(valid & some, (counts / at_least - q) / (p - q), 0.0)
    deviation = jnp.where(some, jnp.sqrt(q * (1 - q) / at_least) / (p - q), jnp.inf)
    return Estimates(
        frequency, jnp.where(valid, deviation, 0.0), jnp.where(valid, counts, 0), users
    )


def pure_variance(
    frequency: Float[Array, " D"], users: int | Int[Array, ""], support: Support
) -> Float[Array, " D"]:
    """Variance [f p (1 - p) + (1 - f) q (1 - q)] / (n (p - q)^2), values held fixed."""
    p, q = support
    spread = frequency * p * (1 - p) + (1 - frequency) * q * (1 - q)
    return spread / (users * jnp.square(p - q))


def present_users(values: Array, present: Bool[Array, " n"] | None) -> Int[Array, ""]:
    """How many of the rows are users."""
    if present is None:
        return jnp.int32(values.shape[0])
    return jnp.sum(present, dtype=jnp.int32)


def chance(
    key: Key[Array, ""], probability: Float[Array, ""], shape: tuple[int, ...]
) -> Bool[Array, "..."]:
    """Independent Bernoulli draws, with p rounded down to a multiple of 2^-32.

    `jax.random.bernoulli` knows multiples of 2^-23, in which a guarantee for large epsilon is lost.
    """
    p = jnp.asarray(probability, jnp.float32)
    threshold = (jnp.minimum(p, 1 - 2.0**-24) * 2.0**32).astype(jnp.uint32)
    return (jax.random.bits(key, shape, jnp.uint32) < threshold) | (p >= 1)


def histogram(
    index: Int[Array, " n"], length: int, present: Bool[Array, " n"] | None = None
) -> Int[Array, " length"]:
    """How many rows have each index in [0, length), the others not counted; `[length]` int32.

    Where the ambient mesh deals the rows, every device counts its own, and the counts are added up.
    """
    counted = (index >= 0) & (index < length)
    counted = counted if present is None else counted & present
    return over_users(functools.partial(_histogram, length=length), index, counted)


def _histogram(index: Array, counted: Array, *, length: int) -> Array:
    place = jnp.where(counted, index, length)
    return jnp.zeros(length, jnp.int32).at[place].add(1, mode="drop")


def over_users(count: Callable[..., Array], *rows: PyTree[Array]) -> Array:
    """A sum over users, `count(*rows)`: of each device's own rows, then of the devices."""
    devices = client_devices(jax.tree.leaves(rows)[0].shape[0])
    if devices == 1:
        return count(*rows)

    def here(*rows: PyTree[Array]) -> Array:
        return jax.lax.psum(count(*rows), CLIENTS)

    dealt = tuple(PartitionSpec(CLIENTS) for _ in rows)
    return jax.shard_map(
        here, in_specs=dealt, out_specs=PartitionSpec(), axis_names={CLIENTS}, check_vma=False
    )(*rows)


def in_chunks(count: Callable[..., Array], width: int, *rows: PyTree[Array]) -> Array:
    """A sum over users of what needs `[n, width]` entries, so many users at a time.

    Args:
      count: `(*rows) -> ` a sum over rows; rows whose last leaf, a mask, is False count nothing.
      width: entries a user.
      *rows: pytrees of leaves `[n, ...]`; the last is `[n]` bool.
    """
    users = jax.tree.leaves(rows)[0].shape[0]
    chunk = min(users, max(1, AT_ONCE // width))
    chunks = -(-users // chunk)
    padding = chunks * chunk - users

    def cut(leaf: Array) -> Array:
        wide = jnp.pad(leaf, [(0, padding)] + [(0, 0)] * (leaf.ndim - 1))
        return wide.reshape(chunks, chunk, *leaf.shape[1:])

    def add(total: Array, some: PyTree[Array]) -> tuple[Array, None]:
        return total + count(*some), None

    cut_rows = jax.tree.map(cut, rows)
    first = jax.eval_shape(count, *jax.tree.map(lambda leaf: leaf[0], cut_rows))
    return jax.lax.scan(add, jnp.zeros(first.shape, first.dtype), cut_rows)[0]
