"""Continuous batching from event to event beside a walk through every iteration."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from inference.every_iteration import walk

from dflax import inference
from dflax.inference import batching
from dflax.inference.costs import Costs

KEY = jax.random.key(0)
PREFILL, DECODE, LARGE = (0.012, 4e-5, 5e-10), (0.010, 2e-7, 3e-5), (0.008, 1e-7, 1e-3)
COSTS = inference.affine_costs(PREFILL, DECODE, large_decode=LARGE, large=6)
N, SLOTS = 150, 8
POLICIES = {
    "prefill first": batching.prefill_first(tokens=1500, requests=3),
    "chunked": batching.chunked_prefill(tokens=120),
    "decode only": batching.decode_only(requests=16),
}
TOKENS = {"prefill first": 1500, "chunked": 120, "decode only": np.inf}
MOST = {"prefill first": 3, "chunked": 16, "decode only": 16}


def plain_costs():
    """The same costs in Python's own numbers."""
    a, b, c = PREFILL

    def decode(batch, context):
        u, v, w = DECODE if batch < 6 else LARGE
        return u + v * context + w * batch

    return Costs(lambda tokens, squares: a + b * tokens + c * squares, decode)


def requests(seed, rate=6.0, n=N):
    draw = np.random.default_rng(seed)
    prompt = np.clip(draw.lognormal(5.5, 0.8, n), 1, 3000).astype(int)
    # Times that float32 holds, and answers of one token among the others.
    times = np.cumsum(draw.exponential(1 / rate, n)).astype(np.float32)
    return inference.trace(
        times,
        prompt,
        np.clip(draw.lognormal(3.5, 1.0, n), 1, 400).astype(int),
        prefix=draw.integers(0, 4, n),
        shared=prompt // 3,
    )


def one_replica(policy, memory=None, reuse=0.0, drain=True):
    return batching.replica(
        COSTS, slots=SLOTS, batching=POLICIES[policy], memory=memory, reuse=reuse, drain=drain
    )


@functools.cache
def serve(policy, memory=None, reuse=0.0):
    """Served times of a block."""
    replica = one_replica(policy, memory, reuse)
    own = slice(SLOTS, None)
    return jax.jit(
        lambda known: jax.tree.map(
            lambda column: column[own], replica.serve(replica.init(), known)[1].served
        )
    )


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize(("memory", "reuse", "rate"), [(None, 0.0, 6.0), (1500.0, 0.5, 40.0)])
def test_events_are_a_walk_through_every_iteration(policy, memory, reuse, rate):
    """To float64's accuracy: admission, budgets, memory in blocks, reuse, loads above capacity."""
    known = requests(1, rate)
    first, last = walk(
        plain_costs(),
        known,
        slots=SLOTS,
        policy=policy,
        tokens=TOKENS[policy],
        memory=memory or np.inf,
        reuse=reuse,
        most=MOST[policy],
    )
    with jax.enable_x64(True):
        found = serve(policy, memory, reuse)(jax.tree.map(jnp.asarray, known))
        assert found.first.dtype == jnp.float64
    np.testing.assert_allclose(found.first, first, rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(found.last, last, rtol=1e-9, atol=1e-9)
    if memory is not None:
        assert not np.isfinite(last).all()
