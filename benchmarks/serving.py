"""Continuous batching beside Vidur's simulator: time per request, latencies, and designs at once."""

import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import dflax as dx
from benchmarks import peers
from benchmarks.measure import Row, milliseconds
from dflax import inference
from dflax.inference import batching

# OPT-13B on four A100s, as DistServe fitted it: seconds.
PREFILL, DECODE = (0.0120623, 3.80814e-5, 5.2262e-10), (0.0102562, 1.8787e-7, 3.2693e-5)
SLOTS, TOKENS, CHUNK, RATE = 32, 4096, 512, 5.0
# A trace is cut into blocks, so that float32 clocks resolve 0.1 ms.
BLOCK = 10_000
COSTS = inference.affine_costs(PREFILL, DECODE)
CHAT = inference.scenario(inference.log_normal(6.0, 0.5), inference.log_normal(4.5, 0.6))
TRAFFIC = inference.traffic(inference.poisson(RATE), CHAT, BLOCK)
# How far latencies may be from the peer's, as a share of these.
APART = 0.1


def rows(quick: bool) -> list[Row]:
    """A million requests by each scheduler, Vidur's on a trace of its own size, and 64 designs."""
    count, traced = (100_000, 300) if quick else (1_000_000, 2_000)
    whole = batching.prefill_first(tokens=TOKENS, requests=SLOTS)
    chunks = batching.chunked_prefill(tokens=CHUNK)
    return [
        *served("prompts first", whole, count, traced, None),
        *served("chunks of prompts", chunks, count, traced, CHUNK),
        *designs(8 if quick else 64, 2_000),
    ]


def served(
    title: str, policy: batching.Batching, count: int, traced: int, chunk: int | None
) -> list[Row]:
    """One compiled scan over all requests, per request, beside Vidur on the first of them."""
    replica = batching.replica(COSTS, slots=SLOTS, batching=policy, drain=False)
    algorithm, key = batching.continuous_batching(replica), jax.random.key(0)
    state, blocks = algorithm.init(key), count // BLOCK
    work = jax.jit(lambda state: dx.rollout(algorithm, state, TRAFFIC, key, blocks)[1])
    own = milliseconds(lambda: work(state), repeats=2)
    began = time.process_time()
    if not bool(np.all(work(state)["finished"])):
        raise ValueError("events must all fit into the scan.")
    spent = time.process_time() - began
    print(f"{title}: {count} requests in {own / 1e3:.2f} s, {spent:.2f} processor seconds")
    known = trace(traced)
    theirs = peers.run(
        "vidur",
        "serving_vidur",
        arrived=known.arrived.tolist(),
        prompt=known.prompt.tolist(),
        output=known.output.tolist(),
        prefill=list(PREFILL),
        decode=list(DECODE),
        slots=SLOTS,
        tokens=TOKENS,
        chunk=chunk,
    )
    if theirs is not None:
        found = require_alike(title, known, times(policy, known), theirs)
        print(f"{title}: {found}")
    name = f"a request, {title}, {count} in one scan, one replica of {SLOTS} slots"
    return Row(name, own / count).beside(theirs)


def trace(count: int) -> inference.Requests:
    """The first requests of the traffic."""
    drawn, _ = jax.jit(lambda: TRAFFIC.draw(jax.random.key(1), jnp.int32(0)))()
    return inference.trace(*(np.asarray(column)[:count] for column in drawn[:3]))


def times(policy: batching.Batching, known: inference.Requests) -> inference.Served:
    """When each request of a trace had its first and its last token."""
    replica = batching.replica(COSTS, slots=SLOTS, batching=policy)
    on_device = known._replace(arrived=known.arrived.astype(np.float32))
    _, block = jax.jit(replica.serve)(replica.init(), on_device)
    return jax.tree.map(lambda column: np.asarray(column)[SLOTS:], block.served)


def require_alike(
    title: str, known: inference.Requests, ours: inference.Served, theirs: dict[str, Any]
) -> dict[str, tuple[float, float]]:
    """Refuses mean and 99 % latencies that are apart by more than a tenth."""
    found = {}
    their = inference.Served(jnp.asarray(theirs["first"]), jnp.asarray(theirs["last"]))
    own_latencies, latencies = (inference.latency(known, one) for one in (ours, their))
    for name in own_latencies._fields:
        one, other = (np.asarray(getattr(x, name)) for x in (own_latencies, latencies))
        for what, number in (("mean", np.mean), ("p99", lambda x: np.quantile(x, 0.99))):
            a, b = float(number(one)), float(number(other))
            found[f"{name} {what}"] = (round(a, 5), round(b, 5))
            if abs(a - b) > APART * b:
                raise ValueError(
                    f"{name} of {title} must be Vidur's up to {APART:.0%}, {b:.4f} s in the {what}, "
                    f"got {a:.4f} s."
                )
    return found


def designs(count: int, size: int) -> list[Row]:
    """Rates and memories of a replica: one sweep, compiling included, against one run after another."""
    source, key = inference.traffic(inference.poisson(1.0), CHAT, size), jax.random.key(2)
    side = int(count**0.5)
    grid = {
        "rate": np.linspace(2.0, 12.0, count // side).tolist(),
        "memory": np.geomspace(8e3, 64e3, side).tolist(),
    }
    points = [(rate, memory) for rate in grid["rate"] for memory in grid["memory"]]

    def design(rate: Any, memory: Any) -> dx.Algorithm:
        replica = batching.replica(COSTS, slots=SLOTS, memory=memory)
        return inference.at_rate(batching.continuous_batching(replica), rate)

    def start(algorithm: dx.Algorithm, key: Any) -> Any:
        return algorithm.init(key)

    began = time.perf_counter()
    dx.sweep(design, start, source, grid=grid, key=key, rounds=1)
    swept = time.perf_counter() - began
    # Each run compiles a program of its own; a sixteenth of them stands for all.
    some = points[:: max(len(points) // 4, 1)]
    began = time.perf_counter()
    for rate, memory in some:
        algorithm = design(rate, memory)
        own_key = jax.random.fold_in(key, 0)
        dx.run(algorithm, algorithm.init(own_key), source, rounds=1, key=own_key)
    single = (time.perf_counter() - began) * len(points) / len(some)

    @jax.jit
    def again(rate: jax.Array, memory: jax.Array) -> Any:
        return design(rate, memory).step(
            start(design(rate, memory), key), source.draw(key, jnp.int32(0))
        )[1]

    together = jax.jit(jax.vmap(again))
    pairs = jnp.asarray(points).T
    side_by_side = milliseconds(lambda: together(*pairs), repeats=2)
    one_by_one = milliseconds(lambda: [again(*pair) for pair in pairs.T], repeats=2)
    name = f"{len(points)} designs of a replica, {size} requests each"
    return [
        Row(f"{name}, compiling included", 1e3 * swept, "one run after another", 1e3 * single),
        Row(f"{name}, compiled before", side_by_side, "one compiled program in turns", one_by_one),
    ]
