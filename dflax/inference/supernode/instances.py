"""Instances of a supernode: how many there are, how long each takes, and what it remembers."""

from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from dflax import validation
from dflax.inference.costs import Costs
from dflax.inference.prefix_cache import PrefixCache, hits, kept, prefix_cache
from dflax.inference.requests import Requests
from dflax.inference.stations import (
    Placement,
    Policy,
    Station,
    Work,
    fixed_work,
    stateless,
    station,
)
from dflax.inference.supernode.decode import (
    Speculation,
    cloudmatrix_costs,
    speculation,
    time_per_token,
)
from dflax.inference.supernode.numbers import Real
from dflax.inference.supernode.planes import Plane, cloudmatrix_planes, message
from dflax.inference.supernode.prefill import with_cache

KEYS_AND_VALUES = 61.0 * 1152.0


class Deployment(NamedTuple):
    """Who does what. From `deployment`.

    Attributes:
      prefill: instances of prefill.
      decode: instances of decoding.
      prefill_npus: NPUs of each of the former.
      decode_npus: NPUs of each of the latter.
      slots: sequences that an instance of decoding holds.
      prefixes: how many are known.
      capacity: tokens of prefixes that one instance's share of the memory holds.
      block: tokens of a block of the cache.
      costs: of an instance of prefill, and of one NPU of decoding.
      speculation: guessed tokens.
      link: from an instance of prefill, one NPU's part.
      position_bytes: B of one position over all layers.
    """

    prefill: int
    decode: int
    prefill_npus: int
    decode_npus: int
    slots: int
    prefixes: int
    capacity: int | Int[Array, ""]
    block: int
    costs: Costs
    speculation: Speculation
    link: Plane
    position_bytes: Real


def deployment(
    prefixes: int,
    *,
    prefill: int = 6,
    decode: int = 1,
    prefill_npus: int = 16,
    decode_npus: int = 160,
    batch: int = 24,
    capacity: int | Int[Array, ""] = 1 << 20,
    block: int = 128,
    costs: Costs | None = None,
    guesses: Speculation | None = None,
    link: Plane | None = None,
    position_bytes: Real = KEYS_AND_VALUES,
) -> Deployment:
    """The paper's 256 NPUs: six instances of prefill with 16 each, one of decoding with 160.

    Args:
      prefixes: how many there are, >= 1; a traffic's `prefixes`.
      prefill: instances, >= 1.
      decode: instances, >= 1.
      prefill_npus: NPUs of each, >= 1.
      decode_npus: NPUs of each, >= 1.
      batch: sequences of an NPU of decoding, >= 1.
      capacity: tokens that one instance's share of the memory holds, >= 1; traceable. A pool holds
        `prefill` times as many.
      block: tokens of a block of the cache, >= 1.
      costs: `prefill` of an instance, `decode` of one NPU; default `cloudmatrix_costs()`.
      guesses: default `speculation()`.
      link: of one NPU, from prefill to decoding; default RDMA of a CloudMatrix384.
      position_bytes: B of one position's keys and values over all layers, >= 0; traceable.

    Raises:
      TypeError, ValueError: naming the argument.
    """
    counts = {"prefixes": prefixes, "prefill": prefill, "decode": decode, "batch": batch}
    counts |= {"prefill_npus": prefill_npus, "decode_npus": decode_npus, "block": block}
    for name, value in counts.items():
        validation.integer(name, value, low=1, high=1 << 20)
    validation.real("capacity", capacity, low=1, scalar=True)
    costs = cloudmatrix_costs() if costs is None else costs
    guesses = speculation() if guesses is None else guesses
    link = cloudmatrix_planes().scale_out if link is None else link
    validation.instance("costs", costs, Costs)
    validation.instance("guesses", guesses, Speculation)
    validation.instance("link", link, Plane)
    validation.real("position_bytes", position_bytes, low=0.0, scalar=True)
    return Deployment(
        prefill,
        decode,
        prefill_npus,
        decode_npus,
        batch * decode_npus,
        prefixes,
        capacity,
        block,
        costs,
        guesses,
        link,
        position_bytes,
    )


class Cached(NamedTuple):
    """What a station of prefill remembers.

    Attributes:
      cache: one location for a pool, else one for each instance. A prefix is there from the moment
        at which a request with it is placed.
      reused: `[]` tokens that were loaded so far.
      busy: `[]` s of work that was placed so far, of all instances together.
    """

    cache: PrefixCache
    reused: Float[Array, ""]
    busy: Float[Array, ""]


class Sequences(NamedTuple):
    """What a station of decoding remembers.

    Attributes:
      ends: `[instances, slots]` s, when each slot's sequence is complete.
      context: `[instances, slots]` its mean length.
    """

    ends: Float[Array, "instances slots"]
    context: Float[Array, "instances slots"]


def stations(
    deployment: Deployment, policy: Policy, ratios: tuple[Real, Real], pooled: bool
) -> tuple[Station, Station, Station]:
    """Prefill, links and decoding.

    Args:
      deployment: how many there are.
      policy: which instance of prefill a request goes to.
      ratios: s of loading over s of computing, of the own cache and of another's.
      pooled: whether all instances share one cache.
    """
    front = station(policy, _prefill(deployment, ratios, pooled), instances=deployment.prefill)
    through = fixed_work(
        lambda row: message(
            deployment.link,
            row[1] * deployment.position_bytes / deployment.prefill_npus,
        )
    )
    own = stateless(lambda moment: moment.row[0])
    links = station(own, through, instances=deployment.prefill)
    fewest = stateless(
        lambda moment: jnp.argmin(jnp.sum(moment.free > moment.now, axis=1).astype(jnp.int32))
    )
    back = station(fewest, _decode(deployment), instances=deployment.decode, slots=deployment.slots)
    return front, links, back


def _prefill(deployment: Deployment, ratios: tuple[Real, Real], pooled: bool) -> Work:
    """A prompt less what is cached: loaded from the own cache, fetched from another's, or computed."""
    near, far = ratios
    places = 1 if pooled else deployment.prefill
    capacity = deployment.capacity * (deployment.prefill if pooled else 1)

    def held(memory: Cached, row: Requests) -> tuple[Array, Array, Callable[..., Array]]:
        prompt = row.prompt.astype(jnp.float32)
        own = hits(memory.cache, row.prefix, row.shared, block=deployment.block) / prompt
        full = deployment.costs.prefill(prompt, jnp.square(prompt))
        return own, jnp.max(own), lambda reused, ratio: with_cache(full, reused, ratio=ratio)

    def durations(memory: Cached, row: Requests) -> Float[Array, " instances"]:
        own, anywhere, takes = held(memory, row)
        return jnp.minimum(takes(own, near), takes(anywhere, far))

    def done(memory: Cached, row: Requests, placed: Placement) -> Cached:
        own, anywhere, takes = held(memory, row)
        place = jnp.zeros_like(placed.instance) if pooled else placed.instance
        # Where loading takes as long as computing, nothing is loaded.
        fetches = (takes(anywhere, far) < takes(own[place], near)) & (far < 1.0)
        loaded = jnp.where(near < 1.0, own[place], 0.0)
        reused = jnp.where(fetches, anywhere, loaded) * row.prompt
        cache = kept(memory.cache, place, row.prefix, row.shared, capacity=capacity)
        return Cached(cache, memory.reused + reused, memory.busy + placed.finish - placed.start)

    def init() -> Cached:
        nothing = jnp.zeros(())
        return Cached(prefix_cache(places, deployment.prefixes), nothing, nothing)

    return Work(init, durations, done)


def _decode(deployment: Deployment) -> Work:
    """All tokens but the first, at the time per token that a request finds when it comes."""
    shape = (deployment.decode, deployment.slots)

    def durations(memory: Sequences, row: tuple) -> Float[Array, " instances"]:
        ready, prompt, output = row
        own = prompt + 0.5 * output
        there = memory.ends > ready
        batch = (jnp.sum(there, axis=1) + 1.0) / deployment.decode_npus
        positions = jnp.sum(jnp.where(there, memory.context, 0.0), axis=1) + own
        context = positions / deployment.decode_npus / batch
        each = time_per_token(deployment.costs, batch, context, deployment.speculation)
        return (output - 1) * each

    def done(memory: Sequences, row: tuple, placed: Placement) -> Sequences:
        _, prompt, output = row
        slot = jnp.argmin(memory.ends[placed.instance])
        place = (placed.instance, slot)
        return Sequences(
            memory.ends.at[place].set(placed.finish),
            memory.context.at[place].set(prompt + 0.5 * output),
        )

    return Work(lambda: Sequences(jnp.zeros(shape), jnp.zeros(shape)), durations, done)
