"""Decoding token by token: the time of an iteration follows from who is in the batch."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from dflax import validation
from dflax.inference.costs import Costs


class Emitted(NamedTuple):
    """What `token_decoding` did.

    Attributes:
      began: `[n]` s, when a request got a slot; infinity where it never did.
      last: `[n]` s, when its last token was there; infinity where it was not.
      tokens: `[n]` tokens that it got.
    """

    began: Float[Array, " n"]
    last: Float[Array, " n"]
    tokens: Float[Array, " n"]


class _Slots(NamedTuple):
    row: Int[Array, "instances slots"]
    left: Float[Array, "instances slots"]
    context: Float[Array, "instances slots"]
    head: Int[Array, ""]
    found: Emitted


def token_decoding(
    ready: Float[Array, " n"],
    prompt: Int[Array, " n"],
    output: Int[Array, " n"],
    costs: Costs,
    *,
    instances: int,
    slots: int,
    tick: float | Float[Array, ""] = 0.005,
    ticks: int,
) -> Emitted:
    """Decodes requests in the order in which their keys and values are there.

    In each tick of dt seconds every sequence of an instance gets dt / t_iter tokens, where

        t_iter = costs.decode(B, C),    B sequences with C tokens of context in all.

    At the begin of a tick those who wait take free slots, the emptiest instances first.

    Args:
      ready: `[n]` s; infinity: it never comes.
      prompt: `[n]` tokens.
      output: `[n]` tokens that are decoded, >= 1.
      costs: see `Costs`.
      instances: that decode, >= 1.
      slots: b_d >= 1, sequences of an instance.
      tick: dt, s, > 0; traceable.
      ticks: how many are simulated, >= 1.

    Raises:
      TypeError, ValueError: naming the argument.
    """
    ready = _times(ready)
    for name, value in (("prompt", prompt), ("output", output)):
        validation.array(name, value, kind="integer", shape=(len(ready),), low=1)
    validation.instance("costs", costs, Costs, "Make them with dflax.inference.opt_13b_costs.")
    validation.integer("instances", instances, low=1)
    validation.integer("slots", slots, low=1)
    validation.real("tick", tick, low=0.0, low_open=True, scalar=True)
    validation.integer("ticks", ticks, low=1)
    n = len(ready)
    order = jnp.argsort(ready)
    times = ready[order]
    prompts = jnp.asarray(prompt, jnp.float32)[order]
    outputs = jnp.asarray(output, jnp.float32)[order]

    def one(at: _Slots, index: Int[Array, ""]) -> tuple[_Slots, None]:
        now = index * tick
        vacant = at.row < 0
        # The k-th free slot of an instance with B sequences would be its (B + k)-th.
        depth = jnp.sum(~vacant, axis=1, keepdims=True) + jnp.cumsum(vacant, axis=1)
        places = jnp.argsort(jnp.where(vacant, depth, slots + instances * slots).reshape(-1))
        rank = jnp.zeros_like(places).at[places].set(jnp.arange(len(places)))
        rank = rank.reshape(vacant.shape)
        waiting = jnp.searchsorted(times, now, side="right") - at.head
        enters = vacant & (rank < waiting)
        comer = jnp.minimum(at.head + rank, n - 1)
        row = jnp.where(enters, comer, at.row)
        left = jnp.where(enters, outputs[comer], at.left)
        context = jnp.where(enters, prompts[comer], at.context)
        began = at.found.began.at[jnp.where(enters, comer, n)].set(now, mode="drop")

        active = row >= 0
        batch = jnp.sum(active, axis=1)
        held = jnp.sum(jnp.where(active, context, 0.0), axis=1)
        pace = tick / costs.decode(batch, held)[:, None]
        got = jnp.where(active, jnp.minimum(left, pace), 0.0)
        ends = active & (left <= pace)
        rows = jnp.where(active, row, n)
        done = jnp.where(ends, row, n)
        found = Emitted(
            began,
            at.found.last.at[done].set(now + tick * left / pace, mode="drop"),
            at.found.tokens.at[rows].add(got, mode="drop"),
        )
        after = _Slots(
            jnp.where(ends, -1, row), left - got, context + got, at.head + jnp.sum(enters), found
        )
        return after, None

    shape, never = (instances, slots), jnp.full((n,), jnp.inf)
    begun = _Slots(
        jnp.full(shape, -1, jnp.int32),
        jnp.zeros(shape),
        jnp.zeros(shape),
        jnp.zeros((), jnp.int32),
        Emitted(never, never, jnp.zeros(n)),
    )
    ended, _ = jax.lax.scan(one, begun, jnp.arange(ticks))
    back = jnp.zeros_like(order).at[order].set(jnp.arange(n, dtype=order.dtype))
    return jax.tree.map(lambda column: column[back], ended.found)


def _times(ready: Array) -> Float[Array, " n"]:
    """The times as an array; infinity is no fault, but a request that never comes."""
    if isinstance(ready, (jax.Array, np.ndarray)) and not validation.is_traced(ready):
        known = np.asarray(ready)
        if np.issubdtype(known.dtype, np.floating):
            known = np.where(known == np.inf, 0.0, known)
        validation.array("ready", known, kind="real", shape=("n",))
    elif not validation.is_traced(ready):
        validation.array("ready", ready, kind="real", shape=("n",))
    return jnp.asarray(ready)
