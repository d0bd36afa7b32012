"""How long a request occupies a slot of prefill, and how long one of decoding."""

from collections.abc import Callable, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from dflax import validation
from dflax.inference.costs import Costs
from dflax.inference.prefix_cache import PrefixCache, hits, kept, prefix_cache
from dflax.inference.requests import Requests
from dflax.inference.stations import Placement, Work, fixed_work

# `row of Requests -> s`; also of whole columns.
Seconds = Callable[[Requests], Float[Array, "..."]]


def prompt_work(costs: Costs) -> Work:
    """Prefill of one prompt whose shared tokens are all cached: costs of l = prompt - shared tokens.

    Args:
      costs: see `Costs`.

    Raises:
      TypeError: naming the argument.
    """
    _costs(costs)

    def seconds(row: Requests) -> Float[Array, "..."]:
        tokens = (row.prompt - row.shared).astype(jnp.float32)
        return costs.prefill(tokens, jnp.square(tokens))

    return fixed_work(seconds)


def cached_work(
    costs: Costs,
    *,
    instances: int,
    prefixes: int,
    capacity: int | Float[Array, ""],
    block: int = 1,
) -> Work:
    """Prefill where each instance keeps the prefixes that it has computed, as far as they fit.

    Args:
      costs: see `Costs`.
      instances: that prefill, >= 1, those that are off included.
      prefixes: how many there are in all, >= 1.
      capacity: tokens of prefixes that an instance keeps, >= 1; traceable. The oldest leave.
      block: tokens of a block; only whole blocks are reused.

    Raises:
      TypeError, ValueError: naming the argument.
    """
    _costs(costs)
    validation.integer("instances", instances, low=1)
    validation.integer("prefixes", prefixes, low=1)
    validation.real("capacity", capacity, low=1, scalar=True)
    validation.integer("block", block, low=1)

    def durations(cache: PrefixCache, row: Requests) -> Float[Array, " instances"]:
        tokens = (row.prompt - hits(cache, row.prefix, row.shared, block=block)).astype(jnp.float32)
        return costs.prefill(tokens, jnp.square(tokens))

    def done(cache: PrefixCache, row: Requests, placed: Placement) -> PrefixCache:
        shared = jnp.where(placed.served, row.shared, 0)
        prefix = jnp.where(placed.served, row.prefix, -1)
        return kept(cache, placed.instance, prefix, shared, capacity=capacity)

    return Work(lambda: prefix_cache(instances, prefixes), durations, done)


def decode_seconds(costs: Costs, batch: int | Float[Array, ""]) -> Seconds:
    """T_d = G TPOT: an answer within a full batch of requests like its own.

        TPOT = costs.decode(batch, batch (prompt + output / 2))

    Args:
      costs: see `Costs`.
      batch: b_d, sequences in each iteration, >= 1; traceable.

    Raises:
      TypeError, ValueError: naming the argument.
    """
    _costs(costs)
    validation.real("batch", batch, low=1, scalar=True)

    def seconds(row: Requests) -> Float[Array, "..."]:
        context = row.prompt.astype(jnp.float32) + 0.5 * row.output
        return row.output * costs.decode(jnp.asarray(batch), batch * context)

    return seconds


def scenario_seconds(seconds: Sequence[float] | Float[Array, " s"]) -> Seconds:
    """The same time for all requests of a scenario, such as a profile's T_p or T_d.

    Args:
      seconds: `[s]` > 0, of each scenario; traceable. A scenario beyond them takes the last.

    Raises:
      TypeError, ValueError: naming the argument.
    """
    given: Any = validation.array("seconds", seconds, kind="real", shape=("s",))
    if not validation.is_traced(given):
        validation.real("seconds", given, low=0.0, low_open=True)
        given = given.astype(np.float32)
    return lambda row: jnp.asarray(given)[jnp.clip(row.scenario, 0, len(given) - 1)]


def _costs(costs: Costs) -> None:
    validation.instance("costs", costs, Costs, "Make them with dflax.inference.opt_13b_costs.")
