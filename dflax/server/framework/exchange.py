"""What passes between server and clients in a round, and what of it counts."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from dflax import returned, validation
from dflax.aggregation.aggregator import Aggregator, Combining
from dflax.algorithm import Metrics, Params
from dflax.channel.broadcast import broadcast
from dflax.channel.channel import Channel, Sending
from dflax.channel.compression import numbers
from dflax.server.framework.protocol import Heard, Report, Server


def hearing(
    publish: Callable[[Server], Any] | None,
    downlink: Channel,
    server: Server,
    invited: Float[Array, " m"],
    sending: Sending,
) -> tuple[Any, Metrics]:
    """What each member of the cohort hears of what the server publishes, and what was measured.

    Returns:
      A `Heard` with leaves `[m, ...]`, () where nothing is ever published; the downlink's metrics and
      `numbers_down`, how many numbers were sent.
    """
    if publish is None:
        return (), {}
    message, sends = returned.parts("publish", publish(server), ("message", "whether it is sent"))
    listening = invited * sends
    copies, arrived, measured = broadcast(downlink, message, sending, listening=listening)
    measured = {f"downlink_{name}": value for name, value in measured.items()}
    return Heard(copies, arrived), measured | {"numbers_down": listening.sum() * numbers(message)}


def reported(report: Any, memory: Any, message: PyTree[Array], kinds: tuple[str, ...]) -> Report:
    """The report of one client's work, refused by name where it is not what was asked for."""
    if not isinstance(report, Report):
        given = f"a value of type {type(report).__name__}"
        raise TypeError(f"work must return a Report(message, memory, metrics), got {given}.")
    returned.alike(
        "the message of work's Report", report.message, message, "message(params)", dtypes=False
    )
    returned.alike("the memory of work's Report", report.memory, memory, "the one it got")
    returned.metrics("the metrics of work's Report", report.metrics)
    if report.totals is not None:
        returned.metrics("the totals of work's Report", report.totals)
    if set(report.kinds or ()) != set(kinds):
        raise ValueError(
            f"the kinds of work's Report must say of each of {sorted(kinds)} whether the message is of "
            f"this kind, got {validation.shown(report.kinds)}."
        )
    return report


def cleared(report: Report, task: Any, weight: Float[Array, ""]) -> Report:
    """The report with zeros for what does not count, and metrics in floating point."""

    def counted(leaf: Array) -> Array:
        # Who does not count sends zeros: in a mean, 0 times NaN would be NaN.
        return jnp.where(weight > 0, leaf, 0)

    measured = report.measured
    if measured is None:
        measured = getattr(task, "local_steps", jnp.int32(1)) > 0
    return report._replace(
        message=jax.tree.map(counted, report.message),
        metrics=jax.tree.map(_floating, report.metrics),
        totals=jax.tree.map(lambda leaf: counted(_floating(leaf)), report.totals or {}),
        measured=measured,
        kinds={name: jnp.asarray(yes, bool) for name, yes in (report.kinds or {}).items()},
    )


def combined(
    aggregator: Aggregator,
    messages: PyTree[Array],
    weights: Float[Array, " m"],
    kinds: dict[str, Array],
    state: Any,
    combining: Combining,
) -> tuple[PyTree[Array], Any, Metrics]:
    """The combined message, the aggregator's state and metrics; dicts where there are several kinds."""
    if not kinds:
        return _apply(aggregator, messages, weights, state, combining)
    keys = jax.random.split(combining.key, len(kinds))
    found = {
        name: _apply(
            aggregator, messages, weights * of_kind, state[name], combining._replace(key=own)
        )
        for (name, of_kind), own in zip(kinds.items(), keys, strict=True)
    }
    metrics = {
        f"{name}_{metric}": value
        for name, (_, _, measured) in found.items()
        for metric, value in measured.items()
    }
    return (
        {name: one for name, (one, _, _) in found.items()},
        {name: one for name, (_, one, _) in found.items()},
        metrics,
    )


def _apply(
    aggregator: Aggregator,
    messages: PyTree[Array],
    weights: Array,
    state: Any,
    combining: Combining,
) -> tuple[PyTree[Array], Any, Metrics]:
    """One use of an aggregator, with what it returns checked."""
    made = aggregator.apply(messages, weights, state, combining)
    gives = (lambda one: one) if aggregator.gives is None else aggregator.gives
    one = jax.eval_shape(lambda tree: gives(jax.tree.map(lambda leaf: leaf[0], tree)), messages)
    returned.parts("Aggregator.apply", made, ("message", "state", "metrics"))
    returned.alike("the message of Aggregator.apply", made[0], one, "one message", dtypes=False)
    returned.alike("the state of Aggregator.apply", made[1], state, "the one it was given")
    returned.metrics("the metrics of Aggregator.apply", made[2])
    return made


def conclusion(made: Any, server: Server) -> tuple[Params, Any, Metrics]:
    """What a server's update returns, refused by name where it does not fit."""
    returned.parts("update", made, ("params", "memory", "metrics"))
    returned.alike("the params that update returns", made[0], server.params, "the model")
    returned.alike("the memory that update returns", made[1], server.memory, "the one it got")
    returned.metrics("the metrics that update returns", made[2])
    return made


def unless(happened: Array, value: Any) -> Array:
    """A metric of something that may not have happened: NaN then, and 0 if it is a count."""
    missing = jnp.nan if jnp.issubdtype(jnp.result_type(value), jnp.floating) else 0
    return jnp.where(happened, value, missing)


def _floating(leaf: Any) -> Array:
    """Integers and booleans as float32, so that they have a mean."""
    leaf = jnp.asarray(leaf)
    return leaf if jnp.issubdtype(leaf.dtype, jnp.floating) else leaf.astype(jnp.float32)
