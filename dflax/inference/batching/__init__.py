"""Replicas that serve by continuous batching, from event to event."""

from dflax.inference.batching.engine import Block, Replica, Running, continuous_batching, replica
from dflax.inference.batching.policies import (
    Batching,
    chunked_prefill,
    decode_only,
    prefill_first,
)

__all__ = [
    "Batching",
    "Block",
    "Replica",
    "Running",
    "chunked_prefill",
    "continuous_batching",
    "decode_only",
    "prefill_first",
    "replica",
]


def __dir__() -> list[str]:
    return __all__
