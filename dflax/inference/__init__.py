"""Inference as init/step: serving simulators, selection, efficiency, swarms."""

__all__: list[str] = []


def __dir__() -> list[str]:
    return __all__
