"""From a topology to the mixer that suits its structure."""

from collections.abc import Callable, Sequence
from typing import Any, Literal

import numpy as np
from jaxtyping import Float

from dflax import validation
from dflax.gossip import fixed
from dflax.gossip.mixer import Mixer
from dflax.gossip.repeat import repeat
from dflax.gossip.varying import alternate, scheduled
from dflax.topology import (
    Graph,
    MixingMatrix,
    Schedule,
    from_dense,
    metropolis,
    periodic,
    uniform,
)
from dflax.topology.graph import require_connected_together

Topology = (
    Graph
    | MixingMatrix
    | Schedule
    | Float[np.ndarray, "n n"]
    | Sequence[Graph | MixingMatrix | Float[np.ndarray, "n n"]]
)
Kind = Literal["shifts", "slots", "dense", "edges", "complete"]

MOST_SHIFTS = 32
MOST_SLOTS = 64
# Multiplying by W costs 2 n operations per number mixed, hearing k neighbours moves 4 k bytes: on the
# machines measured the two meet near n = 32 k.
DENSE_PER_SLOT = 32
LARGEST_DENSE = 1 << 12
KINDS: dict[str, Callable[[MixingMatrix], Mixer]] = {
    "shifts": fixed.shifts,
    "slots": fixed.slots,
    "dense": fixed.dense,
    "edges": fixed.edges,
}


def mixer(
    topology: Topology,
    *,
    weights: Callable[[Graph], MixingMatrix] | None = None,
    steps: int = 1,
    kind: Kind | None = None,
    disconnected: bool = False,
) -> Mixer:
    """The mixer of a graph, a mixing matrix, or a sequence or schedule of them.

    Args:
      topology: a `Graph`; a `MixingMatrix`; an array `[n, n]`, >= 0 and doubly stochastic; a
        sequence of these, used in turn; or a `Schedule`.
      weights: from graph to mixing matrix, such as `topology.uniform`; only for graphs. None:
        Metropolis–Hastings, and uniform weights on directed regular graphs.
      steps: gossip steps per round, >= 1 (see `repeat`).
      kind: how W is multiplied by. None chooses: one product ("complete") where everyone hears everyone
        with one weight; rolls ("shifts") on rings, tori, hypercubes and circulant graphs of few
        neighbours; a product with W ("dense") when n is at most 32 times the largest degree; else a sum
        over neighbours ("slots"), or over edges ("edges") when few nodes have most of them.
      disconnected: whether a topology is accepted in which the model of some node never reaches
        another. Of a sequence, all graphs count together: its rounds alone may be disconnected. A
        `Schedule` is taken as it is: those of `dflax.topology` were checked when they were made.

    Returns:
      A `Mixer`.

    Raises:
      TypeError: a topology of another type, `weights` beside anything but a graph, or `weights` that
        are no function to a `MixingMatrix`.
      ValueError: a kind that is unknown or does not fit, a matrix that is not stochastic, a directed
        graph that is not regular, a topology that is not (strongly) connected, or `steps` below 1.

    Examples:
      >>> import jax, jax.numpy as jnp, dflax as dx
      >>> mixer = dx.gossip.mixer(dx.topology.path(4))
      >>> models = jnp.array([3.0, 0.0, 0.0, 0.0])
      >>> mixing = dx.gossip.Mixing(jax.random.key(0), jnp.int32(0))
      >>> mixed, state, metrics = mixer.apply(models, mixer.init(models), mixing)
      >>> mixed.round(2).tolist()
      [2.0, 1.0, 0.0, 0.0]
    """
    validation.flag("disconnected", disconnected)
    validation.integer("steps", steps, low=1)
    if kind is not None and not (isinstance(kind, str) and kind in (*KINDS, "complete")):
        raise ValueError(
            f"kind must be one of {[*KINDS, 'complete']} or None, got {validation.shown(kind)}."
        )
    if isinstance(topology, Mixer):
        raise TypeError(
            "topology must be a graph or a matrix, got a Mixer. Repeat one with repeat()."
        )
    if isinstance(topology, Schedule):
        if weights is not None or kind is not None:
            raise TypeError(
                "weights and kind must be None beside a Schedule, which draws its own W."
            )
        return repeat(scheduled(topology), steps)
    if isinstance(topology, (list, tuple)):
        if not topology:
            raise ValueError("topology must list at least one graph or matrix, got none.")
        matrices = [as_matrix(one, weights) for one in topology]
        if not disconnected:
            _require_connected(matrices)
        if kind is None and not all(map(_has_structure, matrices)):
            return repeat(scheduled(periodic(matrices, disconnected=True)), steps)
        turns = [_of_kind(matrix, kind) for matrix in matrices]
        return repeat(alternate(turns, disconnected=True), steps)
    matrix = as_matrix(topology, weights)
    if not disconnected:
        _require_connected([matrix])
    return repeat(_of_kind(matrix, kind), steps)


def as_matrix(
    topology: Any, weights: Callable[[Graph], MixingMatrix] | None = None
) -> MixingMatrix:
    """A graph with its weights, a mixing matrix, or an array `[n, n]`, as a `MixingMatrix`.

    Raises:
      TypeError: a topology of another type, `weights` beside anything but a graph, or `weights` that
        are no function to a `MixingMatrix`.
      ValueError: a directed graph that is not regular and comes without weights, or an array that is
        not doubly stochastic.
    """
    if isinstance(topology, Graph):
        if weights is not None:
            fix = "Pass a rule such as topology.metropolis or topology.uniform."
            validation.function("weights", weights, fix, takes=1)
            matrix = weights(topology)
            validation.instance("weights(graph)", matrix, MixingMatrix, fix)
            return matrix
        if not topology.directed:
            return metropolis(topology)
        if topology.regular:
            return uniform(topology)
        raise ValueError(
            f"weights must be given for the directed graph {topology.name}, which is not regular. Use "
            "gossip.push_sum, which averages exactly over it, or "
            "functools.partial(topology.uniform, row_stochastic=True)."
        )
    if weights is not None:
        raise TypeError("weights must be None beside a matrix, which has its own.")
    if isinstance(topology, MixingMatrix):
        return topology
    if hasattr(topology, "shape"):
        return from_dense(np.asarray(topology), disconnected=True, name="topology")
    raise TypeError(
        f"topology must be a Graph, a MixingMatrix, a Schedule, an array [n, n] or a sequence of such, "
        f"got {type(topology).__name__}. Make a graph with dflax.topology, for example ring(20)."
    )


def fits_rolls(matrix: MixingMatrix) -> bool:
    """Whether a graph of few shifts has the same weights at every node."""
    shifts = matrix.graph.shifts
    return shifts is not None and len(shifts) <= MOST_SHIFTS and matrix.shift_weights is not None


def fits_slots(matrix: MixingMatrix) -> bool:
    """Whether a table `[n, k]` of neighbours is short and not mostly padding."""
    most = int(matrix.graph.in_degrees.max())
    return most <= MOST_SLOTS and most * matrix.nodes <= 4 * len(matrix.weights) + matrix.nodes


def _require_connected(matrices: Sequence[MixingMatrix]) -> None:
    """Refuse matrices whose graphs, taken together, leave some node out of reach of another."""
    graphs = [matrix.graph for matrix in matrices]
    if len({graph.nodes for graph in graphs}) == 1:
        require_connected_together("topology", graphs)


def _of_kind(matrix: MixingMatrix, kind: Kind | None) -> Mixer:
    if kind is None:
        kind = _best(matrix)
    if kind == "complete":
        weight = matrix.shared_weight
        if weight is None:
            raise ValueError(
                "kind must not be 'complete' unless everyone hears everyone with one weight, got "
                f"{matrix.graph.name}."
            )
        return fixed.complete(matrix.nodes, None if matrix.averages else weight)
    return KINDS[kind](matrix)


def _best(matrix: MixingMatrix) -> Kind:
    if matrix.shared_weight is not None:
        return "complete"
    if fits_rolls(matrix):
        return "shifts"
    most = int(matrix.graph.in_degrees.max())
    if matrix.nodes <= min(DENSE_PER_SLOT * most, LARGEST_DENSE):
        return "dense"
    return "slots" if fits_slots(matrix) else "edges"


def _has_structure(matrix: MixingMatrix) -> bool:
    return fits_rolls(matrix) or matrix.shared_weight is not None
