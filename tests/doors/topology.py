"""Right calls of graphs, mixing matrices and schedules."""

import numpy as np

from doors.things import GRAPH, MATRIX, RATES, N

PAIRS = np.array([[0, 1], [1, 2]])
ADJACENCY = np.array([[0, 1, 1], [1, 0, 1], [1, 1, 0]])
OVER_TIME = {"start": 1.0, "end": 2.0, "rounds": 10}

CALLS = {
    "topology.chi_1": {"graph": GRAPH},
    "topology.chi_2": {"graph": GRAPH},
    "topology.circulant": {"nodes": 5, "offsets": (1, 2)},
    "topology.column_stochastic": {"graph": GRAPH},
    "topology.complete": {"nodes": N},
    "topology.complete_bipartite": {"first": 2, "second": 3},
    "topology.effective_resistances": {"graph": GRAPH},
    "topology.eigenvalues": {"matrix": MATRIX},
    "topology.erdos_renyi": {"nodes": 6, "probability": 0.9},
    "topology.exponential": {"nodes": N},
    "topology.exponential_offsets": {"nodes": N},
    "topology.from_adjacency": {"adjacency": ADJACENCY},
    "topology.from_dense": {"matrix": np.full((3, 3), 1 / 3)},
    "topology.from_edges": {"nodes": 3, "edges": PAIRS},
    "topology.from_shifts": {"shape": (3, 2), "shifts": ((1, 0), (0, 1)), "name": "grid"},
    "topology.geometric": {"nodes": 6, "radius": 0.9},
    "topology.given_rates": {"graph": GRAPH, "rates": 1.0},
    "topology.hypercube": {"nodes": N},
    "topology.intensity.constant": {"r": 1.0},
    "topology.intensity.cosine": OVER_TIME,
    "topology.intensity.decaying": OVER_TIME,
    "topology.intensity.late_growth": OVER_TIME,
    "topology.intensity.linear": OVER_TIME,
    "topology.intensity.switched": {**OVER_TIME, "point": 0.5},
    "topology.intensity.window": {**OVER_TIME, "point": 0.5, "width": 0.2},
    "topology.laplacian": {"graph": GRAPH},
    "topology.lazy": {"matrix": MATRIX},
    "topology.matcha": {"graph": GRAPH, "budget": 0.5},
    "topology.matcha_plan": {"graph": GRAPH, "budget": 0.5},
    "topology.matchings": {"graph": GRAPH},
    "topology.max_degree": {"graph": GRAPH},
    "topology.metropolis": {"graph": GRAPH},
    "topology.optimal_rates": {"graph": GRAPH},
    "topology.path": {"nodes": N},
    "topology.periodic": {"matrices": [MATRIX, MATRIX]},
    "topology.random_matching": {"nodes": N},
    "topology.random_neighbours": {"nodes": N, "r": 1.0, "first": [0]},
    "topology.random_regular": {"nodes": 6, "degree": 3},
    "topology.random_regular_each_round": {"nodes": 6, "degree": 3},
    "topology.round_robin": {"nodes": 6},
    "topology.ring": {"nodes": 5},
    "topology.second_eigenvalue": {"matrix": MATRIX},
    "topology.spectral_gap": {"matrix": MATRIX},
    "topology.star": {"nodes": N},
    "topology.switching": {"phases": [RATES, RATES]},
    "topology.switching_graphs": {"graphs": [GRAPH, GRAPH], "dwell": 0.1},
    "topology.torus": {"rows": 2, "columns": 3},
    "topology.uniform": {"graph": GRAPH},
    "topology.uniform_rates": {"graph": GRAPH},
}
