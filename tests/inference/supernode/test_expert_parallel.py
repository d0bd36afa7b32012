"""Experts on eight devices against the dense layer: outputs, overflow, identity, messages, gradients."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import dflax as dx
from dflax.inference import supernode as sn
from dflax.models.moe.layer import Dispatch, mixture
from dflax.models.moe.routing import Routing, route
from dflax.programs.collectives import collectives

KEY = jax.random.key(9)
T, D, H, E, A, RANKS = 64, 12, 6, 16, 2, 8
KEYS = jax.random.split(KEY, 5)
TOKENS = jax.random.normal(KEYS[0], (T, D))
MATRICES = tuple(
    0.5 * jax.random.normal(k, s)
    for k, s in zip(KEYS[1:4], ((E, D, H), (E, D, H), (E, H, D)), strict=True)
)
ROUTING = route(jax.random.normal(KEYS[4], (T, E)), A, normalised=True)


@functools.cache
def parallel(places, **options):
    mesh = dx.client_mesh()
    return jax.jit(lambda x, m, r: sn.expert_parallel(x, m, r, mesh, places=places, **options))


def test_eight_devices_are_the_dense_layer():
    found = parallel(T // RANKS)(TOKENS, MATRICES, ROUTING)
    wanted = mixture(TOKENS, MATRICES, ROUTING, Dispatch.DENSE)
    np.testing.assert_allclose(found.outputs, wanted, rtol=1e-5, atol=1e-5)
    assert int(found.overflow) == 0
    # The devices' tokens follow each other, and each device has buffers of its own.
    counts = [
        np.bincount(np.ravel(part), minlength=E).max() for part in np.split(ROUTING.chosen, 8)
    ]
    assert int(found.fullest) == max(counts)


def test_what_finds_no_place_is_counted_and_adds_nothing():
    crowd = Routing(
        jnp.zeros((T, 2), jnp.int32).at[:, 1].set(jnp.arange(T) % E),
        ROUTING.weights,
        ROUTING.probabilities,
    )
    found = parallel(3)(TOKENS, MATRICES, crowd)
    # Of the eight tokens of a device three find a place with expert 0, and the others with theirs.
    first = np.asarray(crowd.chosen).reshape(RANKS, -1)
    over = sum(np.maximum(np.bincount(row, minlength=E) - 3, 0).sum() for row in first)
    assert int(found.overflow) == over
    there = np.ones((T, 2), bool)
    for rank in range(RANKS):
        seen = np.zeros(E, int)
        for row in range(rank * 8, rank * 8 + 8):
            for k in range(2):
                e = int(crowd.chosen[row, k])
                there[row, k] = seen[e] < 3
                seen[e] += 1
    kept = crowd._replace(weights=jnp.where(there, crowd.weights, 0))
    wanted = mixture(TOKENS, MATRICES, kept, Dispatch.DENSE)
    np.testing.assert_allclose(found.outputs, wanted, rtol=1e-5, atol=1e-5)


def test_experts_that_do_nothing_return_the_tokens_exactly():
    halves = ROUTING._replace(weights=jnp.broadcast_to(jnp.array([0.75, 0.25]), (T, 2)))
    found = parallel(8, expert=sn.identity_experts)(TOKENS, MATRICES, halves)
    np.testing.assert_array_equal(found.outputs, TOKENS)
    any_weights = parallel(8, expert=sn.identity_experts)(TOKENS, MATRICES, ROUTING)
    np.testing.assert_allclose(any_weights.outputs, TOKENS, rtol=1e-6)


def test_int8_before_the_dispatch_is_the_rounded_token():
    quantised = sn.quantised_rows(TOKENS).real
    found = parallel(8, early_int8=True)(TOKENS, MATRICES, ROUTING)
    wanted = mixture(quantised, MATRICES, ROUTING, Dispatch.DENSE)
    np.testing.assert_allclose(found.outputs, wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("early", "back"), [(False, None), (True, jnp.bfloat16)])
def test_two_all_to_alls_carry_the_buffers_and_no_more(early, back):
    program = (
        parallel(8, early_int8=early, combined=back).lower(TOKENS, MATRICES, ROUTING).compile()
    )
    large = [c for c in collectives(program) if c.kind == "all-to-all"]
    assert len(large) == 2
    rows = E * 8
    # A byte an entry and a scale of four, or four bytes an entry. A CPU widens bfloat16 on the way.
    there = rows * (D + 4) if early else rows * 4 * D
    home = {rows * 4 * D} if back is None else {rows * 2 * D, rows * 4 * D}
    assert there in {c.bytes for c in large}
    assert home & {c.bytes for c in large}
    others = [c.bytes for c in collectives(program) if c.kind != "all-to-all"]
    assert sum(others) <= 16


@pytest.mark.slow
def test_gradients_cross_the_exchange():
    def loss(matrices, of):
        return jnp.sum(jnp.sin(of(matrices)))

    there = jax.jit(jax.grad(lambda m: loss(m, lambda m: parallel(8)(TOKENS, m, ROUTING).outputs)))
    dense = jax.jit(
        jax.grad(lambda m: loss(m, lambda m: mixture(TOKENS, m, ROUTING, Dispatch.DENSE)))
    )
    for found, wanted in zip(there(MATRICES), dense(MATRICES), strict=True):
        np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-5)


def test_what_cannot_be_dealt_is_refused():
    mesh = dx.client_mesh()
    with pytest.raises(ValueError, match="params must be of as many experts"):
        sn.expert_parallel(TOKENS, [m[:8] for m in MATRICES], ROUTING, mesh, places=8)
    with pytest.raises(ValueError, match="tokens must be as many as the routing"):
        sn.expert_parallel(TOKENS[:60], MATRICES, ROUTING, mesh, places=8)
    other = jax.make_mesh((8,), ("x",))
    with pytest.raises(ValueError, match="mesh must have an axis"):
        sn.expert_parallel(TOKENS, MATRICES, ROUTING, other, places=8)
