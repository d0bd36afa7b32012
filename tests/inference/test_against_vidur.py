"""The same trace and the same execution times through Vidur's simulator, where it is installed."""

import jax
import numpy as np
import pytest

pytest.importorskip("vidur", reason="the peer Vidur is not installed: pip install vidur")

from benchmarks.peers.serving_vidur import measure
from dflax import inference
from dflax.inference import batching

PREFILL, DECODE = (0.0120623, 3.80814e-5, 5.2262e-10), (0.0102562, 1.8787e-7, 3.2693e-5)
SLOTS = 8


def trace(rate):
    draw = np.random.default_rng(0)
    return inference.trace(
        np.cumsum(draw.exponential(1 / rate, 120)).astype(np.float32),
        np.clip(draw.lognormal(6.0, 0.5, 120), 1, 4000).astype(int),
        np.clip(draw.lognormal(4.0, 0.6, 120), 1, 500).astype(int),
    )


@pytest.mark.parametrize("rate", [3.0, 30.0])
@pytest.mark.parametrize(("chunk", "tolerance"), [(None, 1e-4), (512, 0.05)])
def test_latencies_are_vidurs(rate, chunk, tolerance):
    """Exactly with whole prompts; its Sarathi fills an iteration's rest with the next prompt."""
    known = trace(rate)
    columns = [column.tolist() for column in known[:3]]
    found = measure(*columns, list(PREFILL), list(DECODE), SLOTS, 4096, chunk)
    policy = batching.chunked_prefill(tokens=chunk) if chunk else batching.prefill_first()
    costs = inference.affine_costs(PREFILL, DECODE)
    replica = batching.replica(costs, slots=SLOTS, batching=policy)
    rows = known._replace(arrived=known.arrived.astype(np.float32))
    _, block = jax.jit(replica.serve)(replica.init(), rows)
    for ours, theirs in (
        (block.served.first[SLOTS:], found["first"]),
        (block.served.last[SLOTS:], found["last"]),
    ):
        one, other = np.asarray(ours) - known.arrived, np.asarray(theirs) - known.arrived
        np.testing.assert_allclose(one.mean(), other.mean(), rtol=tolerance)
        if chunk is None:
            np.testing.assert_allclose(one, other, atol=1e-3)
    assert found["restarts"] == 0
