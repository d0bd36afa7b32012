"""What importing dflax costs beyond jax, flax and optax, in processes of their own."""

import subprocess
import sys

from benchmarks.measure import Row

PROGRAM = """
import time
import jax, flax.linen, optax
began = time.perf_counter()
import dflax
print(1e3 * (time.perf_counter() - began))
"""


def rows(quick: bool) -> list[Row]:
    """The least of a few imports."""
    times = [
        float(subprocess.check_output([sys.executable, "-c", PROGRAM], text=True))
        for _ in range(2 if quick else 5)
    ]
    return [Row("import dflax, after jax, flax and optax", min(times))]
