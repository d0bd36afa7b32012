"""From which rank of prefill each rank of decoding pulls keys and values."""

import numpy as np

from dflax import validation


def prefill_ranks(
    *, prefill_tensor: int = 32, decode_tensor: int = 1, decode_data: int = 320
) -> np.ndarray:
    """The prefill rank of each decode rank, so that all prefill ranks send alike.

        r = prefill_tensor / decode_tensor,    g = decode_data / r
        rank(d, t) = floor(d / g) decode_tensor + t

    Args:
      prefill_tensor: ranks among which a prefill instance splits its attention, >= 1.
      decode_tensor: the same in decoding, >= 1; must divide `prefill_tensor`.
      decode_data: groups of ranks that decode sequences of their own, >= 1; r must divide it.

    Returns:
      `[decode_data, decode_tensor]` int32.

    Raises:
      TypeError, ValueError: naming the argument.

    References:
      Zuo et al., arXiv 2506.12708.
    """
    validation.integer("prefill_tensor", prefill_tensor, low=1)
    validation.integer("decode_tensor", decode_tensor, low=1)
    validation.integer("decode_data", decode_data, low=1, high=1 << 20)
    ratio, rest = divmod(prefill_tensor, decode_tensor)
    if rest:
        raise ValueError(
            f"decode_tensor must divide prefill_tensor, got {decode_tensor} and {prefill_tensor}."
        )
    group, rest = divmod(decode_data, ratio)
    if rest or not group:
        raise ValueError(
            f"decode_data must be a multiple of prefill_tensor / decode_tensor = {ratio}, got "
            f"{decode_data}."
        )
    ahead = np.arange(decode_data, dtype=np.int32) // group * decode_tensor
    return ahead[:, None] + np.arange(decode_tensor, dtype=np.int32)
