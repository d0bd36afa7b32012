"""P/D-Serve: prefill and decoding on instances of their own."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from dflax import validation
from dflax.algorithm import Algorithm, Metrics
from dflax.inference.disaggregated.arguments import (
    allowed_instances,
    fits_context,
    groups_of,
    mean_durations,
    refuse_incompatible,
    room_for,
    within_context,
)
from dflax.inference.disaggregated.blocks import block_metrics, reorganised
from dflax.inference.disaggregated.decoding import (
    Decoded,
    DecodeState,
    Wire,
    decoded_in_order,
    random_bits,
)
from dflax.inference.disaggregated.forwarding import Forwarding, on_demand, within_groups
from dflax.inference.disaggregated.held import held
from dflax.inference.disaggregated.organisation import Organisation
from dflax.inference.disaggregated.retries import retried
from dflax.inference.disaggregated.transfer import Transfer, instant
from dflax.inference.disaggregated.work import Seconds
from dflax.inference.requests import Requests
from dflax.inference.service import Levels, levels
from dflax.inference.stations import Memory, StationState, Work, sorted_by, station

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
    groups = groups_of(prefill, decode)
    numbers: Any = (None, None) if groups is not None else (prefill, decode)
    room = room_for(prefill, decode, groups, organisation, most)
    refuse_incompatible(forwarding, groups, organisation, hold_prefill)
    limit, wire = promised.ttft, Wire(contended, conflict)
    policy = forwarding.policy if groups is None else within_groups(forwarding.policy, groups[0])
    fitting = within_context(work, context)
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
        rows, fits = requests, fits_context(requests, context)
        bits, taken = random_bits(key, len(fits)), answer(rows)
        taken = jnp.broadcast_to(jnp.asarray(taken, jnp.float32), fits.shape)
        queue, decoding = state.prefill, state.decode

        if hold_prefill:
            # What the prefill takes is not known before; transfers that overlap it see its mean slot.
            sends = transfer(rows.prompt, mean_durations(fitting, queue.work, rows))
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
            allowed = allowed_instances(rows, groups, room[1])

            def admitted(times: Array, order: Array) -> tuple[DecodeState, Decoded]:
                own = (sends[order], taken[order], bits[order], allowed[order])
                return decoded_in_order(decoding, wire, times, *own)

            decoding, decoded = sorted_by(asked, admitted)

        decoded = jax.tree.map(
            lambda leaf: jnp.where(placed.served, leaf, jnp.inf), decoded._replace(instance=taken)
        )
        span = rows.arrived[-1]
        metrics = block_metrics(
            state.prefill.free, state.decode.free, rows, placed, decoded, taken, fits,
            promised, forwarding, prefill_slots, decode_slots,
        )  # fmt: skip
        idle, remembered = state.idle, state.organisation
        if organisation is not None:
            queue, decoding, idle, remembered = reorganised(
                organisation, state.organisation, state.idle, queue,
                decoding, rows, placed, decoded, metrics,
            )  # fmt: skip
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
