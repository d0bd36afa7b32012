"""Experts that train apart, compiled for machines that are not here: nothing but metrics travels."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from planned import test_gallery

import dflax as dx

G = dx.generative


@pytest.mark.slow
@pytest.mark.parametrize(("where", "experts"), [("v5e:16x16", 256), ("8xH100", 8)])
def test_experts_exchange_no_more_than_their_losses(where, experts):
    mesh = test_gallery.machine(where)
    model = dx.models.DiT(patch=2, width=32, depth=1, heads=2)
    images = jnp.zeros((4 * experts, 8, 8, 4))
    data = dx.data.Dataset(images, jnp.zeros(len(images), jnp.int32))
    own = dx.experts.apart(data, np.arange(len(images)) % experts, batch_size=2 * experts)
    algorithm = dx.experts.ddm(G.denoising(model, G.rectified()), optax.adamw(1e-4), experts)
    seen = G.Noised(images[:1], jnp.ones(1))
    params = jax.eval_shape(model.init, jax.random.key(0), seen)["params"]
    state = jax.eval_shape(algorithm.init, jax.random.key(0), params)
    cost = dx.profile.round(algorithm, state, own, mesh=mesh)
    # The host reads K losses.
    assert [c.bytes for c in cost.collectives] == [4 * experts]
