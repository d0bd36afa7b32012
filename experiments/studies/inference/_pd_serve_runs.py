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
SLOTS: dict[str, Any] = {"prefill_slots": 4, "decode_slots": 32}


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
        jax.jit(lambda key: jnp.mean(seconds(source.draw(key, jnp.int32(0))[0])))(
            jax.random.key(seed)
        )
    )


def prefill_seconds(rows: inf.Requests) -> jax.Array:
    """T_p where every shared token is cached."""
    tokens = (rows.prompt - rows.shared).astype(jnp.float32)
    return COSTS.prefill(tokens, jnp.square(tokens))


@functools.cache
def drawn(kinds: str, cv: float, size: int, seed: int, seeds: int) -> list[dx.Events]:
    """One block of traffic at one request a second for every seed.

    It is drawn once, so that no sweep has to compile how it is drawn.

    Args:
      kinds: "three" scenarios, the "first" of them, "many" prefixes for each, or "alike".
      cv: of the gaps.
      size: requests.
      seed: of the first.
      seeds: how many.
    """
    given = {
        "three": scenarios,
        "first": lambda: scenarios()[:1],
        "many": lambda: scenarios(prefixes=60),
        "alike": lambda: [inf.scenario(inf.constant(100), inf.constant(10))],
    }[kinds]()
    arrivals = inf.poisson(1.0) if cv == 1.0 else inf.gamma(1.0, cv)
    source = inf.traffic(arrivals, given, size)
    keys = jax.random.split(jax.random.key(seed), seeds)
    blocks = jax.jit(lambda keys: jax.lax.map(lambda key: source.draw(key, jnp.int32(0))[0], keys))(
        keys
    )
    return [dx.Events(jax.tree.map(lambda leaf, k=k: leaf[k][None], blocks)) for k in range(seeds)]


def swept(
    factory: Callable[..., dx.Algorithm],
    grid: dict[str, Any],
    seed: int,
    sources: list[dx.Events],
    *,
    rounds: int = 1,
) -> dict[str, np.ndarray]:
    """Metrics `[points ..., seeds]`, or `[points ..., seeds, rounds]` where there are several.

    What `dx.sweep` does, without states and records that nobody asks for here.
    """
    key, sizes = jax.random.key(seed), [len(values) for values in grid.values()]
    points = [
        axis.reshape(-1) for axis in jnp.meshgrid(*map(jnp.array, grid.values()), indexing="ij")
    ]
    tables = jax.tree.map(lambda *leaves: np.stack(leaves), *(one.table for one in sources))

    def run(point: list[jax.Array], table: Any) -> dict[str, Any]:
        algorithm = factory(**dict(zip(grid, point, strict=True)))
        return dx.rollout(algorithm, algorithm.init(key, ()), dx.Events(table), key, rounds)[1]

    found = jax.jit(jax.vmap(jax.vmap(run, (None, 0)), (0, None)))(points, tables)

    def shaped(values: jax.Array) -> np.ndarray:
        each = np.asarray(values, np.float32).reshape(*sizes, len(sources), rounds)
        return each[..., 0] if rounds == 1 else each

    return {name: shaped(values) for name, values in found.items()}


@functools.cache
def _mean_prefill(seed: int) -> float:
    return mean_seconds(scenarios(), prefill_seconds, seed)


def forwarded(
    forwarding: inf.Forwarding, loads: tuple[float, ...], size: int, seed: int, seeds: int
) -> dict[str, np.ndarray]:
    """Eight instances of one slot, bursts, a limit of 0.5 s: `[loads, seeds]`."""
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

    return swept(factory, {"load": list(loads)}, seed, drawn("three", 1.5, size, seed, seeds))


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

    grid = {"scenario": [0.0, 1.0, 2.0], "prefill": [float(n) for n in range(1, 12)]}
    return swept(factory, grid, seed, drawn("alike", 1.0, size, seed, seeds))


def cached(grouped: bool, size: int, seed: int, seeds: int) -> dict[str, np.ndarray]:
    """Work of prefill with caches of 60,000 tokens, in groups or in one pool: `[seeds]`."""
    work = inf.cached_work(COSTS, instances=12, prefixes=180, capacity=60_000)
    counts: tuple[Any, Any] = ([2, 4, 6], [4, 8, 4]) if grouped else (12, 16)
    service = inf.pd_serve(
        *counts, work, inf.decode_seconds(COSTS, 32), promised=inf.levels(ttft=0.5)
    )
    sources = drawn("many", 1.5, size, seed, seeds)
    found = swept(lambda rate: inf.at_rate(service, rate), {"rate": [100.0]}, seed, sources)
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

        sources = drawn("three", 1.5, size, seed, seeds)
        kept.append(swept(factory, {"load": [0.8, 0.95, 1.05]}, seed, sources))
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
        sources = drawn("three", 1.5, size, seed, seeds)
        run = swept(
            lambda rate, own=service: inf.at_rate(own, rate), {"rate": [110.0]}, seed, sources
        )
        kept.append(run)
    return {name: np.concatenate([one[name] for one in kept]) for name in kept[0]}


def decoded(loads: tuple[float, ...], size: int, seed: int) -> dict[str, np.ndarray]:
    """Answers token by token over those of a slot at a full batch's pace: `[loads]` means."""
    instances, slots = 4, 16
    rows = jax.tree.map(lambda leaf: leaf[0], drawn("first", 1.0, size, seed, 1)[0].table)
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
    """Success of the first scenario within 0.5 s and a TPOT: `[rates an instance, paces, seeds]`.

    All answers have the pace of a full batch, so that what misses it has been stalled or kept waiting.
    """
    count, best, mean_pace = 12, profile_of(seed), pace_of(seed)

    def answer(rows: inf.Requests) -> jax.Array:
        return rows.output * mean_pace

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

    grid = {"rate": list(rates), "pace": list(paces)}
    return swept(factory, grid, seed, drawn("first", 1.0, size, seed, seeds))


@functools.cache
def profile_of(seed: int) -> inf.Profile:
    """T_p and T_d of the first scenario, a slot of prefill and 32 of decoding."""
    kind = scenarios()[:1]
    return inf.profile(
        mean_seconds(kind, prefill_seconds, seed),
        mean_seconds(kind, inf.decode_seconds(COSTS, 32), seed),
        prefill_slots=1,
    )


@functools.cache
def pace_of(seed: int) -> float:
    """TPOT of a full batch of the first scenario: mean T_d over mean tokens."""
    outputs = mean_seconds(scenarios()[:1], lambda rows: rows.output * 1.0, seed)
    return float(profile_of(seed).decode) / outputs
