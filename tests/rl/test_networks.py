"""How networks of agents begin."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

import dflax as dx
from dflax.programs import walk
from dflax.rl.networks import orthogonal

KEYS = jax.random.split(jax.random.key(0), 3)


def factorised(program):
    """Shapes of the matrices of a program of which QR decompositions are made."""
    for operation in program.eqns:
        if str(operation.primitive) in ("qr", "geqrf"):
            yield operation.invars[0].aval.shape
        for part in walk.inner(operation):
            yield from factorised(part.program)


def test_orthogonal_weights_are_flax_s():
    for shape in ((5, 7), (7, 5), (6, 6)):
        own = jax.vmap(lambda key, shape=shape: orthogonal(2.0)(key, shape))(KEYS)
        for key, weights in zip(KEYS, own, strict=True):
            np.testing.assert_array_equal(weights, nn.initializers.orthogonal(2.0)(key, shape))


def test_agents_weights_are_made_one_after_another():
    """Two batches of QR decompositions in one program may wait for each other for ever."""
    network = dx.rl.ActorCritic(2, (4,))
    program = jax.make_jaxpr(jax.vmap(lambda key: network.init(key, jnp.zeros((1, 3)))))(KEYS)
    shapes = list(factorised(program.jaxpr))
    assert len(shapes) == 4
    assert all(len(shape) == 2 for shape in shapes)
