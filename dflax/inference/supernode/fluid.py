"""Decoding as a fluid: all sequences of an instance advance at the pace of its load."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from dflax import validation
from dflax.inference.costs import Costs
from dflax.inference.supernode.decode import Speculation, time_per_token


def fluid_decode(
    ready: Float[Array, " n"],
    prompt: Int[Array, " n"],
    output: Int[Array, " n"],
    costs: Costs,
    speculation: Speculation,
    *,
    npus: int,
    slots: int,
    ticks: int,
    tick: float | Float[Array, ""] = 5e-3,
) -> Float[Array, " n"]:
    """When each request has its last token, on one instance whose pace follows its load.

    In each tick those who are ready take free slots in the order of their rows; then each sequence
    advances by tick / TPOT(batch, context) tokens, with the batch and the mean context of now. It costs
    n operations a tick, and says how far the stations' rule is off, which keeps the pace that a request
    finds when it comes.

    Args:
      ready: `[n]` s, when keys and values are there; not decreasing.
      prompt: `[n]` tokens, >= 1.
      output: `[n]` tokens, >= 1, of which the first is there already.
      costs: whose `decode` is of one NPU.
      speculation: see `Speculation`.
      npus: of the instance, >= 1.
      slots: sequences that it holds, >= 1.
      ticks: how many, >= 1.
      tick: s, > 0; traceable.

    Returns:
      `[n]` s; infinity for those who are not done by then.

    Raises:
      TypeError, ValueError: naming the argument.
    """
    times = validation.array("ready", ready, kind="real", shape=("n",), low=0.0)
    prompts = validation.array("prompt", prompt, kind="integer", shape=times.shape, low=1)
    outputs = validation.array("output", output, kind="integer", shape=times.shape, low=1)
    validation.instance("costs", costs, Costs)
    validation.instance("speculation", speculation, Speculation)
    for name, value in (("npus", npus), ("slots", slots), ("ticks", ticks)):
        validation.integer(name, value, low=1)
    validation.real("tick", tick, low=0.0, low_open=True, scalar=True)
    comes = jnp.asarray(times, jnp.float32)
    lengths, wanted = (jnp.asarray(v, jnp.float32) for v in (prompts, outputs))

    def one(state: tuple[Array, Array, Array], number: Array) -> tuple[tuple, None]:
        begun, left, last = state
        now = number * tick
        begun = _admitted(begun, comes <= now, slots - jnp.sum(begun & (left > 0)))
        there = begun & (left > 0)
        count = jnp.sum(there)
        batch = jnp.maximum(count, 1) / npus
        positions = jnp.sum(jnp.where(there, lengths + wanted - left, 0.0))
        pace = time_per_token(costs, batch, positions / npus / batch, speculation)
        after = jnp.where(there, left - tick / pace, left)
        last = jnp.where(there & (after <= 0), now + left * pace, last)
        return (begun, after, last), None

    start = (jnp.zeros(comes.shape, bool), wanted - 1.0, jnp.full(comes.shape, jnp.inf))
    (_, _, last), _ = jax.lax.scan(one, start, jnp.arange(ticks, dtype=jnp.float32))
    # One token has been there since prefill.
    return jnp.where(wanted <= 1.0, comes, last)


def _admitted(
    begun: Bool[Array, " n"], comes: Bool[Array, " n"], free: Int[Array, ""]
) -> Bool[Array, " n"]:
    """Those who have begun, and the first `free` of those who wait."""
    waits = comes & ~begun
    return begun | (waits & (jnp.cumsum(waits) <= free))
