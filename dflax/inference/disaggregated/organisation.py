"""How many instances prefill and decode as time goes on: rules that move instances."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from dflax import validation
from dflax.inference.disaggregated.ratio import Profile, best_throughput
from dflax.inference.stations import Memory

Real = float | Float[Array, ""]


class Observed(NamedTuple):
    """What is known at the end of a block; times count from its beginning.

    Attributes:
      span: `[]` s that the block took, up to its last arrival.
      arrived: `[]` requests that came.
      ends: `[n]` s, when each request gets its last token; infinity where it never does.
      total: `[n]` s from arrival to the last token.
      ttft: `[n]` s from arrival to the first token.
      prefill: `[]` instances that prefill.
      decode: `[]` instances that decode.
      idle: `[]` instances that stand by.
    """

    span: Float[Array, ""]
    arrived: Float[Array, ""]
    ends: Float[Array, " n"]
    total: Float[Array, " n"]
    ttft: Float[Array, " n"]
    prefill: Int[Array, ""]
    decode: Int[Array, ""]
    idle: Int[Array, ""]


class Organisation(NamedTuple):
    """A rule that says how many instances there should be. From `ratio_adjustment`, `tidal_scaling`.

    Attributes:
      init: `() -> memory`.
      decide: `(memory, Observed) -> (memory, prefill [], decode [])`, the wanted numbers.
      spare: instances that stand by at the beginning.
      warm_up: s that an instance loads its model before it serves.
      moves: instances that change what they do after one block, at most.
    """

    init: Callable[[], Memory]
    decide: Callable[[Memory, Observed], tuple[Memory, Int[Array, ""], Int[Array, ""]]]
    spare: int
    warm_up: Real
    moves: int


class Averages(NamedTuple):
    """What `ratio_adjustment` remembers.

    Attributes:
      ends: `[underway]` s, when requests that are under way will have their last token.
      total: `[underway]` s, their latencies.
      share: `[underway]` their T_ttft / T_e2e.
      sums: `[3]` exponentially weighted sums of ones, of T_e2e and of T_ttft / T_e2e.
      reference: `[2]` T_e2e and T_ttft / T_e2e that new ones are compared with; NaN before the first.
      rests: `[]` s until the next decision.
    """

    ends: Float[Array, " underway"]
    total: Float[Array, " underway"]
    share: Float[Array, " underway"]
    sums: Float[Array, "3"]
    reference: Float[Array, "2"]
    rests: Float[Array, ""]


def ratio_adjustment(
    *,
    latency: Real = 0.1,
    share: Real = 0.1,
    decay: Real = 0.99,
    cooldown: Real = 30.0,
    warm_up: Real = 10.0,
    reference: Profile | None = None,
    spare: int = 0,
    underway: int = 4096,
) -> Organisation:
    """Moves one instance when answers become slow, to the side whose share of the time has grown.

    With averages over finished requests of T_e2e and rho = T_ttft / T_e2e, at the end of a block:

        T_e2e > (1 + e1) T_ref  and  rho > (1 + e2) rho_0:   n_p + 1, n_d - 1
        T_e2e > (1 + e1) T_ref  and  rho < (1 - e2) rho_0:   n_p - 1, n_d + 1

    T_ref and rho_0 are the averages at the last decision, and before it those at the end of the first
    cooldown; or those of a profile without any queue. An instance first ends what it has begun, then
    loads its model. With spare instances one of them is taken instead, while there are any.

    Args:
      latency: e1 in (0, 1); traceable, as all real ones.
      share: e2 in (0, 1).
      decay: of the averages for every finished request, in (0, 1).
      cooldown: s between two decisions, >= 0.
      warm_up: s that an instance loads its model, >= 0.
      reference: T_ref = T_p + T_d and rho_0 = T_p / (T_p + T_d) of this profile for ever.
      spare: instances that stand by, >= 0.
      underway: requests under way whose ends are remembered, >= 1; should hold more than ever are.

    Raises:
      TypeError, ValueError: naming the argument.
    """
    for name, value in (("latency", latency), ("share", share), ("decay", decay)):
        validation.real(name, value, low=0.0, high=1.0, low_open=True, high_open=True, scalar=True)
    validation.real("cooldown", cooldown, low=0.0, scalar=True)
    validation.real("warm_up", warm_up, low=0.0, scalar=True)
    if reference is not None:
        validation.instance(
            "reference", reference, Profile, "Make it with dflax.inference.profile."
        )
    validation.integer("spare", spare, low=0)
    validation.integer("underway", underway, low=1)

    def init() -> Averages:
        known = jnp.full((2,), jnp.nan)
        if reference is not None:
            total = jnp.asarray(reference.prefill) + reference.decode
            known = jnp.stack([total, reference.prefill / total])
        empty = jnp.zeros((underway,))
        return Averages(
            jnp.full((underway,), jnp.inf), empty, empty, jnp.zeros(3), known, jnp.float32(cooldown)
        )

    def decide(memory: Averages, seen: Observed) -> tuple[Averages, Int[Array, ""], Int[Array, ""]]:
        memory = _finished(memory, seen, decay)
        rests = memory.rests - seen.span
        rested = (rests <= 0) & (memory.sums[0] > 0)
        now = memory.sums[1:] / jnp.maximum(memory.sums[0], 1e-9)
        first = jnp.isnan(memory.reference[0])
        slow = now[0] > (1.0 + latency) * memory.reference[0]
        to_prefill = rested & slow & (now[1] > (1.0 + share) * memory.reference[1])
        to_decode = rested & slow & (now[1] < (1.0 - share) * memory.reference[1])
        spared = seen.idle > 0
        takes = (to_prefill & ((seen.decode > 1) | spared)) | (
            to_decode & ((seen.prefill > 1) | spared)
        )
        fresh = takes | (rested & first)
        kept = (
            memory.reference if reference is not None else jnp.where(fresh, now, memory.reference)
        )
        memory = memory._replace(
            reference=kept, rests=jnp.where(fresh, cooldown, jnp.maximum(rests, 0.0))
        )
        more_p, more_d = (
            (takes & to_prefill).astype(jnp.int32),
            (takes & to_decode).astype(jnp.int32),
        )
        given = jnp.where(spared, 0, 1)
        return (
            memory,
            seen.prefill + more_p - given * more_d,
            seen.decode + more_d - given * more_p,
        )

    return Organisation(init, decide, spare, warm_up, 1)


def _finished(memory: Averages, seen: Observed, decay: Real) -> Averages:
    """Averages with all requests that have ended by the end of the block, in the order of their ends."""
    ends = jnp.concatenate([memory.ends, seen.ends])
    total = jnp.concatenate([memory.total, seen.total])
    share = jnp.concatenate([memory.share, seen.ttft / jnp.maximum(seen.total, 1e-9)])
    order = jnp.argsort(ends)
    ends, total, share = ends[order], total[order], share[order]
    done = ends <= seen.span
    count = jnp.sum(done)
    weight = jnp.where(done, decay ** (count - 1.0 - jnp.arange(len(ends))), 0.0)
    added = jnp.stack(
        [
            jnp.sum(weight),
            jnp.sum(jnp.where(done, weight * total, 0.0)),
            jnp.sum(jnp.where(done, weight * share, 0.0)),
        ]
    )
    sums = memory.sums * decay**count + added
    size = len(memory.ends)
    left = jnp.minimum(count + jnp.arange(size), len(ends) - 1)
    some = count + jnp.arange(size) < len(ends)
    return memory._replace(
        ends=jnp.where(some, ends[left], jnp.inf) - seen.span,
        total=jnp.where(some, total[left], 0.0),
        share=jnp.where(some, share[left], 0.0),
        sums=sums,
    )


def tidal_scaling(
    profile: Profile,
    most: int,
    *,
    start: int,
    utilisation: Real = 0.8,
    memory: Real = 0.5,
    warm_up: Real = 10.0,
    moves: int = 4,
) -> Organisation:
    """As many instances as the rate of arrivals needs, at the best ratio of a profile.

        N = ceil(lambda / (u Phi*)),   n_p = round(N r / (1 + r)),   r = T_p b_d / (b_p T_d)

    in [2, most], at least one of each. lambda is an exponential average over blocks.

    Args:
      profile: see `Profile`.
      most: instances that there are in all, >= 2.
      start: instances that run at the beginning, in [2, most]; those of `pd_serve`.
      utilisation: u in (0, 1]; traceable.
      memory: weight of the past in lambda with every block, in [0, 1); traceable.
      warm_up: s that an instance loads its model, >= 0; traceable.
      moves: instances that change after one block at most, >= 1.

    Raises:
      TypeError, ValueError: naming the argument.
    """
    validation.instance("profile", profile, Profile, "Make it with dflax.inference.profile.")
    validation.integer("most", most, low=2)
    validation.integer("start", start, low=2, high=most)
    validation.probability("utilisation", utilisation, low_open=True)
    validation.probability("memory", memory, high_open=True)
    validation.real("warm_up", warm_up, low=0.0, scalar=True)
    validation.integer("moves", moves, low=1)
    prefills = profile.prefill / jnp.asarray(profile.prefill_slots)
    decodes = profile.decode / jnp.asarray(profile.decode_slots)

    def decide(past: Any, seen: Observed) -> tuple[Any, Int[Array, ""], Int[Array, ""]]:
        rate = seen.arrived / jnp.maximum(seen.span, 1e-9)
        rate = jnp.where(jnp.isnan(past), rate, memory * past + (1.0 - memory) * rate)
        count = jnp.ceil(rate / (utilisation * best_throughput(profile)) - 1e-4)
        count = jnp.clip(count, 2, most)
        prefill = jnp.clip(jnp.round(count * prefills / (prefills + decodes)), 1, count - 1)
        return rate, prefill.astype(jnp.int32), (count - prefill).astype(jnp.int32)

    return Organisation(lambda: jnp.asarray(jnp.nan), decide, most - start, warm_up, moves)
