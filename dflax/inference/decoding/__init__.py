"""A language model that is served: key-value caches, prefill, and decoding in one program."""

from dflax.inference.decoding.cache import Cache, empty_cache, release, share_prefix
from dflax.inference.decoding.decoder import Decoder, compiled, decoder, greedy, sampled

__all__ = [
    "Cache",
    "Decoder",
    "compiled",
    "decoder",
    "empty_cache",
    "greedy",
    "release",
    "sampled",
    "share_prefix",
]


def __dir__() -> list[str]:
    return __all__
