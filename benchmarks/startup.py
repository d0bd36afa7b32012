"""Seconds before the first result: importing dflax, and the quickstart up to its first rounds."""

import os
import subprocess
import sys
import tempfile
import time

from benchmarks.measure import Row

IMPORT = """
import time
import jax, flax.linen, optax
began = time.perf_counter()
import dflax
print(1e3 * (time.perf_counter() - began))
"""
# The quickstart as it is, ended after the first compiled call: some rounds and an evaluation.
QUICKSTART = """
import dflax as dx
from experiments.studies.introduction import quickstart

run = dx.run

def first(*arguments, **options):
    run(*arguments, **(options | {"rounds": options["every"]}))
    raise SystemExit

dx.run = first
quickstart.four_methods(quickstart.Config())
"""


def quickstart_ms(cache: str) -> float:
    """From the start of the process to its end."""
    environment = os.environ | {
        "JAX_COMPILATION_CACHE_DIR": cache,
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }
    began = time.perf_counter()
    subprocess.run(
        [sys.executable, "-c", QUICKSTART], check=True, env=environment, stdout=subprocess.DEVNULL
    )
    return 1e3 * (time.perf_counter() - began)


def rows(quick: bool) -> list[Row]:
    """The least of a few imports; the quickstart with the compilation cache filled and empty."""
    repeats = 2 if quick else 5
    times = [
        float(subprocess.check_output([sys.executable, "-c", IMPORT], text=True))
        for _ in range(repeats)
    ]
    with tempfile.TemporaryDirectory() as cache:
        cold = quickstart_ms(cache)
        warm = min(quickstart_ms(cache) for _ in range(1 if quick else 3))
    return [
        Row("import dflax, after jax, flax and optax", min(times)),
        Row("quickstart, process start to first rounds", warm, "without the cache", cold),
    ]
