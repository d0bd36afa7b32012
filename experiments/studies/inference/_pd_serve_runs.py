"""Runs of P/D-Serve's study: each a sweep, whose metrics are `[points ..., seeds]`."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import dflax as dx
from dflax import inference as inf

COSTS = inf.opt_13b_costs(4)
# Of the sheet's three scenarios: mean of the logarithms of prompts and answers, and how often a prompt
# begins with a prefix that is reused.
KINDS = ((6.0, 4.5, 0.8), (7.0, 5.5, 0.5), (7.6, 4.0, 0.1))
LINK = inf.link()
PROFILES = {
    "A": inf.profile(0.8, 8.0),
    "B": inf.profile(1.6, 8.0),
    "C": inf.profile(0.4, 12.0),
}
SLOTS = {"prefill_slots": 4, "decode_slots": 32}


def scenarios(prefixes: int = 1) -> list[inf.Scenario]:
    """The three kinds of traffic, with so many prefixes each."""
    return [
        inf.scenario(
            inf.log_normal(prompt, 0.5, low=32, high=8192),
            inf.log_normal(output, 0.6),
            prefixes=prefixes,
            reused=0.8,
            probability=probability,
        )
        for prompt, output, probability in KINDS
    ]


def mean_seconds(
    kinds: list[inf.Scenario], seconds: Callable[[inf.Requests], Any], seed: int
) -> float:
    """The mean over 50,000 drawn requests."""
    source = inf.traffic(inf.poisson(1.0), kinds, 50_000)
    return float(
        jax.jit(lambda key: jnp.mean(seconds(source.draw(key, 0)[0])))(jax.random.key(seed))
    )


def prefill_seconds(rows: inf.Requests) -> jax.Array:
    """T_p where every shared token is cached."""
    tokens = (rows.prompt - rows.shared).astype(jnp.float32)
    return COSTS.prefill(tokens, jnp.square(tokens))


def swept(
    factory: Callable[..., dx.Algorithm],
    grid: dict[str, Any],
    seed: int,
    seeds: int,
    *,
    source: Any = None,
    sources: Any = None,
    rounds: int = 1,
) -> dict[str, np.ndarray]:
    """Metrics `[points ..., seeds]`, or `[points ..., seeds, rounds]` where there are several."""
    found = dx.sweep(
        factory,
        lambda algorithm, key: algorithm.init(key, ()),
        source,
        sources=sources,
        grid=grid,
        key=jax.random.key(seed),
        rounds=rounds,
        seeds=seeds if sources is None else None,
        progress=False,
    )
    metrics = {name: np.asarray(values, np.float32) for name, values in found.metrics.items()}
    return {name: v[..., 0] if rounds == 1 else v for name, v in metrics.items()}


@functools.cache
def _mean_prefill(seed: int) -> float:
    return mean_seconds(scenarios(), prefill_seconds, seed)


def forwarded(
    forwarding: inf.Forwarding, loads: tuple[float, ...], size: int, seed: int, seeds: int
) -> dict[str, np.ndarray]:
    """Eight instances of one slot, bursts, a limit of 0.5 s: `[loads, seeds]`."""
    kinds = scenarios()
    mean = _mean_prefill(seed)

    def factory(load: jax.Array) -> dx.Algorithm:
        service = inf.pd_serve(
            8,
            16,
            inf.prompt_work(COSTS),
            inf.decode_seconds(COSTS, 32),
            forwarding=forwarding,
            transfer=inf.block_free(LINK),
            promised=inf.levels(ttft=0.5),
        )
        return inf.at_rate(service, load * 8 / mean)

    source = inf.traffic(inf.gamma(1.0, 1.5), kinds, size)
    return swept(factory, {"load": list(loads)}, seed, seeds, source=source)


def split(size: int, seed: int, seeds: int) -> dict[str, np.ndarray]:
    """Throughput of every split of 12 instances at 1.3 times the best: `[scenarios, splits, seeds]`."""
    prefills = jnp.array([one.prefill for one in PROFILES.values()])
    decodes = jnp.array([one.decode for one in PROFILES.values()])
    best = jnp.array([12 * float(inf.best_throughput(one)) for one in PROFILES.values()])

    def factory(scenario: jax.Array, prefill: jax.Array) -> dx.Algorithm:
        at = scenario.astype(jnp.int32)
        service = inf.pd_serve(
            prefill,
            12 - prefill,
            inf.fixed_work(lambda row: prefills[at]),
            lambda row: decodes[at],
            **SLOTS,
            promised=inf.levels(ttft=5.0),
            most=11,
        )
        return inf.at_rate(service, 1.3 * best[at])

    source = inf.traffic(inf.poisson(1.0), inf.scenario(inf.constant(100), inf.constant(10)), size)
    grid = {"scenario": [0.0, 1.0, 2.0], "prefill": [float(n) for n in range(1, 12)]}
    return swept(factory, grid, seed, seeds, source=source)


def cached(grouped: bool, size: int, seed: int, seeds: int) -> dict[str, np.ndarray]:
    """Work of prefill with caches of 60,000 tokens, in groups or in one pool: `[seeds]`."""
    kinds = scenarios(prefixes=60)
    work = inf.cached_work(COSTS, instances=12, prefixes=180, capacity=60_000)
    counts = ([2, 4, 6], [4, 8, 4]) if grouped else (12, 16)
    service = inf.pd_serve(
        *counts, work, inf.decode_seconds(COSTS, 32), promised=inf.levels(ttft=0.5)
    )
    source = inf.traffic(inf.gamma(1.0, 1.5), kinds, size)
    found = swept(
        lambda rate: inf.at_rate(service, rate), {"rate": [100.0]}, seed, seeds, source=source
    )
    return {name: values[0] for name, values in found.items()}


def held(size: int, seed: int, seeds: int) -> dict[str, np.ndarray]:
    """Slots of prefill that wait for decoding or do not: `[held, decode instances, seeds]`."""
    kinds = scenarios()
    answers = mean_seconds(kinds, inf.decode_seconds(COSTS, 32), seed)
    kept = []
    for hold in (False, True):

        def factory(load: jax.Array, hold: bool = hold) -> dx.Algorithm:
            service = inf.pd_serve(
                *(8, 6, inf.prompt_work(COSTS), inf.decode_seconds(COSTS, 32)),
                hold_prefill=hold,
                transfer=inf.block_free(LINK),
                promised=inf.levels(ttft=0.5),
            )
            return inf.at_rate(service, load * 6 * 32 / answers)

        source = inf.traffic(inf.gamma(1.0, 1.5), kinds, size)
        kept.append(swept(factory, {"load": [0.8, 0.95, 1.05]}, seed, seeds, source=source))
    return {name: np.stack([one[name] for one in kept]) for name in kept[0]}


def transferred(size: int, seed: int, seeds: int) -> dict[str, np.ndarray]:
    """Latencies with contended links, by kind of transfer: `[3, seeds]`."""
    kept = []
    for transfer in (inf.block_fixed(LINK), inf.block_free(LINK), inf.per_layer(LINK)):
        service = inf.pd_serve(
            *(8, 16, inf.prompt_work(COSTS), inf.decode_seconds(COSTS, 32)),
            transfer=transfer,
            contended=True,
            conflict=0.05,
            promised=inf.levels(ttft=0.5),
        )
        source = inf.traffic(inf.gamma(1.0, 1.5), scenarios(), size)
        kept.append(
            swept(
                lambda rate, own=service: inf.at_rate(own, rate),
                {"rate": [110.0]},
                seed,
                seeds,
                source=source,
            )
        )
    return {name: np.concatenate([one[name] for one in kept]) for name in kept[0]}


def decoded(loads: tuple[float, ...], size: int, seed: int) -> dict[str, np.ndarray]:
    """Answers token by token over those of a slot at a full batch's pace: `[loads]` means."""
    instances, slots = 4, 16
    source = inf.traffic(inf.poisson(1.0), scenarios()[:1], size)
    rows, _ = jax.jit(source.draw)(jax.random.key(seed), 0)
    level_1 = inf.decode_seconds(COSTS, slots)(rows)
    capacity = instances * slots / float(level_1.mean())
    ticks = int(1.3 * size / (min(loads) * capacity) / 0.01)

    @jax.jit
    def run(load: jax.Array) -> tuple[jax.Array, jax.Array]:
        emitted = inf.token_decoding(
            *(rows.arrived / (load * capacity), rows.prompt, rows.output, COSTS),
            instances=instances,
            slots=slots,
            tick=0.01,
            ticks=ticks,
        )
        done = jnp.isfinite(emitted.last)
        ratio = jnp.sum(jnp.where(done, emitted.last - emitted.began, 0.0)) / jnp.sum(
            jnp.where(done, level_1, 0.0)
        )
        missing = jnp.max(jnp.where(done, jnp.abs(emitted.tokens - rows.output), 0.0))
        return ratio, missing

    found = [run(jnp.float32(load)) for load in loads]
    return {
        "ratio": np.array([float(one[0]) for one in found]),
        "missing": np.array([float(one[1]) for one in found]),
    }


def promised(
    disaggregated: bool,
    rates: tuple[float, ...],
    paces: tuple[float, ...],
    size: int,
    seed: int,
    seeds: int,
) -> dict[str, np.ndarray]:
    """Success of the first scenario within 0.5 s and a TPOT: `[rates an instance, paces, seeds]`."""
    kind, count = scenarios()[:1], 12
    answer = inf.decode_seconds(COSTS, 32)
    best = profile_of(seed)
    prefill = int(inf.best_split(best, count))

    def factory(rate: jax.Array, pace: jax.Array) -> dx.Algorithm:
        levels = inf.levels(ttft=0.5, tpot=pace)
        if disaggregated:
            service = inf.pd_serve(
                *(prefill, count - prefill, inf.prompt_work(COSTS), answer),
                transfer=inf.block_free(LINK),
                promised=levels,
            )
        else:
            service = inf.aggregated_serve(count, prefill_seconds, answer, promised=levels)
        return inf.at_rate(service, rate * count)

    source = inf.traffic(inf.poisson(1.0), kind, size)
    grid = {"rate": list(rates), "pace": list(paces)}
    return swept(factory, grid, seed, seeds, source=source)


@functools.cache
def profile_of(seed: int) -> inf.Profile:
    """T_p and T_d of the first scenario, a slot of prefill and 32 of decoding."""
    kind = scenarios()[:1]
    return inf.profile(
        mean_seconds(kind, prefill_seconds, seed),
        mean_seconds(kind, inf.decode_seconds(COSTS, 32), seed),
        prefill_slots=1,
    )
