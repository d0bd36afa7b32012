"""Logarithms and powers in double precision that a CPU computes for several numbers at once.

XLA's CPU backend calls the C library for the logarithm of each double, and takes twice as long as this
for an exponential. Elsewhere, and in single precision, these are jax's own.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

# Bits of a double: 52 of the fraction, an exponent that is 1023 too large.
FRACTION = np.int64(52)
ONE = np.int64(1023) << FRACTION
SQRT_HALF = np.float64(np.sqrt(0.5)).view(np.int64)
# An integer n in [0, 2^52) in the fraction of 2^52 is the number 2^52 + n; in [-2^51, 2^51) of this:
WHOLE, SIGNED_WHOLE = np.float64(2.0**52), np.float64(1.5 * 2.0**52)
# log 2 in two parts: a product of the first with an exponent is exact.
LOG_2, LOG_2_REST = 0.693147180369123816490, 1.90821492927058770002e-10
# Terms of both series.
ODD, POWERS = 10, 13
MOST = 700.0


def positive_log(x: Float[Array, "..."]) -> Float[Array, "..."]:
    """Log x of normal numbers x > 0, to 5e-16 of its value.

    x = 2^e m,  m in [sqrt(1/2), sqrt(2)),   s = (m - 1) / (m + 1)
    log x = e log 2 + 2 (s + s^3 / 3 + s^5 / 5 + ...)
    """
    if x.dtype != jnp.float64:
        return jnp.log(x)
    return jax.lax.platform_dependent(x, cpu=_log, default=jnp.log)


def positive_power(x: Float[Array, "..."], power: Float[Array, ""]) -> Float[Array, "..."]:
    """x^power of normal numbers x > 0, within 1e-304 and 1e304.

    y = power log x = n log 2 + r,  |r| <= log(2) / 2,   x^power = 2^n (1 + r + r^2 / 2 + ...)
    """
    exponent = power * positive_log(x)
    if exponent.dtype != jnp.float64:
        return jnp.exp(exponent)
    return jax.lax.platform_dependent(exponent, cpu=_exp, default=jnp.exp)


def _log(x: Float[Array, "..."]) -> Float[Array, "..."]:
    bits = jax.lax.bitcast_convert_type(x, jnp.int64)
    # 1023 too large, so that it is no negative number.
    exponent = jax.lax.shift_right_logical(bits - SQRT_HALF + ONE, FRACTION)
    m = jax.lax.bitcast_convert_type(
        bits - jax.lax.shift_left(exponent, FRACTION) + ONE, jnp.float64
    )
    e = jax.lax.bitcast_convert_type(exponent + WHOLE.view(np.int64), jnp.float64) - (WHOLE + 1023)
    s = (m - 1) / (m + 1)
    square = s * s
    rest = jnp.full_like(s, 1 / (2 * ODD + 1))
    for n in range(ODD - 1, 0, -1):
        rest = rest * square + 1 / (2 * n + 1)
    return e * np.log(2.0) + 2 * (s + s * (square * rest))


def _exp(y: Float[Array, "..."]) -> Float[Array, "..."]:
    inside = jnp.clip(y, -MOST, MOST)
    n = jnp.round(inside * np.log2(np.e))
    r = (inside - n * LOG_2) - n * LOG_2_REST
    total = jnp.full_like(r, 1 / math.factorial(POWERS))
    for k in range(POWERS - 1, -1, -1):
        total = total * r + 1 / math.factorial(k)
    # The last bits of the sum hold n.
    up = jax.lax.bitcast_convert_type(n + SIGNED_WHOLE, jnp.int64)
    up = jax.lax.shift_left(up, FRACTION)
    return jax.lax.bitcast_convert_type(
        jax.lax.bitcast_convert_type(total, jnp.int64) + up, jnp.float64
    )
