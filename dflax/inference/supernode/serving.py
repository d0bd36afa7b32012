"""Prefill, decoding and a cache of prefixes as peers, against schedulers that go where the cache is.

prefill    first come, first served; a policy chooses the instance, cached prefixes shorten the work
transfer   keys and values leave an instance by a link of its own
decode     the instance with the fewest sequences; a token takes as long as its load says
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key, PyTree

from dflax import validation
from dflax.algorithm import Algorithm, Metrics
from dflax.inference.costs import Costs
from dflax.inference.prefix_cache import PrefixCache, hits, kept, prefix_cache
from dflax.inference.requests import Requests
from dflax.inference.service import Levels, Served, levels, service
from dflax.inference.stations import (
    Moment,
    Placement,
    Policy,
    Station,
    StationState,
    Work,
    fixed_work,
    least_work,
    sorted_by,
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
from dflax.inference.supernode.prefill import LOADED, LOADED_FAR, with_cache

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


def peer(
    deployment: Deployment, *, near: Real = LOADED, promised: Levels | None = None
) -> Algorithm:
    """Peer serving: any instance reaches the pooled cache alike, so the least work decides.

    Args:
      deployment: see `deployment`.
      near: s of loading cached tokens over s of computing them, >= 0; traceable.
      promised: service levels; default none.

    Returns:
      An `Algorithm` whose round is `(Requests, key)`. Its metrics are those of `service`; `reused`, the
      part of all prompts' tokens that was loaded; `prefill_rate`, tokens of prompts for each second that
      an NPU of prefill works; `prefill_use` and `link_use`, the work that came in over the time in which
      it came, of an instance and of its link: above 1 the queue grows without bound.

    Raises:
      TypeError, ValueError: naming the argument.

    References:
      Zuo et al., Serving Large Language Models on Huawei CloudMatrix384, arXiv 2506.12708.
    """
    validation.real("near", near, low=0.0, scalar=True)
    return _served(deployment, least_work(), (near, 1.0), True, promised)


def kv_centric(
    deployment: Deployment,
    *,
    weight: Real = 1.0,
    near: Real = LOADED,
    far: Real = LOADED_FAR,
    promised: Levels | None = None,
) -> Algorithm:
    """A cache for each instance, and requests that go where their prefix is, if the wait allows it.

        instance = argmin_i  wait_i - weight (time without a cache - time on i)

    Who has not got the prefix fetches it over the slower network, where that is quicker than computing.

    Args:
      deployment: see `deployment`.
      weight: of the time saved, >= 0; traceable. 1 is the earliest finish, 0 the least work.
      near: s of loading tokens of the own cache over s of computing them, >= 0; traceable.
      far: the same for another instance's cache, >= 0; traceable.
      promised: service levels; default none.

    Raises:
      TypeError, ValueError: naming the argument.
    """
    validation.real("weight", weight, low=0.0, scalar=True)
    validation.real("near", near, low=0.0, scalar=True)
    validation.real("far", far, low=0.0, scalar=True)
    return _served(deployment, where_saved(weight), (near, far), False, promised)


def local_only(
    deployment: Deployment,
    *,
    weight: Real = 1.0,
    near: Real = LOADED,
    promised: Levels | None = None,
) -> Algorithm:
    """`kv_centric` without a fetch: what is not in an instance's own cache is computed.

    Args:
      deployment: see `deployment`.
      weight: of the time saved, >= 0; traceable.
      near: s of loading tokens of the own cache over s of computing them, >= 0; traceable.
      promised: service levels; default none.

    Raises:
      TypeError, ValueError: naming the argument.
    """
    validation.real("weight", weight, low=0.0, scalar=True)
    validation.real("near", near, low=0.0, scalar=True)
    return _served(deployment, where_saved(weight), (near, 1.0), False, promised)


def where_saved(weight: Real = 1.0) -> Policy:
    """The instance of the least wait less what its cache saves: argmin_i wait_i + weight duration_i.

    Args:
      weight: of the time saved, >= 0; traceable.

    Raises:
      TypeError, ValueError: naming the argument.
    """
    validation.real("weight", weight, low=0.0, scalar=True)

    def choose(moment: Moment) -> Int[Array, ""]:
        wait = jnp.maximum(moment.opens - moment.now, 0.0)
        return jnp.argmin(wait + weight * moment.durations)

    return stateless(choose)


class ServingState(NamedTuple):
    """What is carried from block to block.

    Attributes:
      prefill: instances of prefill, and what is cached.
      links: one behind each of them.
      decode: instances of decoding, and what they hold.
    """

    prefill: StationState
    links: StationState
    decode: StationState


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


def _served(
    deployment: Deployment,
    policy: Policy,
    ratios: tuple[Real, Real],
    pooled: bool,
    promised: Levels | None,
) -> Algorithm:
    validation.instance(
        "deployment",
        deployment,
        Deployment,
        "Make it with dflax.inference.supernode.deployment.",
    )
    promised = levels() if promised is None else promised
    validation.instance("promised", promised, Levels, "Make it with dflax.inference.levels.")
    front, links, back = _stations(deployment, policy, ratios, pooled)

    def init(key: Key[Array, ""], params: PyTree[Array]) -> ServingState:
        return ServingState(front.init(), links.init(), back.init())

    def step(
        state: ServingState, round: tuple[Requests, Key[Array, ""]]
    ) -> tuple[ServingState, Metrics]:
        requests, key = round
        keys = jax.random.split(key, 3)
        prefill, first = front.serve(state.prefill, requests.arrived, requests, keys[0])

        def transfers(times: Array, order: Array) -> tuple[StationState, Placement]:
            rows = (first.instance[order], requests.prompt[order])
            return links.serve(state.links, times, rows, keys[1])

        link, sent = sorted_by(first.finish, transfers)

        def decodes(times: Array, order: Array) -> tuple[StationState, Placement]:
            rows = (times, requests.prompt[order], requests.output[order])
            return back.serve(state.decode, times, rows, keys[2])

        decode, last = sorted_by(sent.finish, decodes)
        alone = requests.output == 1
        served = Served(first.finish, jnp.where(alone, first.finish, last.finish))
        metrics = service(requests, served, promised)
        busy = prefill.work.busy - state.prefill.work.busy
        reused = prefill.work.reused - state.prefill.work.reused
        metrics |= _told(deployment, requests, reused, busy, jnp.sum(sent.finish - sent.start))
        passed = requests.arrived[-1]
        # The work's own clocks count from the block's end, as those of the stations do.
        held = decode.work._replace(ends=decode.work.ends - passed)
        decode = back.later(decode._replace(work=held), passed)
        prefill = prefill._replace(work=prefill.work._replace(busy=0.0 * busy, reused=0.0 * busy))
        return (
            ServingState(front.later(prefill, passed), links.later(link, passed), decode),
            metrics,
        )

    return Algorithm(init, step)


def _told(
    deployment: Deployment, requests: Requests, reused: Array, busy: Array, moved: Array
) -> Metrics:
    """What a block came to besides its latencies; see `peer`."""
    tokens = jnp.sum(requests.prompt.astype(jnp.float32))
    span = jnp.maximum(requests.arrived[-1], 1e-9) * deployment.prefill
    return {
        "reused": reused / tokens,
        "prefill_rate": tokens / jnp.maximum(busy * deployment.prefill_npus, 1e-30),
        "prefill_use": busy / span,
        "link_use": moved / span,
    }


def _stations(
    deployment: Deployment, policy: Policy, ratios: tuple[Real, Real], pooled: bool
) -> tuple[Station, Station, Station]:
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
