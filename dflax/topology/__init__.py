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
)
from dflax.topology.spectrum import eigenvalues, second_eigenvalue, spectral_gap
