"""Mixers of whole models: units are matched, statistics estimated afresh."""
