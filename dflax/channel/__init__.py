"""What happens to messages on their way."""

from dflax.channel.broadcast import broadcast
from dflax.channel.channel import (
    Channel,
    Sending,
    chain,
    finite_only,
    gaussian_noise,
    lossy,
    named,
    only,
    perfect,
)
from dflax.channel.compression import compression, uncompressed
from dflax.channel.largest import largest
from dflax.channel.lattice import lattice
from dflax.channel.low_rank import powersgd
from dflax.channel.memory import differences, error_feedback
from dflax.channel.quantized import qsgd, sign
from dflax.channel.sparse import random_k, top_k

__all__ = [
    "Channel",
    "Sending",
    "broadcast",
    "chain",
    "compression",
    "differences",
    "error_feedback",
    "finite_only",
    "gaussian_noise",
    "largest",
    "lattice",
    "lossy",
    "named",
    "only",
    "perfect",
    "powersgd",
    "qsgd",
    "random_k",
    "sign",
    "top_k",
    "uncompressed",
]


def __dir__() -> list[str]:
    return __all__
