"""Products in INT8 without training: a scale for each token, and one for each output channel."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int8

from dflax import validation

MOST = 127.0
TINY = 1e-30
SHARES = 26


class Quantised(NamedTuple):
    """Numbers in INT8: scale values.

    Attributes:
      values: `[..., m, n]` int8 in [-127, 127].
      scale: float32, `[..., m, 1]` of rows or `[..., 1, n]` of columns.
    """

    values: Int8[Array, "... m n"]
    scale: Float[Array, "..."]

    @property
    def real(self) -> Float[Array, "... m n"]:
        """The numbers that it stands for."""
        return self.scale * self.values


def quantised_rows(x: Float[Array, "m n"]) -> Quantised:
    """A scale for each token: s_i = max_j |x_ij| / 127, and round(x / s); off by s / 2 at most.

    Args:
      x: `[m, n]` tokens.

    Raises:
      TypeError, ValueError: naming the argument.
    """
    rows = jnp.asarray(validation.array("x", x, kind="real", shape=("m", "n")))
    return rounded(rows, jnp.max(jnp.abs(rows), axis=1, keepdims=True) / MOST)


def quantised_columns(weights: Float[Array, "m n"]) -> Quantised:
    """A scale for each output channel: s_j = max_i |w_ij| / 127, and round(w / s).

    Args:
      weights: `[m, n]`.

    Raises:
      TypeError, ValueError: naming the argument.
    """
    matrix = jnp.asarray(validation.array("weights", weights, kind="real", shape=("m", "n")))
    return rounded(matrix, jnp.max(jnp.abs(matrix), axis=0, keepdims=True) / MOST)


def quantised_product(x: Quantised, weights: Quantised) -> Float[Array, "m n"]:
    """s_x s_w (x w), whose sums are int32.

    Args:
      x: `[m, k]` with a scale for each row.
      weights: `[k, n]` with a scale for each column.

    Raises:
      TypeError: naming the argument.
    """
    validation.instance("x", x, Quantised, "Make it with quantised_rows.")
    validation.instance("weights", weights, Quantised, "Make it with quantised_columns.")
    sums = jnp.matmul(x.values, weights.values, preferred_element_type=jnp.int32)
    return x.scale * weights.scale * sums


class Int8Linear(NamedTuple):
    """A linear layer in INT8. From `int8_linear`.

    Attributes:
      weights: `[k, n]` smoothed and quantised.
      smoothing: `[k]` what each input is divided by.
      bias: `[n]` float32.
    """

    weights: Quantised
    smoothing: Float[Array, " k"]
    bias: Float[Array, " n"]


def int8_linear(
    weights: Float[Array, "k n"],
    inputs: Float[Array, "c k"],
    *,
    bias: Float[Array, " n"] | None = None,
    smooth: float | Float[Array, ""] = 0.0,
    search: bool = False,
    compensate: bool = False,
) -> Int8Linear:
    """Quantises x W + bias, looking at some inputs.

    Outliers of the inputs move into the weights first, which changes nothing before it is rounded:

        x W = (x / m) (m W),   m from `smoothing_factors`

    Then each channel's scale is max |W| / 127, or, of 26 scales between half of that and that, the one
    for which the outputs of the inputs are off least. The mean error that is left, E[x] (W - Wq), may
    join the bias.

    Args:
      weights: `[k, n]`.
      inputs: `[c, k]` examples of what comes in.
      bias: `[n]`; default 0.
      smooth: a in [0, 1]; traceable. 0 leaves the inputs as they are, 0.5 shares evenly.
      search: whether scales are searched for.
      compensate: whether the bias takes up the mean error.

    Raises:
      TypeError, ValueError: naming the argument.

    References:
      Zuo et al., arXiv 2506.12708; Xiao et al., SmoothQuant, arXiv 2211.10438.
    """
    matrix, seen = _pair(weights, inputs)
    if bias is not None:
        shape = (matrix.shape[1],)
        bias = jnp.asarray(validation.array("bias", bias, kind="real", shape=shape))
    validation.probability("smooth", smooth)
    validation.flag("search", search)
    validation.flag("compensate", compensate)
    factors = _factors(seen, matrix, smooth)
    smoothed, known = matrix * factors[:, None], seen / factors
    found = searched(smoothed, known) if search else quantised_columns(smoothed)
    offset = jnp.zeros(matrix.shape[1], jnp.float32) if bias is None else bias
    if compensate:
        offset = offset + known.mean(0) @ (smoothed - found.real)
    return Int8Linear(found, factors, offset)


def int8_apply(layer: Int8Linear, x: Float[Array, "... k"]) -> Float[Array, "... n"]:
    """The layer's outputs: tokens are divided by the factors, quantised one by one, and multiplied.

    Args:
      layer: from `int8_linear`.
      x: `[..., k]`.

    Raises:
      TypeError, ValueError: naming the argument.
    """
    validation.instance("layer", layer, Int8Linear, "Make it with int8_linear.")
    given = validation.array("x", x, kind="real")
    width = layer.smoothing.shape[-1]
    if not given.ndim or given.shape[-1] != width:
        raise ValueError(f"x must have a last axis of length {width}, got shape {given.shape}.")
    rows = jnp.reshape(jnp.asarray(given), (-1, width)) / layer.smoothing
    y = quantised_product(_rows(rows), layer.weights) + layer.bias
    return y.reshape(*given.shape[:-1], -1)


def smoothing_factors(
    inputs: Float[Array, "c k"], weights: Float[Array, "k n"], smooth: float | Float[Array, ""]
) -> Float[Array, " k"]:
    """What inputs are divided by and rows of weights multiplied with.

        m_j = max |x_j|^a / max |W_j|^(1 - a)  for a > 0;   1 for a = 0, and for channels of zeros

    Args:
      inputs: `[c, k]`.
      weights: `[k, n]`.
      smooth: a in [0, 1]; traceable.

    Raises:
      TypeError, ValueError: naming the argument.
    """
    matrix, seen = _pair(weights, inputs)
    validation.probability("smooth", smooth)
    return _factors(seen, matrix, smooth)


def searched(weights: Float[Array, "k n"], inputs: Float[Array, "c k"]) -> Quantised:
    """Scales that bring the outputs closest, channel by channel.

        s_j = argmin_s || X W_j - X s clip(round(W_j / s)) ||^2,   s in max |W_j| / 127 [0.5, 1]

    Args:
      weights: `[k, n]`.
      inputs: `[c, k]`, X.

    Raises:
      TypeError, ValueError: naming the argument.
    """
    matrix, seen = _pair(weights, inputs)
    whole = jnp.max(jnp.abs(matrix), axis=0, keepdims=True) / MOST

    def off(share: Array) -> Array:
        return jnp.sum(jnp.square(seen @ (matrix - rounded(matrix, whole * share).real)), axis=0)

    shares = jnp.linspace(0.5, 1.0, SHARES)
    best = shares[jnp.argmin(jax.lax.map(off, shares), axis=0)]
    return rounded(matrix, whole * best)


def rounded(x: Float[Array, "... m n"], scale: Float[Array, "..."]) -> Quantised:
    """The numbers over their scales, rounded to the nearest and clipped to [-127, 127]."""
    scale = jnp.maximum(scale, TINY).astype(jnp.float32)
    return Quantised(jnp.clip(jnp.round(x / scale), -MOST, MOST).astype(jnp.int8), scale)


def _rows(x: Array) -> Quantised:
    return rounded(x, jnp.max(jnp.abs(x), axis=-1, keepdims=True) / MOST)


def _factors(inputs: Array, weights: Array, smooth: float | Array) -> Array:
    most, wide = jnp.max(jnp.abs(inputs), axis=0), jnp.max(jnp.abs(weights), axis=1)
    counts = (most > 0) & (wide > 0) & (jnp.asarray(smooth) > 0)
    most, wide = (jnp.where(counts, value, 1.0) for value in (most, wide))
    return most**smooth / wide ** (1.0 - smooth)


def _pair(weights: Array, inputs: Array) -> tuple[Array, Array]:
    matrix = validation.array("weights", weights, kind="real", shape=("k", "n"))
    seen = validation.array("inputs", inputs, kind="real", shape=("c", "k"))
    if seen.shape[1] != matrix.shape[0]:
        raise ValueError(
            "inputs must have a column for each row of weights, got shapes "
            f"{seen.shape} and {matrix.shape}."
        )
    return jnp.asarray(matrix), jnp.asarray(seen)
