"""What the hardware can do, measured in the run whose rows are held against it."""

import functools

import jax
import jax.numpy as jnp

from benchmarks.measure import milliseconds


@functools.cache
def matrix_ceiling() -> float:
    """Operations per second of a large float32 matrix product at JAX's default precision."""
    size = 2048 if jax.default_backend() == "cpu" else 8192
    matrix = jax.random.normal(jax.random.key(0), (size, size))
    product = jax.jit(jnp.matmul)
    return 2.0 * size**3 / (1e-3 * milliseconds(lambda: product(matrix, matrix), repeats=7))


@functools.cache
def copy_bandwidth() -> float:
    """Bytes per second, read and written, of a copy from one large buffer to another."""
    size = 1 << (26 if jax.default_backend() == "cpu" else 28)
    source, target = jnp.zeros(size), jnp.zeros(size)
    # The target is handed over again and again: fresh memory costs more than the copying.
    copy = jax.jit(lambda source, target: source + 0.5, donate_argnums=1, keep_unused=True)

    def work() -> jax.Array:
        nonlocal target
        target = copy(source, target)
        return target

    return 2.0 * source.nbytes / (1e-3 * milliseconds(work, repeats=7))


def arithmetic_ms(flops: float) -> float:
    """The least milliseconds for so many operations."""
    return 1e3 * flops / matrix_ceiling()


def memory_ms(moved: float) -> float:
    """The least milliseconds for moving so many bytes, reads and writes together."""
    return 1e3 * moved / copy_bandwidth()
