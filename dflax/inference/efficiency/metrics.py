"""Intelligence per watt, and its kin, of every model on every accelerator."""

from typing import Any, Literal, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from dflax import validation

AGGREGATES = ("ratio_of_means", "mean_of_ratios")
Aggregate = Literal["ratio_of_means", "mean_of_ratios"]
MISSING = "It goes with power, entry by entry; say in `present` what is missing."


class Measurements(NamedTuple):
    """What was measured of M models on H accelerators over Q queries. From `measurements`.

    Attributes:
      accuracy: `[M, Q]` in [0, 1]: exact match, or what a judge gives.
      power: `[M, H, Q]` W, mean over the query.
      latency: `[M, H, Q]` s.
      energy: `[M, H, Q]` J.
      perplexity: `[M, Q]` of the reference answer; None where it was not measured.
      present: `[M, H, Q]` which were measured; all others are left out of every mean.
    """

    accuracy: Float[Array, "M Q"]
    power: Float[Array, "M H Q"]
    latency: Float[Array, "M H Q"]
    energy: Float[Array, "M H Q"]
    perplexity: Float[Array, "M Q"] | None
    present: Bool[Array, "M H Q"]


class Efficiency(NamedTuple):
    """What a watt and a joule buy, `[M, H]` each; NaN for a pair without a query.

    Attributes:
      accuracy: mean over queries.
      power: mean, W.
      energy: mean of a query, J.
      latency: mean, s.
      apw: accuracy per watt, 1/W: intelligence per watt (IPW).
      apj: accuracy per joule, 1/J.
      ppw: inverse perplexity per watt, 1/W; None without perplexities.
      ppj: inverse perplexity per joule, 1/J; None without perplexities.
    """

    accuracy: Float[Array, "M H"]
    power: Float[Array, "M H"]
    energy: Float[Array, "M H"]
    latency: Float[Array, "M H"]
    apw: Float[Array, "M H"]
    apj: Float[Array, "M H"]
    ppw: Float[Array, "M H"] | None
    ppj: Float[Array, "M H"] | None

    @property
    def ipw(self) -> Float[Array, "M H"]:
        """Intelligence per watt: the accuracy per watt by its other name."""
        return self.apw


def measurements(
    accuracy: Float[Array, "M Q"],
    power: Float[Array, "M H Q"],
    latency: Float[Array, "M H Q"],
    *,
    energy: Float[Array, "M H Q"] | None = None,
    perplexity: Float[Array, "M Q"] | None = None,
    present: Bool[Array, "M H Q"] | None = None,
) -> Measurements:
    """Checked measurements; what is not present may be anything, NaN as well.

    Args:
      accuracy: `[M, Q]` in [0, 1].
      power: `[M, H, Q]` W, > 0.
      latency: `[M, H, Q]` s, > 0.
      energy: `[M, H, Q]` J, > 0, where a meter told it; default `power * latency`.
      perplexity: `[M, Q]`, >= 1.
      present: `[M, H, Q]` bool; default all.

    Raises:
      TypeError, ValueError: naming the argument.
    """
    given = validation.array if validation.is_traced(power) else _shaped
    models, hardware, queries = np.shape(given("power", power, kind="real", shape=("M", "H", "Q")))
    every = models, hardware, queries
    seen = np.ones(every, bool) if present is None else present
    seen = validation.array("present", seen, kind="boolean", shape=every)
    power = _checked("power", power, seen, low=0.0, low_open=True)
    latency = _checked("latency", latency, seen, low=0.0, low_open=True)
    if energy is None:
        energy = power * latency
    else:
        energy = _checked("energy", energy, seen, low=0.0, low_open=True)
    some = seen.any(1)
    accuracy = _checked("accuracy", accuracy, some, low=0.0, high=1.0)
    if perplexity is not None:
        perplexity = _checked("perplexity", perplexity, some, low=1.0)
    return Measurements(accuracy, power, latency, energy, perplexity, jnp.asarray(seen))


def efficiency(
    measured: Measurements,
    *,
    aggregate: Aggregate = "ratio_of_means",
    weights: Float[Array, " Q"] | None = None,
) -> Efficiency:
    """Accuracy and inverse perplexity per watt and per joule, of every pair of model and accelerator.

        ratio_of_means   APW = mean_q acc / mean_q P          APJ = mean_q acc / mean_q E
                         PPW = mean_q (1 / ppl) / mean_q P    PPJ = mean_q (1 / ppl) / mean_q E
        mean_of_ratios   APW = mean_q (acc / P)               APJ = mean_q (acc / E)
                         PPW = mean_q (1 / (ppl P))           PPJ = mean_q (1 / (ppl E))

    Means are over the queries that are present, by their weights. The two agree where P (or E) does not
    vary over queries. A mean power favours what is slow on little power, so read APJ beside APW.

    Args:
      measured: from `measurements`.
      aggregate: "ratio_of_means", as headline numbers are quoted, or "mean_of_ratios", per query.
      weights: `[Q]` >= 0; default 1 each. A resample's counts, or the members of a domain.

    Raises:
      TypeError, ValueError: naming the argument.

    References:
      Saad-Falcon, Narayan et al., Intelligence per Watt, arXiv 2511.07885.
    """
    _verify(measured)
    validation.choice("aggregate", aggregate, AGGREGATES)
    queries = measured.present.shape[-1]
    counts = jnp.ones(queries) if weights is None else weights
    validation.array("weights", counts, kind="real", shape=(queries,), low=0.0)
    right, per_query = measured.accuracy[:, None], aggregate == "mean_of_ratios"
    sums = {
        "count": jnp.ones_like(measured.power),
        "accuracy": right,
        "power": measured.power,
        "energy": measured.energy,
        "latency": measured.latency,
    }
    gains = {"ap": right}
    if measured.perplexity is not None:
        gains["pp"] = 1.0 / measured.perplexity[:, None]
    sums |= gains
    if per_query:
        sums |= {f"{name}w": gain / measured.power for name, gain in gains.items()}
        sums |= {f"{name}j": gain / measured.energy for name, gain in gains.items()}
    # One product for all of them, so that a bootstrap is a product of two matrices.
    table = jnp.stack([jnp.where(measured.present, entry, 0.0) for entry in sums.values()])
    counts = jnp.asarray(counts, table.dtype)
    totals = dict(zip(sums, jnp.matmul(table, counts, precision="highest"), strict=True))
    mean = {name: total / totals["count"] for name, total in totals.items()}
    if not per_query:
        mean |= {f"{name}w": mean[name] / mean["power"] for name in gains}
        mean |= {f"{name}j": mean[name] / mean["energy"] for name in gains}
    found: Any = [mean.get(name) for name in Efficiency._fields]
    return Efficiency(*found)


def _shaped(name: str, value: Any, **wanted: Any) -> Any:
    """The value, whatever NaN is in it, if its shape fits."""
    try:
        blank = np.zeros(np.shape(value))
    except ValueError:
        blank = value
    validation.array(name, blank, **wanted)
    return value


def _checked(name: str, value: Any, where: Any, **bounds: Any) -> Array:
    """The value as an array of real numbers of that shape, within its bounds wherever it is present."""
    if validation.is_traced(value) or validation.is_traced(where):
        return jnp.asarray(validation.array(name, value, kind="real", shape=where.shape))
    known = np.asarray(where)
    if np.shape(value) == known.shape:
        filled: Any = np.where(known, value, 1.0)
    else:
        filled = value
    validation.array(name, filled, kind="real", shape=known.shape, fix=MISSING)
    validation.real(name, filled, fix=MISSING, **bounds)
    return jnp.asarray(value)


def _verify(measured: Any) -> None:
    validation.instance("measured", measured, Measurements, "Make them with measurements(...).")
