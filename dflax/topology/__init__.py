"""Graphs, mixing matrices, spectra and time-varying schedules."""

from dflax.topology import intensity
from dflax.topology.families import (
    circulant,
    complete,
    complete_bipartite,
    exponential,
    exponential_offsets,
    hypercube,
    path,
    ring,
    star,
    torus,
)
from dflax.topology.gossip_rates import (
    GossipRates,
    given_rates,
    optimal_rates,
    switching,
    switching_graphs,
    uniform_rates,
)
from dflax.topology.graph import Graph, from_adjacency, from_edges, from_shifts
from dflax.topology.laplacian import chi_1, chi_2, effective_resistances, laplacian
from dflax.topology.matcha import Matcha, matcha, matcha_plan, matchings
from dflax.topology.mixing_matrix import (
    MixingMatrix,
    column_stochastic,
    from_dense,
    lazy,
    max_degree,
    metropolis,
    uniform,
)
from dflax.topology.random_graphs import erdos_renyi, geometric, random_regular
from dflax.topology.schedule import (
    Schedule,
    Slots,
    periodic,
    random_matching,
    random_neighbours,
    random_regular_each_round,
    round_robin,
)
from dflax.topology.spectrum import eigenvalues, second_eigenvalue, spectral_gap

__all__ = [
    "GossipRates",
    "Graph",
    "Matcha",
    "MixingMatrix",
    "Schedule",
    "Slots",
    "chi_1",
    "chi_2",
    "circulant",
    "column_stochastic",
    "complete",
    "complete_bipartite",
    "effective_resistances",
    "eigenvalues",
    "erdos_renyi",
    "exponential",
    "exponential_offsets",
    "from_adjacency",
    "from_dense",
    "from_edges",
    "from_shifts",
    "geometric",
    "given_rates",
    "hypercube",
    "intensity",
    "laplacian",
    "lazy",
    "matcha",
    "matcha_plan",
    "matchings",
    "max_degree",
    "metropolis",
    "optimal_rates",
    "path",
    "periodic",
    "random_matching",
    "random_neighbours",
    "random_regular",
    "random_regular_each_round",
    "ring",
    "round_robin",
    "second_eigenvalue",
    "spectral_gap",
    "star",
    "switching",
    "switching_graphs",
    "torus",
    "uniform",
    "uniform_rates",
]


def __dir__() -> list[str]:
    return __all__
