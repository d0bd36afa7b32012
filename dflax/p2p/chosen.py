"""One peer, or one thing, out of a mask."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int, Key


def anyone(mask: Bool[Array, " n"], key: Key[Array, ""]) -> Int[Array, ""]:
    """`[]` int32, one of the places where the mask is set, each alike; 0 where none is."""
    drawn = jax.random.uniform(key, mask.shape)
    return jnp.argmax(jnp.where(mask, drawn, -1.0)).astype(jnp.int32)
