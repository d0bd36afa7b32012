"""A wall between two parts of a program that a CPU computes faster as two loops than as one."""

import jax
from jax import lax
from jax.experimental.xla_metadata import set_xla_metadata
from jaxtyping import Array


def wall(x: Array) -> Array:
    """The argument itself, which a CPU's program stores here; so are its tangents and cotangents.

    XLA makes one loop of everything that leads to a result, and computes again what the loop reads more
    than once: behind a pooling, four times the sums of sixteen products. Its optimisation barriers are
    gone by then; a call that must not be inlined is not. On other platforms this does nothing.
    """
    return lax.platform_dependent(x, cpu=_called, default=_itself)


def _called(x: Array) -> Array:
    with set_xla_metadata(inlineable="false"):
        return jax.jit(_kept)(x)


def _kept(x: Array) -> Array:
    # JAX drops a call that hands its argument back; it does not look behind a barrier.
    return lax.optimization_barrier(x)


def _itself(x: Array) -> Array:
    return x
