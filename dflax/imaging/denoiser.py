"""The learned denoiser of magnitudes: its network, its weights, and how it is used in a prior."""

import pathlib
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util
from jaxtyping import Array, Float, PyTree

from dflax import validation
from dflax.models.unet import UNet3D

NETWORK = UNet3D(channels=12, levels=2)
"""The denoiser's network, whose trained weights `learned` reads."""
WEIGHTS = pathlib.Path(__file__).with_name("denoiser.npz")


def noise_removed(
    weights: PyTree[Array], noisy: Float[Array, "*B X Y Z"], deviation: Float[Array, "*B"]
) -> Float[Array, "*B X Y Z"]:
    """`noisy - deviation network(noisy, deviation)`: the network speaks in units of the noise.

    Args:
      weights: of `NETWORK`.
      noisy: magnitudes, with circular noise added before they were taken.
      deviation: of that noise, in each of real and imaginary part, > 0.
    """
    level = jnp.asarray(deviation, noisy.dtype)
    said: Any = NETWORK.apply(weights, noisy, level)
    return noisy - level[..., None, None, None] * said


def check_weights(weights: Any) -> None:
    """Refuses what are no weights of `NETWORK`."""
    volume = jax.ShapeDtypeStruct((4, 4, 4), jnp.float32)
    level = jax.ShapeDtypeStruct((), jnp.float32)
    wanted = jax.eval_shape(NETWORK.init, jax.random.key(0), volume, level)
    shapes = jax.tree.map(jnp.shape, wanted)
    named: list[Any] = [jax.tree.structure(tree) for tree in (wanted, weights)]
    if named[0] != named[1] or jax.tree.map(jnp.shape, weights) != shapes:
        raise ValueError(
            f"weights must be those of dflax.imaging.NETWORK, got {validation.shown(weights)}. Train "
            "them with python -m experiments.tasks.magnitude_denoiser, or leave them out."
        )


def flattened(weights: PyTree[Array]) -> dict[str, np.ndarray]:
    """Weights by their paths."""
    named = traverse_util.flatten_dict(weights, sep=".")
    return {name: np.asarray(leaf) for name, leaf in named.items()}


def unflattened(named: Mapping[str, Any]) -> PyTree[Array]:
    """The tree of weights that `flattened` named."""
    return traverse_util.unflatten_dict({name: jnp.asarray(named[name]) for name in named}, sep=".")
