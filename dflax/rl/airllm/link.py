"""A radio link by its Shannon capacity: what it carries in the time there is, and what ranks cost."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key

from dflax import validation
from dflax.data.dataset import AnyArray


class Conditions(NamedTuple):
    """What the link is like for one transmission.

    Attributes:
      ratio: `[]` int32, which of the link's signal-to-noise ratios.
      bandwidth: `[]` int32, which of its bandwidths.
    """

    ratio: Int[Array, ""]
    bandwidth: Int[Array, ""]


class RadioLink(NamedTuple):
    """A link whose conditions are drawn anew for every transmission; made by `radio_link`.

    Attributes:
      ratios: `[S]` signal-to-noise ratios in dB.
      bandwidths: `[B]` in Hz.
      latency: tau, `[]` seconds that a transmission may take.
      bits: `[]` bits of a parameter.
    """

    ratios: Float[Array, " S"]
    bandwidths: Float[Array, " B"]
    latency: Float[Array, ""]
    bits: Float[Array, ""]

    def draw(self, key: Key[Array, ""]) -> Conditions:
        """One of the ratios and one of the bandwidths, each as likely as the others."""
        keys = jax.random.split(key)
        return Conditions(
            jax.random.randint(keys[0], (), 0, len(self.ratios)),
            jax.random.randint(keys[1], (), 0, len(self.bandwidths)),
        )

    def budget(self, conditions: Conditions) -> Float[Array, ""]:
        """How many parameters arrive in time: `C tau / bits`."""
        rate = capacity(self.ratios[conditions.ratio], self.bandwidths[conditions.bandwidth])
        return rate * self.latency / self.bits

    def observed(self, conditions: Conditions) -> Float[Array, "2"]:
        """Ratio and bandwidth, each scaled to [0, 1] over its list; 0.5 where the list has one value."""

        def scaled(values: Array, at: Array) -> Array:
            low, span = jnp.min(values), jnp.ptp(values)
            return jnp.where(span > 0, (values[at] - low) / jnp.where(span > 0, span, 1.0), 0.5)

        return jnp.stack(
            [
                scaled(self.ratios, conditions.ratio),
                scaled(self.bandwidths, conditions.bandwidth),
            ]
        )


def radio_link(
    ratios: Float[AnyArray, " S"] | tuple[float, ...] = (-5.0, 0.0, 5.0, 10.0, 15.0),
    bandwidths: Float[AnyArray, " B"] | tuple[float, ...] = (100e6,),
    *,
    latency: float | Float[Array, ""] = 1.0,
    bits: float | Float[Array, ""] = 32.0,
) -> RadioLink:
    """A link that carries `C = b log2(1 + 10^(SNR / 10))` bits a second.

    Args:
      ratios: signal-to-noise ratios in dB, `[S]`, of which each transmission meets one; traceable.
      bandwidths: b in Hz, `[B]`, each > 0; traceable.
      latency: tau, seconds that a transmission may take, > 0; traceable.
      bits: of a parameter, > 0; traceable.

    Raises:
      TypeError, ValueError: naming the argument.
    """
    for name, values in (("ratios", ratios), ("bandwidths", bandwidths)):
        validation.array(name, values, kind="real", shape=("S",))
    validation.real("bandwidths", bandwidths, low=0.0, low_open=True)
    validation.real("latency", latency, low=0.0, low_open=True, scalar=True)
    validation.real("bits", bits, low=0.0, low_open=True, scalar=True)
    return RadioLink(*(jnp.asarray(part, float) for part in (ratios, bandwidths, latency, bits)))


def capacity(
    ratio: float | Float[AnyArray, "..."], bandwidth: float | Float[AnyArray, "..."]
) -> Float[Array, "..."]:
    """Shannon's bound in bits a second: `b log2(1 + 10^(SNR / 10))`.

    Args:
      ratio: of signal to noise in dB.
      bandwidth: b in Hz, > 0; of the same shape, or one of them a number.

    Raises:
      TypeError, ValueError: naming the argument.
    """
    validation.real("ratio", ratio)
    validation.real("bandwidth", bandwidth, low=0.0, low_open=True)
    if np.ndim(ratio) and np.ndim(bandwidth) and np.shape(ratio) != np.shape(bandwidth):
        raise ValueError(
            f"bandwidth must be one number or have the shape of ratio, {np.shape(ratio)}, got "
            f"{np.shape(bandwidth)}."
        )
    power = 10.0 ** (jnp.asarray(ratio, float) / 10.0)
    return jnp.asarray(bandwidth, float) * jnp.log1p(power) / jnp.log(2.0)


def transmitted(ranks: Int[AnyArray, " P"], sizes: Int[AnyArray, " P"]) -> Float[Array, ""]:
    """How many parameters adapters of these ranks have: `n(r) = sum_p r_p (in_p + out_p + 1)`.

    Args:
      ranks: r >= 0, `[P]`; traceable.
      sizes: `[P]`, in_p + out_p + 1: what one unit of rank has in each matrix.

    Returns:
      `[]` in floating point, exact below 2^24 in float32.

    Raises:
      TypeError, ValueError: naming the argument.
    """
    shape = validation.array("sizes", sizes, kind="integer", shape=("P",), low=1).shape
    validation.array("ranks", ranks, kind="integer", shape=shape, low=0)
    return jnp.asarray(ranks, float) @ jnp.asarray(sizes, float)
