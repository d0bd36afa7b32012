"""P/D-Serve: prefill and decoding on instances of their own."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Key

from dflax import validation
from dflax.algorithm import Algorithm, Metrics
from dflax.inference.disaggregated.decoding import (
    Decoded,
    DecodeState,
    Wire,
    decoded_in_order,
    random_bits,
)
from dflax.inference.disaggregated.forwarding import Forwarding, on_demand, within_groups
from dflax.inference.disaggregated.held import held
from dflax.inference.disaggregated.organisation import (
    Instances,
    Observed,
    Organisation,
    moved,
    running,
)
from dflax.inference.disaggregated.retries import retried
from dflax.inference.disaggregated.transfer import Transfer, instant
from dflax.inference.disaggregated.work import Seconds
from dflax.inference.requests import Requests
from dflax.inference.service import Levels, Served, levels, service
from dflax.inference.stations import Memory, Placement, StationState, Work, sorted_by, station

Count = int | float | Float[Array, ""]


class PDState(NamedTuple):
    """What `pd_serve` carries from block to block; times count from the last block's last arrival.

    Attributes:
      prefill: slots of prefill, and what policy and work remember.
      decode: slots of decoding, and links.
      idle: `[instances]` s, when each instance that does neither is ready for either; infinity else.
      organisation: what the organisation remembers.
    """

    prefill: StationState
    decode: DecodeState
    idle: Float[Array, " instances"]
    organisation: Memory


def pd_serve(
    prefill: Count | Sequence[int],
    decode: Count | Sequence[int],
    work: Work,
    answer: Seconds,
    *,
    prefill_slots: int = 1,
    decode_slots: int = 32,
    forwarding: Forwarding | None = None,
    transfer: Transfer | None = None,
    contended: bool = False,
    conflict: float | Float[Array, ""] = 0.0,
    hold_prefill: bool = False,
    promised: Levels | None = None,
    organisation: Organisation | None = None,
    context: int | Float[Array, ""] | None = None,
    most: int | None = None,
) -> Algorithm:
    """A service whose prefill and decoding have instances of their own; a step is a block of requests.

    A request is forwarded to a slot of prefill, which it occupies for T_p; its first token is there at
    the end. Its keys and values travel for xi, once a slot of decoding takes them, and it occupies that
    slot for xi + T_d. With a_i the arrival and s_i the begin of prefill,

        TTFT_i = s_i + T_p(i) - a_i,      T_e2e(i) = TTFT_i + wait for a slot + xi(i) + T_d(i)

    `promised.ttft` is the time-out of forwarding. Within a block all queues are exact. Between blocks
    requests reach decoding block by block: those of a block all before those of the next.

    Args:
      prefill: n_p >= 1 instances that prefill, traceable where `most` says how many there can be; or of
        every scenario, as fine-grained organisation has them, where scenarios share nothing.
      decode: n_d >= 1, likewise.
      work: T_p, from `prompt_work`, `cached_work` or `fixed_work(scenario_seconds(...))`.
      answer: T_d, from `decode_seconds` or `scenario_seconds`.
      prefill_slots: b_p >= 1.
      decode_slots: b_d >= 1.
      forwarding: from `on_demand` (default) or `local_queue`.
      transfer: xi, from `block_free`, `block_fixed` or `per_layer`; default `instant()`.
      contended: whether transfers to the same instance follow one another.
      conflict: v >= 0, a transfer takes 1 + Exp(v for each other one under way) as long; traceable.
      hold_prefill: whether a slot of prefill waits until the transfer has ended, for `on_demand`
        without `retry` alone. Otherwise keys and values wait in a buffer, and the slot goes on.
      promised: service levels; default TTFT within 0.5 s.
      organisation: moves instances after each block, from `ratio_adjustment` or `tidal_scaling`.
      context: tokens of prompt and answer together that are served, >= 1; traceable. Longer requests are
        refused by the gateway and counted as `too_long`. Default: no limit.
      most: instances of either kind that there is room for, where the numbers are traced.

    Returns:
      `Algorithm` whose round is `(Requests, key)` and whose state is `PDState`. Metrics: those of
      `service`, where a request that timed out is a failure, and
      `timed_out`, `too_long`: shares of requests;
      `refusals`: rounds of offers that were refused, for each request (0 without `on_demand`);
      `wasted_seconds`: s of slots that prefilled for answers whose first token came too late;
      `late`: share of them;
      `per_instance`: requests a second for each instance that is on;
      `prefill_load`, `decode_load`: work that came, over what the slots can do in the same time;
      `overloaded`: whether one of them is >= 1, so that queues or time-outs grow without bound;
      `transfer_seconds`, `decode_wait`: means, in s;
      `prefill_instances`, `decode_instances`: on during the block.

    Raises:
      TypeError, ValueError: naming the argument.

    References:
      Jin et al., P/D-Serve: Serving Disaggregated Large Language Model at Scale, arXiv 2408.08147.
    """
    forwarding = on_demand() if forwarding is None else forwarding
    transfer = instant() if transfer is None else transfer
    promised = levels(ttft=0.5) if promised is None else promised
    validation.instance("work", work, Work, "Make it with dflax.inference.prompt_work.")
    validation.function("answer", answer, "It gets a row of requests.", takes=1)
    validation.integer("prefill_slots", prefill_slots, low=1)
    validation.integer("decode_slots", decode_slots, low=1)
    validation.instance("forwarding", forwarding, Forwarding, "Make it with on_demand.")
    validation.function("transfer", transfer, "It gets tokens and the prefill's seconds.", takes=2)
    validation.flag("contended", contended)
    validation.real("conflict", conflict, low=0.0, scalar=True)
    validation.flag("hold_prefill", hold_prefill)
    validation.instance("promised", promised, Levels, "Make it with dflax.inference.levels.")
    if context is not None:
        validation.real("context", context, low=1, scalar=True)
    if organisation is not None:
        validation.instance("organisation", organisation, Organisation)
    groups = _groups(prefill, decode)
    numbers: Any = (None, None) if groups is not None else (prefill, decode)
    room = _room(prefill, decode, groups, organisation, most)
    _compatible(forwarding, groups, organisation, hold_prefill)
    limit, wire = promised.ttft, Wire(contended, conflict)
    policy = forwarding.policy if groups is None else within_groups(forwarding.policy, groups[0])
    fitting = _fitting(work, context)
    place = station(
        policy,
        fitting,
        instances=room[0],
        slots=prefill_slots,
        stays=lambda wait, duration: jnp.isfinite(wait) & forwarding.stays(wait, duration, limit),
        on=numbers[0],
    )

    def init(key: Key[Array, ""], params: Any) -> PDState:
        on = jnp.arange(room[1]) < (room[1] if groups is not None else numbers[1])
        slots = jnp.where(on[:, None], jnp.zeros((room[1], decode_slots)), jnp.inf)
        idle = jnp.full((room[0],), jnp.inf)
        remembered: Memory = ()
        if organisation is not None:
            idle = jnp.where(jnp.arange(room[0]) < organisation.spare, 0.0, jnp.inf)
            remembered = organisation.init()
        return PDState(place.init(), DecodeState(slots, jnp.zeros(room[1])), idle, remembered)

    def step(state: PDState, round: tuple[Requests, Key[Array, ""]]) -> tuple[PDState, Metrics]:
        requests, key = round
        rows, fits = requests, _fits(requests, context)
        bits, taken = random_bits(key, len(fits)), answer(rows)
        taken = jnp.broadcast_to(jnp.asarray(taken, jnp.float32), fits.shape)
        queue, decoding = state.prefill, state.decode

        if hold_prefill:
            # What the prefill takes is not known before; transfers that overlap it see its mean slot.
            sends = transfer(rows.prompt, _alone(fitting, queue.work, rows))
            free, remembered, decoding, placed, decoded = held(
                queue.free, queue.work, decoding, rows, fitting, forwarding, limit, wire,
                sends, taken, bits,
            )  # fmt: skip
            queue = queue._replace(free=free, work=remembered)
            placed = placed._replace(served=placed.served & fits)
        else:
            if forwarding.retry is None:
                queue, placed = place.serve(queue, rows.arrived, rows, key)
            else:
                free, remembered, placed = retried(
                    queue.free, queue.work, rows, fitting, forwarding, limit
                )
                queue = queue._replace(free=free, work=remembered)
            placed = placed._replace(served=placed.served & fits)
            sends = transfer(rows.prompt, placed.finish - placed.start)
            asked = jnp.where(placed.served, placed.finish, jnp.inf)
            allowed = _allowed(rows, groups, room[1])

            def admitted(times: Array, order: Array) -> tuple[DecodeState, Decoded]:
                own = (sends[order], taken[order], bits[order], allowed[order])
                return decoded_in_order(decoding, wire, times, *own)

            decoding, decoded = sorted_by(asked, admitted)

        decoded = jax.tree.map(
            lambda leaf: jnp.where(placed.served, leaf, jnp.inf), decoded._replace(instance=taken)
        )
        span = rows.arrived[-1]
        metrics = _metrics(
            state, rows, placed, decoded, taken, fits, promised, forwarding,
            prefill_slots, decode_slots,
        )  # fmt: skip
        idle, remembered = state.idle, state.organisation
        if organisation is not None:
            queue, decoding, idle, remembered = _organised(
                organisation, state, queue, decoding, rows, placed, decoded, metrics
            )
        return (
            PDState(
                place.later(queue, span),
                DecodeState(decoding.free - span, decoding.link - span),
                idle - span,
                remembered,
            ),
            metrics,
        )

    return Algorithm(init, step)


def _metrics(
    state: PDState,
    rows: Requests,
    placed: Placement,
    decoded: Decoded,
    taken: Float[Array, " n"],
    fits: Bool[Array, " n"],
    promised: Levels,
    forwarding: Forwarding,
    prefill_slots: int,
    decode_slots: int,
) -> Metrics:
    """What `pd_serve` says of a block."""
    first = jnp.where(placed.served, placed.finish, jnp.inf)
    found = service(rows, Served(first, decoded.last), promised)
    late = placed.served & (placed.finish - rows.arrived > promised.ttft)
    duration = placed.finish - placed.start
    wait = placed.start - rows.arrived
    if not forwarding.on_demand:
        refused = jnp.zeros_like(wait)
    elif forwarding.retry is None:
        refused = (wait > 0).astype(jnp.float32)
    else:
        refused = jnp.round(wait / forwarding.retry)
    on_p = jnp.sum(running(state.prefill.free))
    on_d = jnp.sum(running(state.decode.free))
    span = jnp.maximum(rows.arrived[-1], 1e-9)
    served = jnp.maximum(jnp.sum(placed.served), 1)
    prefill_load = jnp.sum(jnp.where(fits, duration, 0.0)) / (span * on_p * prefill_slots)
    decode_load = jnp.sum(jnp.where(placed.served, taken, 0.0)) / (span * on_d * decode_slots)

    def mean(values: Array) -> Array:
        return jnp.sum(jnp.where(placed.served, values, 0.0)) / served

    return found | {
        "timed_out": jnp.mean(fits & ~placed.served),
        "too_long": jnp.mean(~fits),
        "refusals": jnp.mean(jnp.where(fits, refused, 0.0)),
        "wasted_seconds": jnp.sum(jnp.where(late, duration, 0.0)),
        "late": jnp.mean(late),
        "per_instance": found["throughput"] / (on_p + on_d),
        "prefill_load": prefill_load,
        "decode_load": decode_load,
        "overloaded": (prefill_load >= 1) | (decode_load >= 1),
        "transfer_seconds": mean(decoded.began - decoded.sent),
        "decode_wait": mean(decoded.sent - placed.finish),
        "prefill_instances": on_p,
        "decode_instances": on_d,
    }


def _organised(
    organisation: Organisation,
    state: PDState,
    queue: StationState,
    decoding: DecodeState,
    rows: Requests,
    placed: Placement,
    decoded: Decoded,
    metrics: Metrics,
) -> tuple[StationState, DecodeState, Float[Array, " instances"], Memory]:
    """The block's end: what was observed, what is wanted, who moves."""
    seen = Observed(
        rows.arrived[-1],
        jnp.asarray(len(rows.arrived), jnp.float32),
        decoded.last,
        decoded.last - rows.arrived,
        placed.finish - rows.arrived,
        metrics["prefill_instances"],
        metrics["decode_instances"],
        jnp.sum(jnp.isfinite(state.idle)),
    )
    remembered, prefill, decode = organisation.decide(state.organisation, seen)
    places = moved(
        Instances(queue.free, decoding.free, state.idle), prefill, decode, seen.span, organisation
    )
    return (
        queue._replace(free=places.prefill),
        decoding._replace(free=places.decode),
        places.idle,
        remembered,
    )


def _fits(rows: Requests, context: Any) -> Bool[Array, "..."]:
    if context is None:
        return jnp.ones(rows.prompt.shape, bool)
    return rows.prompt + rows.output <= context


def _fitting(work: Work, context: Any) -> Work:
    """The work, of which requests that are too long take none."""
    if context is None:
        return work

    def done(memory: Memory, row: Requests, placed: Placement) -> Memory:
        return work.done(memory, row, placed._replace(served=placed.served & _fits(row, context)))

    return Work(
        work.init,
        lambda memory, row: jnp.where(_fits(row, context), work.durations(memory, row), 0.0),
        done,
    )


def _alone(work: Work, memory: Memory, rows: Requests) -> Float[Array, " n"]:
    return jax.vmap(lambda row: jnp.mean(work.durations(memory, row)))(rows)


def _allowed(rows: Requests, groups: Any, instances: int) -> Bool[Array, "n instances"]:
    if groups is None:
        return jnp.ones((len(rows.scenario), instances), bool)
    group = np.repeat(np.arange(len(groups[1])), groups[1])
    at = jnp.clip(rows.scenario, 0, len(groups[1]) - 1)
    return at[:, None] == group[None, :]


def _groups(prefill: Any, decode: Any) -> tuple[list[int], list[int]] | None:
    """Instances of every scenario, or None for one pool."""
    several = [isinstance(value, (list, tuple)) for value in (prefill, decode)]
    if not any(several):
        for name, value in (("prefill", prefill), ("decode", decode)):
            fix = "A service needs instances of both kinds."
            validation.real(name, value, low=1, scalar=True, fix=fix)
            if not validation.is_traced(value) and value != int(value):
                raise ValueError(f"{name} must be a whole number of instances, got {value}.")
        return None
    if not all(several):
        raise ValueError(
            f"decode must be given as prefill is, got {validation.shown(decode)} beside "
            f"{validation.shown(prefill)}: one number each, or both for every scenario."
        )
    found = []
    for name, value in (("prefill", prefill), ("decode", decode)):
        counts = validation.sequence(name, value, "counts")
        for count in counts:
            validation.integer(name, count, low=1, fix="A group needs instances of both kinds.")
        found.append(counts)
    if len(found[0]) != len(found[1]):
        raise ValueError(
            f"decode must have as many groups as prefill, {len(found[0])}, got {len(found[1])}."
        )
    return found[0], found[1]


def _room(
    prefill: Any, decode: Any, groups: Any, organisation: Organisation | None, most: Any
) -> tuple[int, int]:
    """Instances of both kinds that arrays have."""
    if most is not None:
        validation.integer("most", most, low=1)
    if groups is not None:
        return sum(groups[0]), sum(groups[1])
    traced = validation.is_traced(prefill) or validation.is_traced(decode)
    if traced and most is None:
        raise ValueError("most must say how many instances there can be where numbers are traced.")
    if organisation is not None:
        if traced:
            raise ValueError("organisation must start from numbers of instances that are static.")
        both = int(prefill) + int(decode) + organisation.spare
        return both, both
    if traced:
        return most, most
    for name, value in (("prefill", prefill), ("decode", decode)):
        if most is not None and value > most:
            raise ValueError(f"{name} must be at most `most`, {most}, got {value}.")
    return (int(prefill), int(decode)) if most is None else (most, most)


def _compatible(
    forwarding: Forwarding, groups: Any, organisation: Organisation | None, hold: bool
) -> None:
    exact = forwarding.on_demand and forwarding.retry is None
    if hold and not (exact and groups is None):
        raise ValueError(
            "hold_prefill must be False but for on_demand() without retry in one pool."
        )
    if forwarding.retry is not None and groups is not None:
        raise ValueError("forwarding must not retry where scenarios have groups of their own.")
    if organisation is not None and groups is not None:
        raise ValueError("organisation must be None with groups; give each a run of its own.")
