"""Prefill, decoding and a cache of prefixes as peers, against schedulers that go where the cache is.

prefill    first come, first served; a policy chooses the instance, cached prefixes shorten the work
transfer   keys and values leave an instance by a link of its own
decode     the instance with the fewest sequences; a token takes as long as its load says
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int, Key, PyTree

from dflax import validation
from dflax.algorithm import Algorithm, Metrics
from dflax.inference.requests import Requests
from dflax.inference.service import Levels, Served, levels, service
from dflax.inference.stations import (
    Moment,
    Placement,
    Policy,
    StationState,
    least_work,
    sorted_by,
    stateless,
)
from dflax.inference.supernode.instances import Deployment, stations
from dflax.inference.supernode.numbers import Real
from dflax.inference.supernode.prefill import LOADED, LOADED_FAR


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
    front, links, back = stations(deployment, policy, ratios, pooled)

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
