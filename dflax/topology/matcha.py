"""MATCHA: a graph as matchings that are active at random, those that hold it together most often."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key

from dflax import validation
from dflax.topology.graph import CONNECT, Graph, require_connected, require_undirected
from dflax.topology.schedule import Schedule, Slots

# Relative gap between the bound and the best connectivity found at which the search ends.
GAP = 1e-6
MOST_CUTS = 500


class Matcha(NamedTuple):
    """What MATCHA prepares before training; `matcha` makes a schedule of it.

    Attributes:
      partners: `[n, M]` int32, whom node i meets in matching j; itself if nobody.
      probabilities: `[M]` p_j in [0, 1], with which matching j is active, independently.
      step: alpha > 0 of `W_t = I - alpha sum_j B_j L_j`.
      connectivity: lambda_2 of the expected Laplacian `sum_j p_j L_j`.
      contraction: `|E W'W - J|` < 1, by which a round shrinks the expected squared disagreement.
    """

    partners: Int[np.ndarray, "n M"]
    probabilities: Float[np.ndarray, " M"]
    step: float
    connectivity: float
    contraction: float


def matchings(graph: Graph) -> list[Int[np.ndarray, "E_j 2"]]:
    """A graph's edges as disjoint matchings: in each of them a node has at most one neighbour.

    A proper edge colouring, found as a DSATUR colouring of the line graph: at most 2 D - 1 matchings,
    D the largest degree, and mostly D or D + 1.

    Args:
      graph: undirected.

    Returns:
      M arrays of edges (i, j), i < j, that together are all edges, each once.

    Raises:
      ValueError: a directed graph.
    """
    import networkx

    require_undirected(graph, "matchings")
    ahead = graph.senders < graph.receivers
    edges = sorted(zip(graph.senders[ahead].tolist(), graph.receivers[ahead].tolist(), strict=True))
    lines = networkx.line_graph(networkx.Graph(edges))
    colors = networkx.greedy_color(lines, strategy="DSATUR")
    found: list[list[tuple[int, int]]] = [[] for _ in range(max(colors.values(), default=-1) + 1)]
    for (i, j), color in colors.items():
        found[color].append((min(i, j), max(i, j)))
    return [np.array(sorted(own), np.int32) for own in found]


def matcha_plan(graph: Graph, budget: float) -> Matcha:
    """The matchings of a graph, their best probabilities under a budget, and the best step.

    With L_j the Laplacian of matching j, solves

        maximise lambda_2(sum_j p_j L_j)    over 0 <= p <= 1, sum_j p_j <= budget M
        minimise |E W'W - J|                over alpha > 0, J = 11'/n

    The first is a concave problem, solved by cutting planes: `lambda_2 <= sum_j p_j u'L_j u` for every
    unit u orthogonal to 1, so that linear programs bound it from above until the eigenvectors u at
    their solutions reach the bound to 1e-6. The second is a convex function of one number,
    `E W'W = I - 2 alpha Lb + alpha^2 (Lb^2 + 2 sum_j p_j (1 - p_j) L_j)`, Lb the expected Laplacian.

    Args:
      graph: the base graph, undirected and connected.
      budget: CB in (0, 1], the expected share of matchings that are active in a round.

    Returns:
      A `Matcha`.

    Raises:
      TypeError, ValueError: naming the argument.
      RuntimeError: cutting planes that do not meet, which a report of the graph would help to mend.

    References:
      Wang et al., MATCHA: Speeding Up Decentralized SGD via Matching Decomposition Sampling,
      arXiv 1905.09435.
    """
    require_connected(graph, "graph", CONNECT)
    validation.probability("budget", budget, low_open=True)
    found = matchings(graph)
    nodes = graph.nodes
    partners = np.repeat(np.arange(nodes, dtype=np.int32)[:, None], len(found), axis=1)
    for number, edges in enumerate(found):
        partners[edges[:, 0], number] = edges[:, 1]
        partners[edges[:, 1], number] = edges[:, 0]
    # A row of a node that meets nobody is 0. All live on what is orthogonal to 1.
    apart = np.linalg.qr(np.c_[np.ones(nodes), np.eye(nodes)[:, 1:]])[0][:, 1:]
    whole = (np.eye(nodes) - np.eye(nodes)[own] for own in partners.T)
    laplacians = np.stack([apart.T @ laplacian @ apart for laplacian in whole])
    probabilities, connectivity = _most_connected(laplacians, budget)
    step, contraction = _best_step(laplacians, probabilities)
    return Matcha(partners, probabilities, step, connectivity, contraction)


def matcha(graph: Graph, budget: float) -> Schedule:
    """Each round every matching of a graph is active with its own probability, p_j.

    `W_t = I - alpha sum_j B_j L_j`, symmetric, with B_j ~ Bernoulli(p_j). Links that hold the graph
    together are active most; in expectation a round sends `2 sum_j p_j |matching j|` models, about
    `budget` times what the whole graph would. At nodes of high degree the own weight may be negative.

    Args:
      graph: the base graph, undirected and connected.
      budget: CB in (0, 1]; 1 is the whole graph in every round, with the best constant weight.

    Returns:
      A `Schedule` with one slot per matching.

    Raises:
      TypeError, ValueError, RuntimeError: as `matcha_plan`.

    References:
      Wang et al., arXiv 1905.09435.
    """
    plan = matcha_plan(graph, budget)
    tables = (plan.partners, plan.probabilities, np.float64(plan.step))

    def draw(tables: Any, key: Key[Array, ""], index: Int[Array, ""]) -> Slots:
        partners, probabilities, step = map(jnp.asarray, tables)
        active = jax.random.uniform(key, probabilities.shape) < probabilities
        meets = partners != jnp.arange(graph.nodes)[:, None]
        return Slots(partners, jnp.where(active & meets, step, 0.0))

    return Schedule(graph.nodes, tables, draw, symmetric=True)


def _most_connected(
    laplacians: Float[np.ndarray, "M n-1 n-1"], budget: float
) -> tuple[Float[np.ndarray, " M"], float]:
    from scipy.optimize import linprog

    count = len(laplacians)
    trial = best = np.full(count, budget)
    best_value, bound, cuts = -1.0, np.inf, np.zeros((0, count))
    sums = np.append(np.ones(count), 0.0)[None]
    for _ in range(MOST_CUTS):
        values, vectors = np.linalg.eigh(np.tensordot(trial, laplacians, 1))
        if values[0] > best_value:
            best, best_value = trial, float(values[0])
        near = vectors[:, : max(4, count)]
        cuts = np.concatenate([cuts, np.einsum("ik,mij,jk->km", near, laplacians, near)])
        solved = linprog(
            np.append(np.zeros(count), -1.0),
            A_ub=np.concatenate([sums, np.c_[-cuts, np.ones(len(cuts))]]),
            b_ub=np.append(budget * count, np.zeros(len(cuts))),
            bounds=[(0, 1)] * count + [(0, None)],
        )
        bound = float(solved.x[-1])
        if bound - best_value <= GAP * bound:
            return best, best_value
        # Halfway to the best point so far: full steps of cutting planes swing from corner to corner.
        trial = 0.5 * (np.clip(solved.x[:-1], 0, 1) + best)
    raise RuntimeError(
        f"the connectivity of {count} matchings is bounded by {bound:g} but only {best_value:g} was "
        f"reached within {MOST_CUTS} cuts."
    )


def _best_step(
    laplacians: Float[np.ndarray, "M n-1 n-1"], probabilities: Float[np.ndarray, " M"]
) -> tuple[float, float]:
    from scipy.optimize import minimize_scalar

    mean = np.tensordot(probabilities, laplacians, 1)
    second = mean @ mean + 2 * np.tensordot(probabilities * (1 - probabilities), laplacians, 1)
    identity = np.eye(len(mean))

    def contraction(step: float) -> float:
        return float(np.linalg.eigvalsh(identity - 2 * step * mean + step**2 * second)[-1])

    most = 2.0 / float(np.linalg.eigvalsh(mean)[-1])
    options = {"xatol": 1e-10 * most}
    found = minimize_scalar(contraction, bounds=(0.0, most), method="bounded", options=options)
    return float(found.x), float(found.fun)
