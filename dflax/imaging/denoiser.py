"""The learned denoiser of magnitudes: its network, its weights, and how it is used in a prior."""

import pathlib
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import traverse_util
from jaxtyping import Array, Float, PyTree

from dflax.models.unet import UNet3D

NETWORK = UNet3D(channels=12, levels=2)
WEIGHTS = pathlib.Path(__file__).with_name("denoiser.npz")


def noise_removed(
    weights: PyTree[Array], noisy: Float[Array, "*B X Y Z"], deviation: Float[Array, "*B"]
) -> Float[Array, "*B X Y Z"]:
    """`noisy - deviation network(noisy, deviation)`: what the network says in units of the noise."""
    level = jnp.asarray(deviation, noisy.dtype)
    return noisy - level[..., None, None, None] * NETWORK.apply(weights, noisy, level)


def flattened(weights: PyTree[Array]) -> dict[str, np.ndarray]:
    """Weights by their paths."""
    named = traverse_util.flatten_dict(weights, sep=".")
    return {name: np.asarray(leaf) for name, leaf in named.items()}


def unflattened(named: Mapping[str, Any]) -> PyTree[Array]:
    """The tree of weights that `flattened` named."""
    return traverse_util.unflatten_dict({name: jnp.asarray(named[name]) for name in named}, sep=".")
