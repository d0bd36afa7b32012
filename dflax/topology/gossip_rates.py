"""How often each link of a graph communicates: rates that asynchronous accelerated gossip may use."""

import dataclasses
import warnings
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

from dflax import validation
from dflax.topology.graph import (
    CONNECT,
    Graph,
    from_edges,
    require_connected,
    require_graph,
    require_undirected,
)
from dflax.topology.laplacian import chi_1, chi_2

# A link that a solver switches off keeps this share of all communications: it still counts as one.
LEAST_SHARE = 1e-9


@dataclasses.dataclass(frozen=True, eq=False)
class GossipRates:
    """Links that communicate at the spikes of independent Poisson processes.

    With `Lambda = sum over links (i, j) of rate_ij (e_i - e_j)(e_i - e_j)'`, chi_1 is 1 / (its least
    positive eigenvalue) and chi_2 half the largest effective resistance of a link. Methods accelerate
    both gossip and optimisation when `2 chi_1 chi_2 <= 1`. Built by `uniform_rates`, `optimal_rates`,
    `given_rates` or `switching`.

    Attributes:
      graphs: the graphs, each for `dwell` units of time, over and over.
      rates: for each graph `[m]`, communications per unit of time of each of its `links`.
      chi_1: of the rates; of several graphs the worst.
      chi_2: the same.
      dwell: time after which the next graph takes over; of no meaning with one graph.
    """

    graphs: tuple[Graph, ...]
    rates: tuple[Float[np.ndarray, " m"], ...]
    chi_1: float
    chi_2: float
    dwell: float = 1.0

    @property
    def nodes(self) -> int:
        """Number of nodes n."""
        return self.graphs[0].nodes

    @property
    def total(self) -> float:
        """Communications per unit of time, on average over the graphs."""
        return float(np.mean([rates.sum() for rates in self.rates]))

    @property
    def admissible(self) -> bool:
        """Whether `2 chi_1 chi_2 <= 1`, up to rounding."""
        return 2.0 * self.chi_1 * self.chi_2 <= 1.0 + 1e-6

    def scaled(self) -> "GossipRates":
        """All rates times the one number that makes `2 chi_1 chi_2 = 1`."""
        factor = float(np.sqrt(2.0 * self.chi_1 * self.chi_2))
        rates = tuple(factor * one for one in self.rates)
        return dataclasses.replace(
            self, rates=rates, chi_1=self.chi_1 / factor, chi_2=self.chi_2 / factor
        )


def given_rates(graph: Graph, rates: float | Float[np.ndarray, " m"]) -> GossipRates:
    """Rates as they are, with their chi_1 and chi_2.

    Args:
      graph: undirected and connected, of at most 3000 nodes.
      rates: > 0: one for all links, or `[m]` in the order of `graph.links`.

    Returns:
      `GossipRates`, admissible or not.

    Raises:
      ValueError: a directed or disconnected graph, too many nodes, bad rates.
    """
    require_connected(graph, "graph", CONNECT)
    require_undirected(graph, "rates")
    first, second = chi_1(graph, rates), chi_2(graph, rates)
    each = np.broadcast_to(np.asarray(rates, np.float64), (len(graph.links),))
    return GossipRates((graph,), (each,), first, second)


def uniform_rates(graph: Graph) -> GossipRates:
    """The same rate for all links, as small as `2 chi_1 chi_2 <= 1` allows.

    In all `sqrt(2 chi_1[L/m] chi_2[L/m])` communications per unit of time, L the Laplacian of the m
    links: n - 1 on a star, (n - 1) / sqrt 2 on a complete graph.

    Args:
      graph: undirected and connected, of at most 3000 nodes unless it is made of shifts.

    Returns:
      `GossipRates` with `2 chi_1 chi_2 = 1`.

    Raises:
      ValueError: a directed or disconnected graph, too many nodes.

    References:
      Nabli & Oyallon, DADAO, arXiv 2208.00779.
    """
    return given_rates(graph, 1.0).scaled()


def optimal_rates(graph: Graph, *, relaxed: bool = False) -> GossipRates:
    """The rates with the fewest communications per unit of time: an exact semidefinite program.

    With J = 11'/n and b_e = e_i - e_j for a link e = (i, j), over rates >= 0 and a number a:

        min sum_e rate_e    s.t.    Lambda >= a (I - J),    [[Lambda + J, b_e], [b_e', a]] >= 0 for all e

    The first constraint says chi_1 <= 1/a, the others (Schur complements) chi_2 <= a/2, so together
    2 chi_1 chi_2 <= 1; conversely a = 1/chi_1 fits any admissible rates. Nothing is relaxed.

    Args:
      graph: undirected and connected; some tens of nodes take well under a second, the program grows
        with m (n + 1)^2.
      relaxed: bound chi_2 by chi_1 instead, `Lambda >= sqrt(2) (I - J)`: one constraint for larger
        graphs. The result may be worse than uniform rates, which are then returned.

    Returns:
      `GossipRates` with `2 chi_1 chi_2 = 1`, the better of the solution and uniform rates. Where all
      links are alike (star, ring, complete graph) uniform rates are optimal.

    Raises:
      ImportError: cvxpy is not installed (`pip install dflax[rates]`).
      ValueError: a directed or disconnected graph.
      RuntimeError: the solver gave up.

    References:
      Nabli & Oyallon, DADAO, arXiv 2208.00779, which solves a relaxation.
    """
    validation.flag("relaxed", relaxed)
    uniform = uniform_rates(graph)
    try:
        import cvxpy
    except ImportError as error:
        raise ImportError(
            "optimal_rates needs the solver cvxpy: pip install dflax[rates]. Or use uniform_rates."
        ) from error
    nodes, links = graph.nodes, graph.links
    incidence = np.zeros((nodes, len(links)))
    incidence[links[:, 0], np.arange(len(links))] = 1.0
    incidence[links[:, 1], np.arange(len(links))] = -1.0
    ones = np.full((nodes, nodes), 1.0 / nodes)
    # In units of the uniform solution, so that the numbers are of order 1 for any graph.
    scale = uniform.total / len(links)
    rates, gap = cvxpy.Variable(len(links), nonneg=True), cvxpy.Variable()
    weighted = incidence @ cvxpy.diag(rates * scale) @ incidence.T
    if relaxed:
        constraints = [weighted + np.sqrt(2.0) * ones >> np.sqrt(2.0) * np.eye(nodes)]
    else:
        constraints = [weighted + gap * ones >> gap * np.eye(nodes)]
        corner = cvxpy.reshape(gap, (1, 1), order="C")
        for column in incidence.T:
            border = column[:, None]
            constraints.append(cvxpy.bmat([[weighted + ones, border], [border.T, corner]]) >> 0)
    problem = cvxpy.Problem(cvxpy.Minimize(cvxpy.sum(rates)), constraints)
    with warnings.catch_warnings():
        # A solution that is less accurate than asked for is made admissible by the scaling below.
        warnings.filterwarnings("ignore", "Solution may be inaccurate")
        problem.solve(solver=cvxpy.CLARABEL)
    if rates.value is None:
        raise RuntimeError(
            f"the solver found no rates for {graph.name}: {problem.status}. Use uniform_rates."
        )
    least = LEAST_SHARE * uniform.total
    solved = given_rates(graph, np.maximum(rates.value * scale, least)).scaled()
    return solved if solved.total < uniform.total else uniform


def switching(phases: Sequence[GossipRates], *, dwell: float | None = None) -> GossipRates:
    """Graphs that take turns: each for `dwell` units of time, then again from the first.

    Every phase keeps its own rates; chi_1 and chi_2 are the worst of all phases, which is what the
    theory asks of a graph that changes. Graphs that are connected only together, over a period, are
    joined by `switching_graphs`.

    Args:
      phases: at least one, each of one graph, all with the same n.
      dwell: > 0; default 1 / chi_1.

    Returns:
      `GossipRates`; call `scaled()` to restore `2 chi_1 chi_2 = 1` for the worst values.

    Raises:
      TypeError, ValueError: no phases, or phases of different sizes.
    """
    fix = "Make one with uniform_rates(graph)."
    phases = validation.sequence("phases", phases, "GossipRates", fix=fix)
    for number, phase in enumerate(phases):
        validation.instance(f"phases[{number}]", phase, GossipRates, fix)
    sizes = {phase.nodes for phase in phases}
    if len(sizes) > 1:
        raise ValueError(f"phases must have the same number of nodes, got {sorted(sizes)}.")
    worst = max(phase.chi_1 for phase in phases)
    dwell = 1.0 / worst if dwell is None else dwell
    validation.real("dwell", dwell, low=0.0, low_open=True, scalar=True)
    return GossipRates(
        tuple(graph for phase in phases for graph in phase.graphs),
        tuple(rates for phase in phases for rates in phase.rates),
        worst,
        max(phase.chi_2 for phase in phases),
        float(dwell),
    )


def switching_graphs(graphs: Sequence[Graph], *, dwell: float) -> GossipRates:
    """Graphs that take turns and are connected over a period, each of them alone perhaps not.

    All links share one rate. chi_1 and chi_2 are those of the mean of the graphs' Laplacians over a
    period, scaled to `2 chi_1 chi_2 = 1`: what gossip sees when the graphs change faster than it mixes
    (`dwell` well below 1). With a slow change there is no bound for graphs that do not connect.

    Args:
      graphs: T >= 1 undirected graphs of one n whose union is connected.
      dwell: > 0, time for which each graph stays.

    Returns:
      `GossipRates`.

    Raises:
      ValueError: a directed graph, different sizes, or a node that is out of reach over a whole period.
    """
    graphs = validation.sequence("graphs", graphs, "graphs", fix="Make one with topology.ring(n).")
    for number, graph in enumerate(graphs):
        require_graph(graph, f"graphs[{number}]")
        require_undirected(graph, "graphs")
    validation.real("dwell", dwell, low=0.0, low_open=True, scalar=True)
    nodes = graphs[0].nodes
    if any(graph.nodes != nodes for graph in graphs):
        raise ValueError(
            f"graphs must be of one size, got {[graph.nodes for graph in graphs]} nodes."
        )
    union = from_edges(
        nodes,
        np.concatenate([graph.links for graph in graphs]),
        disconnected=True,
        name=f"the union of {len(graphs)} graphs over a period",
    )
    require_connected(union, fix="Add edges to one of the graphs.")
    codes = union.links[:, 0].astype(np.int64) * nodes + union.links[:, 1]
    present = np.zeros(len(codes))
    for graph in graphs:
        own = graph.links[:, 0].astype(np.int64) * nodes + graph.links[:, 1]
        present[np.searchsorted(codes, own)] += 1.0 / len(graphs)
    mean = given_rates(union, present).scaled()
    factor = float(mean.rates[0][0] / present[0])
    rates = tuple(np.full(len(graph.links), factor) for graph in graphs)
    return GossipRates(tuple(graphs), rates, mean.chi_1, mean.chi_2, float(dwell))
