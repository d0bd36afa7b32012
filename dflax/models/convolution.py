"""Convolution that stays fast inside loops and under a client axis."""

from collections.abc import Sequence
from typing import Any, Literal, get_args

import jax.numpy as jnp
from flax import linen as nn
from flax.linen.dtypes import promote_dtype
from jax import lax
from jaxtyping import Array, Float

from dflax import validation
from dflax.kernels.correlation import Geometry, Method, correlate

Padding = Literal["SAME", "VALID"] | int | Sequence[int | tuple[int, int]]


class Conv(nn.Module):
    """Drop-in for `flax.linen.Conv` in one and two dimensions: same parameters, same results.

    y[b, p, o] = bias[o] + sum_{t, c} x[b, strides p + dilation t - low, c] kernel[t, c, o]

    The parameters are "kernel" `[*kernel_size, C_in / groups, features]` and "bias" `[features]`, as
    flax names and initialises them, so checkpoints pass from one to the other. How it is computed
    is told in `convolve`.

    Attributes:
      features: number of output channels, >= 1.
      kernel_size: one or two positive lengths, for example `(3, 3)`; one int means one dimension.
      strides: int or one per dimension, >= 1.
      padding: "SAME", "VALID", an int, or per dimension an int or a pair `(low, high)`; >= 0.
      kernel_dilation: int or one per dimension, >= 1.
      feature_group_count: number of channel groups; divides `C_in` and `features`.
      use_bias: whether a bias is added.
      dtype: dtype of the computation; None promotes that of inputs and parameters.
      param_dtype: dtype of the parameters.
      kernel_init: initialiser of the kernel.
      bias_init: initialiser of the bias.
      method: how it is computed, see `convolve`.
    """

    features: int
    kernel_size: int | Sequence[int]
    strides: int | Sequence[int] = 1
    padding: Padding = "SAME"
    kernel_dilation: int | Sequence[int] = 1
    feature_group_count: int = 1
    use_bias: bool = True
    dtype: Any = None
    param_dtype: Any = jnp.float32
    kernel_init: nn.initializers.Initializer = nn.linear.default_kernel_init
    bias_init: nn.initializers.Initializer = nn.initializers.zeros_init()
    method: Method = "auto"

    def __post_init__(self) -> None:
        validation.integer("features", self.features, low=1)
        dimensions = len(_per_dimension("kernel_size", self.kernel_size))
        _per_dimension("strides", self.strides, dimensions)
        _per_dimension("kernel_dilation", self.kernel_dilation, dimensions)
        _require_padding(self.padding, dimensions)
        validation.integer("feature_group_count", self.feature_group_count, low=1)
        validation.flag("use_bias", self.use_bias)
        validation.dtype("dtype", self.dtype)
        validation.dtype("param_dtype", self.param_dtype)
        validation.function("kernel_init", self.kernel_init, takes=3)
        validation.function("bias_init", self.bias_init, takes=3)
        validation.choice("method", self.method, get_args(Method))
        super().__post_init__()

    @nn.compact
    def __call__(self, inputs: Float[Array, "*B C"]) -> Float[Array, "*B features"]:
        """The convolved inputs `[..., *space, features]` of inputs `[..., *space, C_in]`."""
        size = _per_dimension("kernel_size", self.kernel_size)
        groups, channels = self.feature_group_count, inputs.shape[-1]
        if channels % groups:
            raise ValueError(
                f"feature_group_count must divide the {channels} input channels, got {groups}."
            )
        kernel = self.param(
            "kernel",
            self.kernel_init,
            (*size, channels // groups, self.features),
            self.param_dtype,
        )
        bias = (
            self.param("bias", self.bias_init, (self.features,), self.param_dtype)
            if self.use_bias
            else None
        )
        inputs, kernel, bias = promote_dtype(inputs, kernel, bias, dtype=self.dtype)
        outputs = convolve(
            inputs,
            kernel,
            strides=self.strides,
            padding=self.padding,
            dilation=self.kernel_dilation,
            groups=groups,
            method=self.method,
        )
        return outputs if bias is None else outputs + bias


def convolve(
    inputs: Float[Array, "*B C"],
    kernel: Float[Array, "*K c features"],
    *,
    strides: int | Sequence[int] = 1,
    padding: Padding = "SAME",
    dilation: int | Sequence[int] = 1,
    groups: int = 1,
    method: Method = "auto",
) -> Float[Array, "*B features"]:
    """Correlates inputs with a kernel, channels last, as fast as the platform allows.

    y[b, p, o] = sum_{t, c} x[b, strides p + dilation t - low, c] kernel[t, c, o]

    XLA's own CPU convolution is ten to forty times slower inside a loop than the matrix products it
    stands for, and under `vmap` over per-client kernels it becomes a grouped convolution, slower
    still. There are three methods:

    - "patches": the patches of x (static slices, side by side) times the kernel, one matrix product;
    - "winograd": Winograd's minimal filtering of 2 outputs by 3 taps per axis, for kernels of 3 (x 3)
      taps without strides, dilation and groups: 4 products of tiles for 2 outputs and 3 taps, so
      1.5 times (two dimensions: 2.25 times) fewer multiplications than any direct method. Its error
      is that of float32 rounding, relative to the largest input of a tile of 4 (x 4); what is not
      finite spreads over its tile;
    - "native": `lax.conv_general_dilated`.

    "auto" is "native" except on CPU, where it is "winograd" in float32 and float64 for as many
    channels and pixels as make it pay, and "patches" otherwise. The platform is that of the compiled
    program, not of the process.

    The reverse rules are JAX's own, transposes of slices, sums and products, so forward mode, reverse
    mode and any composition of them work, and gradients need as few multiplications.

    Args:
      inputs: `[..., *space, C_in]` with one or two dimensions of space; batch axes before them.
      kernel: `[*kernel_size, C_in / groups, features]`.
      strides: int or one per dimension, >= 1.
      padding: "SAME", "VALID", an int, or per dimension an int or a pair `(low, high)`; >= 0.
      dilation: spacing of the kernel's taps, int or one per dimension, >= 1.
      groups: number of channel groups.
      method: "auto", "patches", "winograd" or "native".

    Returns:
      `[..., *outer_space, features]`.

    Raises:
      ValueError: shapes that do not fit each other, an argument out of range, or a method that cannot
        compute this convolution.
      TypeError: an argument that is not an integer where one is needed.

    References:
      Lavin & Gray, Fast Algorithms for Convolutional Neural Networks, arXiv 1509.09308.
    """
    validation.choice("method", method, get_args(Method))
    dimensions = kernel.ndim - 2
    geometry = _geometry(inputs, kernel, strides, padding, dilation, groups)
    batch, space = inputs.shape[: -dimensions - 1], inputs.shape[-dimensions - 1 : -1]
    flat = inputs.reshape(-1, *space, inputs.shape[-1])
    outputs = correlate(geometry, flat, kernel, method)
    return outputs.reshape(*batch, *outputs.shape[1:])


def _geometry(
    x: Array, kernel: Array, strides: Any, padding: Any, dilation: Any, groups: int
) -> Geometry:
    dimensions = kernel.ndim - 2
    if dimensions not in (1, 2) or x.ndim < dimensions + 1:
        raise ValueError(
            "kernel must have shape [k, c, o] or [k, k, c, o] and inputs that many axes of space and "
            f"one of channels, got kernel {kernel.shape} and inputs {x.shape}."
        )
    validation.integer("groups", groups, low=1)
    if kernel.shape[-2] * groups != x.shape[-1] or kernel.shape[-1] % groups:
        raise ValueError(
            f"kernel must have {x.shape[-1]} / groups input channels and outputs divisible by groups "
            f"= {groups}, got {kernel.shape}."
        )
    strides = _per_dimension("strides", strides, dimensions)
    dilation = _per_dimension("dilation", dilation, dimensions)
    size, space = kernel.shape[:-2], x.shape[-dimensions - 1 : -1]
    spans = tuple((k - 1) * d + 1 for k, d in zip(size, dilation, strict=True))
    pads = _pads(padding, space, spans, strides)
    outputs = tuple(
        (n + sum(pad) - span) // s + 1
        for n, pad, span, s in zip(space, pads, spans, strides, strict=True)
    )
    if min(outputs) < 1:
        raise ValueError(
            f"inputs must be at least as large as the kernel, got space {space} with padding {pads} "
            f"for a kernel that spans {spans}. Use padding='SAME' or a smaller kernel."
        )
    return Geometry(size, strides, pads, dilation, groups, outputs)


def _pads(
    padding: Any, space: tuple[int, ...], spans: tuple[int, ...], strides: tuple[int, ...]
) -> tuple[tuple[int, int], ...]:
    named = _require_padding(padding, len(space))
    return named or tuple(lax.padtype_to_pads(space, spans, strides, padding))


def _require_padding(padding: Any, dimensions: int) -> tuple[tuple[int, int], ...] | None:
    """The padding as one pair per dimension; None where it is a word, whose meaning depends on sizes."""
    if isinstance(padding, str):
        if padding not in ("SAME", "VALID"):
            raise ValueError(
                "padding must be 'SAME', 'VALID', an int or pairs of ints, got "
                f"{validation.shown(padding)}."
            )
        return None
    allowed = f"integers or pairs (low, high), one per dimension, {dimensions} in all"
    if isinstance(padding, int):
        entries = [padding] * dimensions
    else:
        entries = validation.sequence("padding", padding, allowed)
    pads = [(pad, pad) if isinstance(pad, int) else pad for pad in entries]
    if len(pads) != dimensions or not all(
        isinstance(p, (tuple, list)) and len(p) == 2 for p in pads
    ):
        raise ValueError(
            f"padding must have one int or pair (low, high) per dimension, {dimensions} in all, "
            f"got {validation.shown(padding)}."
        )
    for low, high in pads:
        validation.integer("padding", low, low=0)
        validation.integer("padding", high, low=0)
    return tuple((low, high) for low, high in pads)


def _per_dimension(name: str, value: Any, dimensions: int | None = None) -> tuple[int, ...]:
    if isinstance(value, int):
        entries = (value,) * (dimensions or 1)
    else:
        entries = tuple(validation.sequence(name, value, "integers", least=0))
    if len(entries) != (dimensions or len(entries)) or len(entries) not in (1, 2):
        allowed = "one or two" if dimensions is None else dimensions
        raise ValueError(f"{name} must have {allowed} entries, got {validation.shown(value)}.")
    for entry in entries:
        validation.integer(name, entry, low=1)
    return entries
