"""Networks of dense layers in integers, whose every product can be proved."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from dflax import validation
from dflax.data.dataset import AnyArray
from dflax.verified_inference.proofs.commitment import merkle_root

Layers = Sequence[tuple[AnyArray, AnyArray]]


class QuantisedNetwork(NamedTuple):
    """Dense layers with ReLU between them, in integers: scales are powers of two.

    Attributes:
      kernels: per layer `[d_in, d_out]` int32, of `bits` bits with sign.
      biases: per layer `[d_out]` int32, in units of the layer's accumulators.
      shifts: per layer but the last, by how many bits its accumulators are shifted to the right.
      input_bits: an input x becomes round(x 2^input_bits).
      output_bits: outputs are the last accumulators times 2^-output_bits.
      bits: of weights and activations.
    """

    kernels: tuple[Int[Array, "i o"], ...]
    biases: tuple[Int[Array, " o"], ...]
    shifts: tuple[int, ...]
    input_bits: int
    output_bits: int
    bits: int

    @property
    def largest(self) -> int:
        """The largest activation, 2^(bits - 1) - 1."""
        return 2 ** (self.bits - 1) - 1

    @property
    def commitment(self) -> bytes:
        """The Merkle root over kernels, biases and all that else says what is computed."""
        scales = np.array([self.bits, self.input_bits, self.output_bits, *self.shifts], np.int32)
        return merkle_root([scales, *self.kernels, *self.biases])


def quantise(layers: Layers, inputs: Float[AnyArray, "B d"], *, bits: int = 8) -> QuantisedNetwork:
    """A network of dense layers in integers of few bits, with scales fitted to some inputs.

        weights      W -> round(W 2^w),   w the largest with max |W| 2^w <= 2^(bits - 1) - 1
        activations  h -> round(h 2^a),   a likewise, of the largest activation that `inputs` cause
        layer        acc = W h + b in units of 2^-(a + w), exact;  h' = clip(round(acc 2^-shift), 0,
        largest)

    Args:
      layers: pairs (kernel `[d_in, d_out]`, bias `[d_out]`); ReLU stands between them.
      inputs: `[B, d]`, what scales are fitted to.
      bits: in [2, 12], of weights and activations, with sign.

    Raises:
      TypeError, ValueError: naming the argument; layers whose widths do not fit together; accumulators
        that would not fit in 31 bits.
    """
    validation.integer("bits", bits, low=2, high=12)
    kernels, biases = require_layers(layers)
    given = validation.array("inputs", inputs, kind="real", shape=("B", kernels[0].shape[0]))
    largest = 2 ** (bits - 1) - 1
    h = np.asarray(given, np.float64)
    scale = _fitting(h, largest)
    first, shifts = scale, list[int]()
    whole, wide = list[np.ndarray](), list[np.ndarray]()
    for place, (kernel, bias) in enumerate(zip(kernels, biases, strict=True)):
        own = _fitting(kernel, largest)
        whole.append(np.round(kernel * 2.0**own))
        wide.append(np.round(bias * 2.0 ** (scale + own)))
        bound = np.abs(whole[-1]).sum(0).max() * largest + np.abs(wide[-1]).max()
        if bound >= 2**30:
            raise ValueError(
                f"layers[{place}] must have accumulators below 2^30, got up to {bound:.3g}. Use fewer "
                "bits."
            )
        accumulated = scale + own
        if place == len(kernels) - 1:
            return QuantisedNetwork(
                tuple(jnp.asarray(one, jnp.int32) for one in whole),
                tuple(jnp.asarray(one, jnp.int32) for one in wide),
                tuple(shifts),
                first,
                accumulated,
                int(bits),
            )
        h = np.maximum(h @ kernel + bias, 0.0)
        scale = min(_fitting(h, largest), accumulated)
        shifts.append(accumulated - scale)
    raise AssertionError("layers are at least one")


def require_layers(layers: Any) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Kernels and biases in float64, refused where they make no network."""
    kernels, biases = list[np.ndarray](), list[np.ndarray]()
    for place, pair in enumerate(
        validation.sequence("layers", layers, "pairs (kernel, bias)", fix="See layers_of.")
    ):
        if not isinstance(pair, (tuple, list)) or len(pair) != 2:
            raise TypeError(
                f"layers[{place}] must be a pair (kernel, bias), got {validation.shown(pair)}."
            )
        wanted: Any = kernels[-1].shape[1] if kernels else "i"
        kernel = validation.array(
            f"layers[{place}] kernel", pair[0], kind="real", shape=(wanted, "o")
        )
        bias = validation.array(
            f"layers[{place}] bias", pair[1], kind="real", shape=(kernel.shape[1],)
        )
        kernels.append(np.asarray(kernel, np.float64))
        biases.append(np.asarray(bias, np.float64))
    return kernels, biases


def layers_of(params: Any) -> list[tuple[Array, Array]]:
    """The dense layers of a `dflax.models.MLP`'s weights, in order, as pairs (kernel, bias).

    Raises:
      TypeError, ValueError: naming the argument.
    """
    wanted = [f"Dense_{place}" for place in range(len(params))] if isinstance(params, dict) else []
    if not wanted or sorted(params) != sorted(wanted):
        found = sorted(map(str, params)) if isinstance(params, dict) else type(params).__name__
        raise TypeError(
            f"params must be the weights of a dflax.models.MLP, got {str(found)[:80]}. Pass "
            'model.init(key, inputs)["params"], or pairs (kernel, bias) where layers are asked for.'
        )
    return [(params[name]["kernel"], params[name]["bias"]) for name in wanted]


def integers(network: QuantisedNetwork, inputs: Float[AnyArray, "B d"]) -> Int[Array, "B d"]:
    """Inputs as the integers that a network computes with."""
    scaled = jnp.round(jnp.asarray(inputs, jnp.float32) * 2.0**network.input_bits)
    return jnp.clip(scaled, -network.largest, network.largest).astype(jnp.int32)


def accumulators(
    network: QuantisedNetwork, inputs: Int[Array, "B d"]
) -> tuple[Int[Array, "B o"], ...]:
    """The products of all layers for integer inputs, biases left out: what a proof is about."""
    h, found = inputs, []
    for place, kernel in enumerate(network.kernels):
        found.append(jnp.matmul(h, kernel, preferred_element_type=jnp.int32))
        if place < len(network.shifts):
            h = activations(network, place, found[-1])
    return tuple(found)


def activations(
    network: QuantisedNetwork, place: int, products: Int[Array, "B o"]
) -> Int[Array, "B o"]:
    """What goes into the next layer: bias, rounding shift, ReLU and the upper bound."""
    return jnp.clip(rescaled(network, place, products)[0], 0, network.largest)


def rescaled(
    network: QuantisedNetwork, place: int, products: Int[Array, "B o"]
) -> tuple[Int[Array, "B o"], Int[Array, "B o"]]:
    """Quotient and remainder of the rounding shift: `acc + 2^(s-1) = quotient 2^s + remainder`."""
    shift = network.shifts[place]
    half = (1 << shift) >> 1
    shifted = products + network.biases[place] + half
    quotient = jax.lax.shift_right_arithmetic(shifted, jnp.int32(shift))
    return quotient, shifted - (quotient << shift)


def quantised_apply(
    network: QuantisedNetwork, inputs: Float[AnyArray, "B d"]
) -> Float[Array, "B o"]:
    """Outputs of a quantised network for real inputs.

    Raises:
      TypeError, ValueError: naming the argument.
    """
    require_network(network)
    shape = ("B", network.kernels[0].shape[0])
    given = jnp.asarray(validation.array("inputs", inputs, kind="real", shape=shape))
    last = accumulators(network, integers(network, given))[-1] + network.biases[-1]
    return last.astype(jnp.float32) * 2.0**-network.output_bits


def require_network(network: Any) -> None:
    """Refuse what is no quantised network."""
    validation.instance("network", network, QuantisedNetwork, "Make one with quantise.")


def _fitting(values: np.ndarray, largest: int) -> int:
    """The most bits after the point with which the values fit."""
    most = float(np.abs(values).max())
    return int(np.floor(np.log2(largest / most))) if most > 0 else 0
