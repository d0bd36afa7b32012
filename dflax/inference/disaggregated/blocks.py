"""What a service of prefill and decoding says of a block, and which instances move after it."""

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from dflax.algorithm import Metrics
from dflax.inference.disaggregated.decoding import Decoded, DecodeState
from dflax.inference.disaggregated.forwarding import Forwarding
from dflax.inference.disaggregated.instances import Instances, moved, running
from dflax.inference.disaggregated.organisation import Observed, Organisation
from dflax.inference.requests import Requests
from dflax.inference.service import Levels, Served, service
from dflax.inference.stations import Memory, Placement, StationState


def block_metrics(
    prefill_free: Float[Array, "instances slots"],
    decode_free: Float[Array, "instances slots"],
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
    """The metrics that `pd_serve` lists, of a block that began with these slots."""
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
    on_p = jnp.sum(running(prefill_free))
    on_d = jnp.sum(running(decode_free))
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


def reorganised(
    organisation: Organisation,
    remembered: Memory,
    idle: Float[Array, " instances"],
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
        jnp.sum(jnp.isfinite(idle)),
    )
    remembered, prefill, decode = organisation.decide(remembered, seen)
    places = moved(
        Instances(queue.free, decoding.free, idle), prefill, decode, seen.span, organisation
    )
    return (
        queue._replace(free=places.prefill),
        decoding._replace(free=places.decode),
        places.idle,
        remembered,
    )
