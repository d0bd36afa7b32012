"""Inference as init/step: serving simulators, selection, efficiency, swarms."""

from dflax.inference import decoding

__all__ = ["decoding"]


def __dir__() -> list[str]:
    return __all__
