"""Prefill: what cached prefixes save, and packed tokens against a rank for each request."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from dflax import validation
from dflax.inference.supernode.numbers import Real, numbers

# Loading over computing the same tokens, fitted to the paper: over the unified bus, and over the
# data centre's network.
LOADED, LOADED_FAR = 0.39, 0.63


def with_cache(full: Real, reused: Real, *, ratio: Real = LOADED) -> Float[Array, "..."]:
    """Seconds of a prefill of which a part is loaded: full (1 - f + f ratio).

    Args:
      full: s without a cache, >= 0; traceable.
      reused: f, the part of the prompt that is cached, in [0, 1]; traceable.
      ratio: s of loading over s of computing the same tokens, >= 0; traceable. 0.39 is the unified
        bus, 0.63 the data centre's network.

    Raises:
      TypeError, ValueError: naming the argument.
    """
    full = numbers("full", full, low=0.0)
    reused = numbers("reused", reused, low=0.0, high=1.0)
    ratio = numbers("ratio", ratio, low=0.0)
    return full * (1.0 - reused + reused * ratio)


def packed_step(
    tokens: Float[Array, " n"], seconds: Real, *, ranks: int, exchanges: Real = 0.0
) -> Float[Array, ""]:
    """A step of prefill whose tokens are dealt evenly (SP-TP-SP): seconds sum_j l_j / ranks + exchanges.

    Args:
      tokens: `[n]` of each request, >= 0.
      seconds: of a token on one rank, >= 0; traceable.
      ranks: >= 1.
      exchanges: s of the all-gather and the all-to-all, >= 0; traceable.

    Raises:
      TypeError, ValueError: naming the argument.
    """
    lengths = _lengths(tokens, seconds, ranks)
    validation.real("exchanges", exchanges, low=0.0, scalar=True)
    return jnp.asarray(seconds * jnp.sum(lengths) / ranks + exchanges)


def data_parallel_step(
    tokens: Float[Array, " n"], seconds: Real, *, ranks: int
) -> Float[Array, ""]:
    """A step of prefill whose request j is rank j mod ranks' alone: the busiest rank's tokens count.

    Args:
      tokens: `[n]` of each request, >= 0.
      seconds: of a token on one rank, >= 0; traceable.
      ranks: >= 1.

    Raises:
      TypeError, ValueError: naming the argument.
    """
    lengths = _lengths(tokens, seconds, ranks)
    owners = jnp.arange(lengths.shape[0]) % ranks
    return jnp.asarray(seconds * jnp.max(jax.ops.segment_sum(lengths, owners, ranks)))


def _lengths(tokens: Float[Array, " n"], seconds: Real, ranks: int) -> Float[Array, " n"]:
    lengths = validation.array("tokens", tokens, kind="real", shape=("n",), low=0.0)
    validation.real("seconds", seconds, low=0.0, scalar=True)
    validation.integer("ranks", ranks, low=1, high=1 << 20)
    return jnp.asarray(lengths, jnp.float32)
