"""Sparse coding with discrete, maximal and spike-and-slab causes, by expectation truncation."""

from dflax.sparse_coding.annealing import Annealing, annealing
from dflax.sparse_coding.expectation_truncation import Joints, Model, expectation_truncation
from dflax.sparse_coding.linear import Discrete, Sums, bsc, discrete_start, dsc, tsc
from dflax.sparse_coding.maximal import MaximalSums, mca, mmca
from dflax.sparse_coding.spike_and_slab import SlabSums, SpikeAndSlab, gsc, slab_start
from dflax.sparse_coding.states import Truncation, mass_within, truncation

__all__ = [
    "Annealing",
    "Discrete",
    "Joints",
    "MaximalSums",
    "Model",
    "SlabSums",
    "SpikeAndSlab",
    "Sums",
    "Truncation",
    "annealing",
    "bsc",
    "discrete_start",
    "dsc",
    "expectation_truncation",
    "gsc",
    "mass_within",
    "mca",
    "mmca",
    "slab_start",
    "truncation",
    "tsc",
]


def __dir__() -> list[str]:
    return __all__
