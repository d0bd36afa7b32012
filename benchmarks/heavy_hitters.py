"""Frequencies under local privacy: reports of a million users, and runs of TAP and TAPS."""

from typing import Any

import jax
import jax.numpy as jnp

import dflax as dx
from benchmarks.measure import Row, milliseconds
from dflax import heavy_hitters as hh
from dflax.privacy import local_privacy as lp
from experiments.tasks.crowds import LEVELS, drawn, misaligned, tree


def rows(quick: bool) -> list[Row]:
    """Oracles over many candidates, and whole runs."""
    return [*oracles(quick), *runs(quick)]


def oracles(quick: bool) -> list[Row]:
    """A million users estimate the frequencies of 2^12 candidates."""
    users, size = (100_000 if quick else 1_000_000), 1 << 12
    domain = lp.domain(size)
    key = jax.random.key(0)
    values = jax.random.randint(key, (users,), 0, size + 100)
    measured = []
    for name, oracle in {
        "k-RR": lp.k_rr(4.0),
        "OUE": lp.oue(1.0),
        "SUE": lp.sue(1.0),
        "Hadamard response": lp.hadamard_response(1.0),
    }.items():

        def work(key: Any, values: Any, oracle: lp.FrequencyOracle = oracle) -> Any:
            return oracle.simulate(key, values, domain)

        compiled = jax.jit(work).lower(key, values).compile()
        took = milliseconds(lambda: compiled(key, values), repeats=2 if quick else 5)  # noqa: B023
        peak = getattr(compiled.memory_analysis(), "peak_memory_in_bytes", None)
        measured.append(Row(f"{name}, {users:,} users, {size:,} candidates", took, peak_bytes=peak))
    return measured


def runs(quick: bool) -> list[Row]:
    """All levels of a prefix tree over 240,000 users in 6 parties."""
    users = 24_000 if quick else 240_000
    crowds = drawn(misaligned, users, range(1), 10)
    source = jax.tree.map(lambda leaf: leaf[0], crowds.equal)
    measured = []
    for name, oracle in (("TAP", "k-RR"), ("TAPS", "k-RR"), ("TAP", "OUE")):

        def work(key: Any, source: dx.Events, name: str = name, oracle: str = oracle) -> hh.Found:
            make = {"k-RR": lp.k_rr, "OUE": lp.oue}[oracle]
            algorithm = tree(name, make, 10, jnp.float32(4.0), 6)
            start = algorithm.init(key, jnp.asarray(crowds.sizes))
            return dx.rollout(algorithm, start, source, key, LEVELS)[0].server

        compiled = jax.jit(work).lower(crowds.keys[0], source).compile()
        took = milliseconds(lambda: compiled(crowds.keys[0], source), repeats=2 if quick else 5)  # noqa: B023
        measured.append(Row(f"a run of {name} ({oracle}), {users:,} users, 12 levels", took))
    return measured
