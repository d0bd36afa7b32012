"""P/D-Serve: a million requests as one program, and 64 designs as one sweep."""

import functools
import time

import jax
import numpy as np

import dflax as dx
from benchmarks.measure import Row, milliseconds
from dflax import inference as inf

COSTS = inf.opt_13b_costs(4)


def rows(quick: bool) -> list[Row]:
    """Both, compiling included in the second; the compilation cache is off for both sides."""
    return [million(100_000 if quick else 1_000_000), designs(4 if quick else 64)]


def service(
    load: jax.Array | float = 100.0, interval: jax.Array | float | None = None
) -> dx.Algorithm:
    """Eight instances that prefill and eight that decode; stale reports where there is an interval."""
    forwarding = (
        inf.on_demand() if interval is None else inf.local_queue(inf.stale_reports(interval))
    )
    built = inf.pd_serve(
        *(8, 8, inf.prompt_work(COSTS), inf.decode_seconds(COSTS, 32)),
        forwarding=forwarding,
        transfer=inf.block_free(inf.link()),
        contended=True,
    )
    return inf.at_rate(built, load)


def source(size: int) -> inf.Traffic:
    """Bursts of prompts of about 400 tokens."""
    kind = inf.scenario(inf.log_normal(6.0, 0.5, low=32), inf.log_normal(4.5, 0.6))
    return inf.traffic(inf.gamma(1.0, 1.5), kind, size)


def million(count: int) -> Row:
    """Blocks of 20,000 requests, drawn and served within one scan."""
    algorithm, traffic, key = service(), source(20_000), jax.random.key(0)
    state = algorithm.init(key, ())
    work = jax.jit(lambda state: dx.rollout(algorithm, state, traffic, key, count // 20_000)[1])
    return Row(
        f"P/D-Serve, {count:.0e} requests in one scan, milliseconds in all",
        milliseconds(lambda: work(state), repeats=2),
    )


def designs(count: int) -> Row:
    """Loads and report intervals: one sweep against one run of each."""
    loads = np.linspace(60.0, 160.0, count // 4).tolist()
    intervals, traffic, key = [0.1, 0.25, 0.5, 1.0], source(2_000), jax.random.key(0)

    def start(algorithm: dx.Algorithm, key: jax.Array) -> inf.PDState:
        return algorithm.init(key, ())

    run = functools.partial(dx.run, rounds=2, key=jax.random.fold_in(key, 0), progress=False)
    began = time.perf_counter()
    grid = {"load": loads, "interval": intervals}
    dx.sweep(service, start, traffic, grid=grid, key=key, rounds=2, progress=False)
    swept = time.perf_counter() - began
    began = time.perf_counter()
    for load in loads:
        for interval in intervals:
            algorithm = service(load, interval)
            run(algorithm, algorithm.init(key, ()), traffic)
            # Dozens of programs at once are more mappings than a process may have.
            jax.clear_caches()
    single = time.perf_counter() - began
    name = f"P/D-Serve, sweep of {count} designs, 4,000 requests each"
    return Row(name, 1e3 * swept, "one run after another", 1e3 * single)
