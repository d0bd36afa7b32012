"""Proximal maps in closed form, and how one of magnitudes becomes one of complex numbers."""

import math
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import optax
from jaxtyping import Array, Complex, Float

from dflax import validation


def soft_threshold(x: Float[Array, "*S"], weight: float | Float[Array, "*S"]) -> Float[Array, "*S"]:
    """The prox of weight |v|_1: `sign(x) max(|x| - weight, 0)`, entry by entry.

    Args:
      x: real, of any shape.
      weight: >= 0, one or one for each entry; traceable.

    Raises:
      TypeError, ValueError: naming the argument.

    Examples:
      >>> import jax.numpy as jnp, dflax as dx
      >>> dx.local.soft_threshold(jnp.array([-3.0, 0.5, 2.0]), 1.0).tolist()
      [-2.0, 0.0, 1.0]
    """
    x = _real_numbers(x)
    weight = _each("weight", weight, x, low=0.0)
    return jnp.sign(x) * jnp.maximum(jnp.abs(x) - weight, 0)


def group_threshold(
    x: Float[Array, "*S n"], weight: float | Float[Array, ""]
) -> Float[Array, "*S n"]:
    """The prox of weight sum_g |v_g|_2, a group along the last axis: `x_g max(1 - weight / |x_g|, 0)`.

    Args:
      x: real, groups along the last axis.
      weight: >= 0; traceable.

    Raises:
      TypeError, ValueError: naming the argument.
    """
    x = _real_numbers(x)
    validation.real("weight", weight, low=0.0, scalar=True)
    if x.ndim < 1:
        raise ValueError(f"x must have groups along its last axis, got shape {x.shape}.")
    size = jnp.sqrt(jnp.sum(jnp.square(x), -1, keepdims=True))
    kept = jnp.maximum(size - weight, 0)
    return x * (kept / jnp.where(size > 0, size, 1))


def onto_box(
    x: Float[Array, "*S"], low: float | Float[Array, "*S"], high: float | Float[Array, "*S"]
) -> Float[Array, "*S"]:
    """The nearest point whose entries lie in [low, high].

    Args:
      x: real, of any shape.
      low: one or one for each entry; traceable.
      high: >= low; traceable.

    Raises:
      TypeError, ValueError: naming the argument.
    """
    x = _real_numbers(x)
    low, high = _each("low", low, x), _each("high", high, x)
    known = not (validation.is_traced(low) or validation.is_traced(high))
    if known and bool(jnp.any(low > high)):
        raise ValueError(f"high must be >= low, got {validation.shown(high)}.")
    return jnp.clip(x, low, high)


def onto_simplex(
    x: Float[Array, " n"], total: float | Float[Array, ""] = 1.0
) -> Float[Array, " n"]:
    """The nearest point with entries >= 0 of the given sum.

    Args:
      x: `[n]`, real.
      total: > 0; traceable.

    Raises:
      TypeError, ValueError: naming the argument.
    """
    validation.array("x", x, kind="real", shape=("n",))
    validation.real("total", total, low=0.0, low_open=True, scalar=True)
    return optax.projections.projection_simplex(_real_numbers(x), total)


def onto_ball(
    x: Complex[Array, "*S"], center: Complex[Array, "*S"], radius: float | Float[Array, ""]
) -> Complex[Array, "*S"]:
    """The nearest point of the ball `|v - center| <= radius`, real or complex.

    Args:
      x: of any shape.
      center: of the same.
      radius: >= 0; traceable.

    Raises:
      TypeError, ValueError: naming the argument.
    """
    x, center = (
        jnp.asarray(validation.array(name, given, kind="complex"))
        for name, given in (("x", x), ("center", center))
    )
    if jnp.shape(x) != jnp.shape(center):
        raise ValueError(f"center must have x's shape {jnp.shape(x)}, got {jnp.shape(center)}.")
    validation.real("radius", radius, low=0.0, scalar=True)
    away = x - center
    size = jnp.sqrt(jnp.sum(jnp.square(jnp.abs(away))))
    return center + away * jnp.where(size > radius, radius / jnp.where(size > 0, size, 1), 1)


def on_magnitude(
    prox: Callable[[Float[Array, "*S"]], Float[Array, "*S"]], z: Complex[Array, "*S"]
) -> Complex[Array, "*S"]:
    """The prox of a regulariser of the magnitudes alone: the phase stays, the magnitude is proxed.

        argmin_v R(|v|) + |v - z|^2 / (2 a)  =  p exp(i arg z),
        p = argmin_{m >= 0} R(m) + |m - |z||^2 / (2 a)

    Of all v with |v| = m, the one in phase with z is nearest. Nothing else of R is used: it need be
    neither convex nor separable. Where z = 0 every phase is as good; 0 is taken. What a prox (a learned
    denoiser, say) returns below 0 counts as 0.

    Args:
      prox: `|z| -> p`, real, of the same shape.
      z: complex, of any shape.

    Raises:
      TypeError, ValueError: naming the argument.

    References:
      Oral and Oktem, Plug-and-Play Regularization on Magnitude with Deep Priors for 3D Near-Field MIMO
      Imaging, arXiv 2312.16024.
    """
    validation.function("prox", prox, takes=1)
    z = jnp.asarray(validation.array("z", z, kind="complex"))
    size = jnp.abs(z)
    found = prox(size)
    if jnp.shape(found) != size.shape:
        raise ValueError(f"prox must keep the shape {size.shape}, got {jnp.shape(found)}.")
    p = jnp.maximum(found, 0).astype(size.dtype)
    phase = jnp.where(size > 0, z / jnp.where(size > 0, size, 1), 1)
    return p * phase


def _real_numbers(x: Any) -> Array:
    """x, of a floating type."""
    given = jnp.asarray(validation.array("x", x, kind="real"))
    return given.astype(jnp.promote_types(given.dtype, jnp.float32))


def _each(name: str, value: Any, x: Array, low: float = -math.inf) -> Array:
    """A number, or one for each entry of x."""
    validation.real(name, value, low=low)
    if jnp.shape(value) not in ((), x.shape):
        raise ValueError(
            f"{name} must be one number or have x's shape {x.shape}, got {jnp.shape(value)}."
        )
    return jnp.asarray(value, x.dtype)
