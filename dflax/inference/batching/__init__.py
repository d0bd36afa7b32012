"""Replicas that serve by continuous batching, from event to event."""

from dflax.inference.batching.engine import Running, continuous_batching
from dflax.inference.batching.policies import (
    Batching,
    chunked_prefill,
    decode_only,
    prefill_first,
)

__all__ = [
    "Batching",
    "Running",
    "chunked_prefill",
    "continuous_batching",
    "decode_only",
    "prefill_first",
]


def __dir__() -> list[str]:
    return __all__
