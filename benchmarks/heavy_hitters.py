"""Frequencies under local privacy: reports of a million users, and runs of TAP and TAPS."""

import functools
from typing import Any

import jax
import jax.numpy as jnp

import dflax as dx
from benchmarks import alone
from benchmarks.ceilings import memory_ms
from benchmarks.measure import Row, alternately
from dflax import heavy_hitters as hh
from dflax.privacy import local_privacy as lp
from experiments.tasks.crowds import LEVELS, drawn, misaligned, tree


def rows(quick: bool) -> list[Row]:
    """Oracles over many candidates, and whole runs."""
    return [*oracles(quick), *runs(quick)]


def oracles(quick: bool) -> list[Row]:
    """A million users estimate the frequencies of 2^12 candidates.

    The peer is `alone.counted` of them; the limit, to read every user's value once.
    """
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
        peer, least = counts(size, name not in ("OUE", "SUE"))
        took, alone_ms = alternately(
            lambda: compiled(key, values),  # noqa: B023
            lambda: least(key, values),  # noqa: B023
            repeats=2 if quick else 5,
        )
        measured.append(
            Row(
                f"{name}, {users:,} users, {size:,} candidates",
                took,
                peer,
                alone_ms,
                memory_ms(values.nbytes),
                peak_bytes=getattr(compiled.memory_analysis(), "peak_memory_in_bytes", None),
            )
        )
    return measured


def counts(size: int, drawn: bool) -> tuple[str, Any]:
    """What is needed of users alone, and its compiled program of a key and their values."""
    least = jax.jit(functools.partial(alone.counted, length=size, drawn=drawn))
    return f"{'a word a user' if drawn else 'no draws'}, and the counts, alone", least


def runs(quick: bool) -> list[Row]:
    """All levels of a prefix tree over 240,000 users in 6 parties; each user reports at one level.

    The peer is `alone.counted` of as many users over 4,096 values.
    """
    users = 24_000 if quick else 240_000
    crowds = drawn(misaligned, users, range(1), 10)
    source = jax.tree.map(lambda leaf: leaf[0], crowds.equal)
    values = jax.random.randint(jax.random.key(0), (users,), 0, 1 << 12)
    measured = []
    for name, oracle in (("TAP", "k-RR"), ("TAPS", "k-RR"), ("TAP", "OUE")):

        def work(key: Any, source: dx.Events, name: str = name, oracle: str = oracle) -> hh.Found:
            make = {"k-RR": lp.k_rr, "OUE": lp.oue}[oracle]
            algorithm = tree(name, make, 10, jnp.float32(4.0), 6)
            start = algorithm.init(key, jnp.asarray(crowds.sizes))
            return dx.rollout(algorithm, start, source, key, LEVELS)[0].server

        compiled = jax.jit(work).lower(crowds.keys[0], source).compile()
        peer, least = counts(1 << 12, oracle != "OUE")
        took, alone_ms = alternately(
            lambda: compiled(crowds.keys[0], source),  # noqa: B023
            lambda: least(crowds.keys[0], values),  # noqa: B023
            repeats=2 if quick else 5,
        )
        name = f"a run of {name} ({oracle}), {users:,} users, 12 levels"
        measured.append(Row(name, took, peer, alone_ms, memory_ms(values.nbytes)))
    return measured
