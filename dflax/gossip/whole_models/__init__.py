"""Mixers of whole models: units are matched, statistics estimated afresh."""

__all__: list[str] = []  # what users need of it, a package above imports
