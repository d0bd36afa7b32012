"""The runs of the CloudMatrix study: loads, reuse, memory and policies as lanes of one program each."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from dflax import inference as inf
from dflax.inference import supernode as sn

PREFIXES, PROMPT, OUTPUT = 64, 4096, 256
# Requests a second that six instances can prefill without a cache.
BASE = 6 * 16 * 6688 / PROMPT
POLICIES = ("peer", "kv_centric", "local_only")
TOLD = ("ttft_p50", "ttft_p99", "tpot_p50", "reused", "prefill_rate", "prefill_use")


class Lane(NamedTuple):
    """What a run is of.

    Attributes:
      reuse: part of a prompt that is a shared prefix.
      rate: requests a second.
      weight: of the time that a cache saves, where a policy has one.
      capacity: tokens of prefixes that an instance's share of the memory holds.
    """

    reuse: float
    rate: float
    weight: float
    capacity: int


def saved(reuse: float) -> float:
    """By what the sheet's model multiplies the throughput of prefill."""
    return 1.0 / (1.0 - reuse + 0.39 * reuse)


def served(
    policy: str, lanes: list[Lane], seeds: range, size: int, counted: int
) -> dict[str, np.ndarray]:
    """Metrics `[lanes, seeds]` of the second block of requests, after one that fills the caches."""
    columns: Any = [jnp.asarray(column) for column in zip(*lanes, strict=True)]
    stacked = Lane(*columns)
    keys = jax.vmap(jax.random.key)(jnp.asarray(list(seeds)))
    run = jax.jit(
        jax.vmap(jax.vmap(functools.partial(_run, policy, size, counted), (None, 0)), (0, None))
    )
    return jax.tree.map(np.asarray, run(stacked, keys))


def _run(policy: str, size: int, counted: int, lane: Lane, key: Any) -> dict[str, Any]:
    place = sn.deployment(PREFIXES, batch=10, capacity=lane.capacity)
    made = {
        "peer": lambda: sn.peer(place),
        "kv_centric": lambda: sn.kv_centric(place, weight=lane.weight),
        "local_only": lambda: sn.local_only(place, weight=lane.weight),
    }[policy]()
    algorithm = inf.at_rate(made, lane.rate)
    kind = inf.scenario(
        inf.constant(PROMPT), inf.constant(OUTPUT), prefixes=PREFIXES, reused=lane.reuse
    )
    draw = inf.traffic(inf.poisson(1.0), kind, size).draw
    state = algorithm.init(key, ())
    metrics: Any = {}
    for block in range(counted):
        state, metrics = algorithm.step(state, draw(key, jnp.int32(block)))
    return {name: metrics[name] for name in TOLD}


def fluid(rate: float, seeds: range, size: int) -> dict[str, np.ndarray]:
    """Medians of TPOT over seeds, by stations and by the fluid, for the same requests."""
    costs, guesses = sn.cloudmatrix_costs(), sn.speculation()
    kind = inf.scenario(inf.constant(PROMPT), inf.constant(OUTPUT))
    source = inf.traffic(inf.poisson(rate), kind, size)
    # As many instances of prefill as make nobody wait.
    place = sn.deployment(1, prefill=64, batch=10, position_bytes=0.0)
    ticks = int((size / rate + 10.0) / 5e-3)

    def one(key: Any) -> tuple[Any, Any]:
        requests, own = source.draw(key, jnp.int32(0))
        algorithm = sn.peer(place)
        _, metrics = algorithm.step(algorithm.init(key, ()), (requests, own))
        alone = jnp.float32(PROMPT)
        ready = requests.arrived + costs.prefill(alone, jnp.square(alone))
        sizes: Any = {"npus": 160, "slots": 1600, "ticks": ticks}
        last = sn.fluid_decode(ready, requests.prompt, requests.output, costs, guesses, **sizes)
        return metrics["tpot_p50"], jnp.median(last - ready) / (OUTPUT - 1)

    keys = jax.vmap(jax.random.key)(jnp.asarray(list(seeds)))
    stations, flows = jax.jit(lambda keys: jax.lax.map(one, keys))(keys)
    return {"stations": np.asarray(stations), "fluid": np.asarray(flows)}


def replicated(spares: tuple[int, ...], seeds: range, tokens: int) -> dict[str, np.ndarray]:
    """Lambda `[spares, seeds]` of top-8 of 256 experts with Zipf(1) popularity, in the order of EPLB.

    Replicas are chosen on the tokens that they serve ("same"), and on others of the same popularity
    ("fresh"). `busiest` is the largest load of a slot over the mean load of an expert.
    """
    popular = -jnp.log(jnp.arange(1.0, 257.0))

    def loads(key: Any) -> Any:
        # The largest of scores with Gumbel noise: a draw without replacement.
        scores = popular + jax.random.gumbel(key, (tokens, 256))
        return sn.routed_loads(jax.lax.top_k(scores, 8)[1], 256)

    def one(key: Any) -> dict[str, Any]:
        before, after = (loads(jax.random.fold_in(key, i)) for i in range(2))
        found: dict[str, list[Any]] = {"same": [], "fresh": [], "busiest": []}
        for count in spares:
            copies = sn.balanced(before, count)
            found["same"].append(sn.imbalance(before, copies))
            found["fresh"].append(sn.imbalance(after, copies))
            found["busiest"].append(jnp.max(before / copies) / jnp.mean(before))
        return {name: jnp.stack(values) for name, values in found.items()}

    keys = jax.vmap(jax.random.key)(jnp.asarray(list(seeds)))
    told = jax.jit(lambda keys: jax.lax.map(one, keys))(keys)
    return {name: np.asarray(value).T for name, value in told.items()}


def idle(seeds: range, requests: int, ranks: int) -> np.ndarray:
    """Max over mean of the ranks' tokens with a rank for each request, of log-normal prompts."""

    def one(key: Any) -> Any:
        tokens = inf.log_normal(8.0, 0.5, high=32768)(key, requests).astype(jnp.float32)
        apart = sn.data_parallel_step(tokens, 1.0, ranks=ranks)
        return apart / sn.packed_step(tokens, 1.0, ranks=ranks)

    keys = jax.vmap(jax.random.key)(jnp.asarray(list(seeds)))
    return np.asarray(jax.jit(jax.vmap(one))(keys))


def layers(batches: np.ndarray, context: float) -> dict[str, np.ndarray]:
    """Of the model by parts: seconds of a layer, gains of microbatches and of a guess, by batch."""
    exchanges = sn.cloudmatrix_exchanges()
    half = batches / 2.0

    def parts(sequences: Any, queries: float) -> tuple[sn.Stage, sn.Stage]:
        attention = sn.attention_stage(sequences, context, queries=queries)
        return attention, sn.experts_stage(sequences * queries, exchanges)

    def serial(queries: float) -> Any:
        return sum(map(sn.stage_time, parts(half, queries)))

    def overlapped(queries: float, share: float = 16 / 24) -> Any:
        return sn.pipelined(*parts(half / 2, queries), share=share, other=1.0 - share)

    shares = np.arange(8, 21) / 24
    split = np.stack([np.asarray(overlapped(2.0, float(s))) for s in shares])
    return {
        "serial": np.asarray(serial(2.0)),
        "pipelined": np.asarray(overlapped(2.0)),
        "microbatch gain": np.asarray(serial(2.0) / overlapped(2.0)) - 1,
        "best split's gain": np.asarray(serial(2.0)) / split.min(0) - 1,
        "best split": shares[split.argmin(0)],
        "guess gain, in turn": 1.7 * np.asarray(serial(1.0) / serial(2.0)) - 1,
        "guess gain, pipelined": 1.7 * np.asarray(overlapped(1.0) / overlapped(2.0)) - 1,
        "guess slowdown": np.asarray(overlapped(2.0) / overlapped(1.0)),
    }
