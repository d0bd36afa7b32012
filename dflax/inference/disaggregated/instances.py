"""Instances that are taken off prefill or decoding, drain, and are put onto the other."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from dflax.inference.disaggregated.organisation import Organisation


class Instances(NamedTuple):
    """Where instances are: a slot is free from infinity on where its instance does something else.

    Attributes:
      prefill: `[instances, slots]` s, when each slot of prefill is free.
      decode: `[instances, slots]` s, when each slot of decoding is free.
      idle: `[instances]` s, when each instance that does neither has ended what it did; infinity for
        no instance.
    """

    prefill: Float[Array, "instances slots"]
    decode: Float[Array, "instances slots"]
    idle: Float[Array, " instances"]


def running(free: Float[Array, "instances slots"]) -> Bool[Array, " instances"]:
    """Which instances are on."""
    return jnp.isfinite(free[:, 0])


def moved(
    places: Instances,
    prefill: Int[Array, ""],
    decode: Int[Array, ""],
    now: Float[Array, ""],
    organisation: Organisation,
) -> Instances:
    """Takes instances off where there are too many, and puts idle ones where there are too few.

    Who has ended its work first is taken off first. It is ready again when that work and the loading
    of its model have ended.

    Args:
      places: see `Instances`.
      prefill: wanted number.
      decode: wanted number.
      now: s.
      organisation: for `warm_up` and `moves`.
    """

    def off(free: Array, idle: Array, wanted: Array) -> tuple[Array, Array]:
        on = running(free)
        ends = jnp.max(free, axis=1)
        leaving = jnp.argmin(jnp.where(on, ends, jnp.inf))
        many = (jnp.sum(on) > jnp.maximum(wanted, 1)) & jnp.any(jnp.isinf(idle))
        place = jnp.argmax(jnp.isinf(idle))
        return (
            free.at[leaving].set(jnp.where(many, jnp.inf, free[leaving])),
            idle.at[place].set(jnp.where(many, ends[leaving], idle[place])),
        )

    def onto(free: Array, idle: Array, wanted: Array) -> tuple[Array, Array]:
        on = running(free)
        place, from_ = jnp.argmin(on), jnp.argmin(idle)
        few = (jnp.sum(on) < wanted) & jnp.isfinite(idle[from_]) & ~on[place]
        ready = jnp.maximum(idle[from_], now) + organisation.warm_up
        return (
            free.at[place].set(jnp.where(few, ready, free[place])),
            idle.at[from_].set(jnp.where(few, jnp.inf, idle[from_])),
        )

    def move(_: int, at: Instances) -> Instances:
        free_p, idle = off(at.prefill, at.idle, prefill)
        free_d, idle = off(at.decode, idle, decode)
        free_p, idle = onto(free_p, idle, prefill)
        free_d, idle = onto(free_d, idle, decode)
        return Instances(free_p, free_d, idle)

    return jax.lax.fori_loop(0, organisation.moves, move, places)
