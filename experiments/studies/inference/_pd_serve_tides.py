"""Traffic whose kind or whose rate turns like a tide, and services that follow it."""

from typing import Any

import jax
import numpy as np

import dflax as dx
from dflax import inference as inf
from experiments.studies.inference._pd_serve_runs import PROFILES, SLOTS, swept

PERIOD = 1200.0
LEVELS = inf.levels(ttft=5.0, total=40.0)
# T_p and T_d of the scenarios B and C.
WORK = inf.fixed_work(inf.scenario_seconds([1.6, 0.4]))
ANSWER = inf.scenario_seconds([8.0, 12.0])
MIXED = inf.mixed_profile([PROFILES["B"], PROFILES["C"]], [1.0, 1.0])


def turning(rate: float, periods: int, block: int, seed: int) -> dx.Events:
    """A trace whose share of scenario B is (1 + .9 sin(2 pi t / period)) / 2, the rest C."""
    rng = np.random.default_rng(seed)
    count = int(rate * periods * PERIOD) // block * block
    arrived = np.cumsum(rng.exponential(1.0 / rate, count))
    share = 0.5 + 0.45 * np.sin(2 * np.pi * arrived / PERIOD)
    kind = (rng.uniform(size=count) > share).astype(int)
    ones = np.ones(count, int)
    whole = inf.trace(arrived, 100 * ones, 10 * ones, scenario=kind)
    return dx.Events(inf.blocks(whole, block))


def rising(rate: float, periods: int, block: int, seed: int) -> dx.Events:
    """A trace of scenario B whose rate swings by 0.8 of its mean."""
    count = int(rate * periods * PERIOD) // block * block
    draw = inf.tidal(rate, amplitude=0.8, period=PERIOD)
    arrived = np.asarray(draw(jax.random.key(seed), count), float)
    ones = np.ones(count, int)
    return dx.Events(inf.blocks(inf.trace(arrived, 100 * ones, 10 * ones), block))


def fixed(sources: list[dx.Events], rounds: int, seed: int, prefills: list[float]) -> dict:
    """Every split of 12 that stays as it is: `[splits, seeds, rounds]`."""

    def factory(prefill: jax.Array) -> dx.Algorithm:
        return inf.pd_serve(
            *(prefill, 12 - prefill, WORK, ANSWER), most=11, promised=LEVELS, **SLOTS
        )

    return swept(factory, {"prefill": prefills}, seed, sources, rounds=rounds)


def adjusted(
    sources: list[dx.Events], rounds: int, seed: int, start: int, profile: inf.Profile | None
) -> dict:
    """The online adjustment from a split: `[cooldowns, seeds, rounds]`."""

    def factory(cooldown: jax.Array) -> dx.Algorithm:
        rule = inf.ratio_adjustment(cooldown=cooldown, reference=profile)
        return inf.pd_serve(
            *(start, 12 - start, WORK, ANSWER), organisation=rule, promised=LEVELS, **SLOTS
        )

    grid = {"cooldown": [30.0, 60.0]}
    return swept(factory, grid, seed, sources, rounds=rounds)


def scaled(sources: list[dx.Events], rounds: int, seed: int, follow: bool) -> dict:
    """12 instances at scenario B's best split, or as many as its rate needs: `[u, seeds, rounds]`."""
    prefill = int(inf.best_split(PROFILES["B"], 12))

    def factory(utilisation: jax.Array) -> dx.Algorithm:
        options: dict[str, Any] = {}
        if follow:
            options["organisation"] = inf.tidal_scaling(
                PROFILES["B"], 12, start=12, utilisation=utilisation
            )
        return inf.pd_serve(
            *(prefill, 12 - prefill, WORK, ANSWER), promised=LEVELS, **SLOTS, **options
        )

    return swept(factory, {"utilisation": [0.65, 0.8]}, seed, sources, rounds=rounds)
