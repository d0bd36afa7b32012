"""Experts dealt to 256 TPU chips: what a device sends is the buffers' formula, to the byte."""

import jax
import jax.numpy as jnp
import pytest
from planned import test_gallery

from dflax.inference import supernode as sn
from dflax.models.moe.routing import route
from dflax.programs.collectives import collectives

EXPERTS, RANKS, TOKENS, WIDTH, HIDDEN, ACTIVE, PLACES = 256, 256, 16, 1020, 256, 8, 4


@pytest.mark.slow
@pytest.mark.parametrize(("early", "combined"), [(True, jnp.bfloat16), (False, None)])
def test_a_dispatch_and_a_combine_send_their_buffers(early, combined):
    mesh = test_gallery.machine("v5e:16x16")
    dealt = jax.NamedSharding(mesh, jax.P("clients"))

    def shaped(*shape):
        return jax.ShapeDtypeStruct(shape, jnp.float32, sharding=dealt)

    def layer(tokens, scores, gate, up, down):
        routing = route(scores, ACTIVE, normalised=True)
        options = {"places": PLACES, "early_int8": early, "combined": combined}
        return sn.expert_parallel(tokens, (gate, up, down), routing, mesh, **options)

    rows = TOKENS * RANKS
    matrices = [(EXPERTS, WIDTH, HIDDEN)] * 2 + [(EXPERTS, HIDDEN, WIDTH)]
    with jax.set_mesh(mesh):
        program = (
            jax.jit(layer)
            .lower(shaped(rows, WIDTH), shaped(rows, EXPERTS), *(shaped(*m) for m in matrices))
            .compile()
        )
    found = collectives(program)
    sizes = sorted(c.bytes for c in found if c.kind == "all-to-all")
    # A TPU multiplies float32 as bfloat16: its compiler rounds ahead of one of the exchanges.
    there = EXPERTS * PLACES * (WIDTH + 4 if early else 2 * WIDTH)
    home = EXPERTS * PLACES * WIDTH * (2 if early else 4)
    assert sizes == sorted([there, home])
    assert all(c.devices == RANKS for c in found if c.kind == "all-to-all")
    assert sum(c.bytes for c in found if c.kind != "all-to-all") <= 1024
