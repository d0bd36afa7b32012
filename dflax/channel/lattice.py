"""Unbiased rounding to a lattice, whose bits depend on the values that are sent."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from dflax import validation
from dflax.algorithm import Metrics
from dflax.channel.channel import Channel, Messages, Sending
from dflax.clients import map_clients


def lattice(step: float) -> Channel:
    """Rounds every number at random to a neighbouring multiple of `step`, without bias.

    With v / step = m + r, m an integer and r in [0, 1),

        Q(v) = (m + 1) step  with probability r,  m step  otherwise

    so that E Q(v) = v, |Q(v) - v| < step and Var Q(v) <= step^2 / 4. Multiples of the step stay as they
    are. `step` 0 sends everything as it is, in the same program.

    Metrics count what travels from those who send. A leaf of d numbers takes d log2(range / step + 1)
    bits, its range being largest minus least of what is sent: the entropy bound of an index among so
    many levels, without the least level itself. `bytes_uncompressed` counts d numbers of the leaf's
    own type, and so does `bytes_sent` where the step is 0.

    Args:
      step: distance of lattice points, >= 0; traceable.

    Raises:
      TypeError, ValueError: naming the argument.

    References:
      Suwandi et al., Sparsity-Aware Distributed Learning for Gaussian Processes with Linear Multiple
      Kernel, arXiv 2309.08201.
    """
    validation.real("step", step, low=0.0, scalar=True)

    def one(message: Messages, key: Key[Array, ""]) -> tuple[Messages, Float[Array, ""]]:
        sent = on_lattice(message, step, key)
        return sent, jnp.float32(sum(_bits(leaf, step) for leaf in jax.tree.leaves(sent)))

    def apply(
        messages: Messages, weights: Float[Array, " m"], state: tuple[()], sending: Sending
    ) -> tuple[Messages, Float[Array, " m"], tuple[()], Metrics]:
        keys = jax.random.split(sending.key, weights.shape[0])
        sent, bits = map_clients(one, messages, keys)
        plain = sum(8 * leaf[0].nbytes for leaf in jax.tree.leaves(messages))
        sends = (weights > 0).astype(jnp.float32)
        metrics = {
            "bytes_sent": sends @ bits / 8,
            "bytes_uncompressed": sends.sum() * (plain / 8),
        }
        return sent, weights, state, metrics

    return Channel(lambda message: (), apply)


def on_lattice(tree: Messages, step: float | Array, key: Key[Array, ""]) -> Messages:
    """Every number of a tree rounded at random to a neighbouring multiple of `step`, see `lattice`."""
    leaves, structure = jax.tree.flatten(tree)
    keys = jax.random.split(key, len(leaves))

    def rounded(leaf: Array, key: Key[Array, ""]) -> Array:
        exact = jnp.asarray(step, leaf.dtype)
        # The unit stands in for a step of 0, whose values are not looked at.
        unit = jnp.where(exact > 0, exact, 1)
        place = leaf / unit
        up = jax.random.uniform(key, leaf.shape, leaf.dtype) < place - jnp.floor(place)
        there = jnp.round(place) * unit == leaf
        return jnp.where(there | (exact == 0), leaf, (jnp.floor(place) + up) * unit)

    return jax.tree.unflatten(structure, map(rounded, leaves, keys))


def _bits(leaf: Array, step: float | Array) -> Array:
    """What one leaf on the lattice takes."""
    exact = jnp.asarray(step, leaf.dtype)
    levels = (jnp.max(leaf) - jnp.min(leaf)) / jnp.where(exact > 0, exact, 1) + 1
    return jnp.where(exact > 0, leaf.size * jnp.log2(levels), 8.0 * leaf.nbytes)
