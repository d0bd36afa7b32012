"""Graphs that change from round to round, drawn inside the compiled program."""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key, PyTree

from dflax import validation
from dflax.kernels.ranks import ranks
from dflax.topology.graph import Graph, require_connected_together
from dflax.topology.mixing_matrix import MixingMatrix, require_matrix
from dflax.topology.random_graphs import require_even

# Up to this many neighbours, drawing them one by one beats ranking all n x n pairs.
MOST_DRAWN_SINGLY = 16


class Slots(NamedTuple):
    """A mixing matrix as k weighted neighbours a node: `w_ii = 1 - sum_k weights[i, k]`.

    Attributes:
      neighbours: `[n, k]` int32, whom node i hears.
      weights: `[n, k]` >= 0, rows that sum to at most 1; 0 for a slot that is not used.
    """

    neighbours: Int[Array, "n k"]
    weights: Float[Array, "n k"]


class Schedule(NamedTuple):
    """A row-stochastic mixing matrix per round.

    Attributes:
      nodes: n.
      tables: pytree of host arrays that `draw` reads; a mixer carries them in its state, so that they
        are data of the compiled program.
      draw: `draw(tables, key, index) -> W`, pure: the matrix of round `index` (`[]` int32), as `Slots`
        or as an array `[n, n]`. Periodic schedules ignore the key, random ones need it.
      symmetric: whether every W is symmetric, hence doubly stochastic.
      doubly_stochastic: whether the columns of every W sum to 1 too; None where it is not known.
        Read only where `symmetric` is False.
      least: how many others every node hears in every round, at least; None where it is not known.
    """

    nodes: int
    tables: PyTree[np.ndarray]
    draw: Callable[[Any, Key[Array, ""], Int[Array, ""]], Slots | Float[Array, "n n"]]
    symmetric: bool
    doubly_stochastic: bool | None = None
    least: int | None = None


def periodic(matrices: Sequence[MixingMatrix], *, disconnected: bool = False) -> Schedule:
    """Matrix number `t mod T` in round t.

    Args:
      matrices: T >= 1 row-stochastic matrices of the same n.
      disconnected: whether matrices are accepted over all of which, a whole period, the model of some
        node never reaches another. Each of them alone may be disconnected.

    Returns:
      A `Schedule` whose tables are `[T, n, k]`, k the largest in-degree of them all.

    Raises:
      TypeError: anything but mixing matrices.
      ValueError: no matrices, sizes that differ, rows that do not sum to 1, or a union of the graphs
        that is not (strongly) connected.
    """
    validation.flag("disconnected", disconnected)
    fix = "Make one with topology.metropolis(graph)."
    matrices = validation.sequence("matrices", matrices, "mixing matrices", fix=fix)
    for number, matrix in enumerate(matrices):
        require_matrix(f"matrices[{number}]", matrix)
    sizes = [matrix.nodes for matrix in matrices]
    if len(set(sizes)) > 1:
        raise ValueError(f"matrices must be of one size, got {sizes} nodes.")
    for number, matrix in enumerate(matrices):
        if not matrix.row_stochastic:
            raise ValueError(
                f"matrices must have rows that sum to 1, got number {number} on {matrix.graph.name} "
                "whose rows do not."
            )
    if not disconnected:
        graphs = [matrix.graph for matrix in matrices]
        require_connected_together("matrices over a whole period", graphs)
    pairs = [matrix.slots() for matrix in matrices]
    most = max(neighbours.shape[1] for neighbours, _ in pairs)
    own = np.arange(sizes[0], dtype=np.int32)[:, None]
    tables = (
        np.stack([_padded(table, own, most) for table, _ in pairs]),
        np.stack([_padded(table, np.zeros((sizes[0], 1)), most) for _, table in pairs]),
    )

    def draw(tables: Any, key: Key[Array, ""], index: Int[Array, ""]) -> Slots:
        neighbours, weights = map(jnp.asarray, tables)
        return Slots(neighbours[index % len(matrices)], weights[index % len(matrices)])

    return Schedule(
        sizes[0],
        tables,
        draw,
        symmetric=all(matrix.symmetric for matrix in matrices),
        doubly_stochastic=all(matrix.column_stochastic for matrix in matrices),
        least=min(int(matrix.graph.in_degrees.min()) for matrix in matrices),
    )


def round_robin(nodes: int, offsets: Sequence[int] | None = None) -> Schedule:
    """In round t node i sends to i + o_t (mod n) alone: the offsets in turn, plain means of two.

    With the offsets of `exponential_offsets` it is the ring of power-of-two jumps, the schedule of
    `gossip.one_peer_exponential`.

    Args:
      nodes: n >= 2.
      offsets: in turn, from round 0; default 1, ..., n - 1: everyone meets everyone.

    Returns:
      A `Schedule` with one slot a node, doubly stochastic in every round.

    Raises:
      TypeError, ValueError: naming the argument; offsets along which some node never reaches another.
    """
    validation.integer("nodes", nodes, low=2)
    fix = "Pass for example exponential_offsets(n)."
    given = list(range(1, nodes)) if offsets is None else offsets
    turns = validation.sequence("offsets", given, "integers", fix=fix)
    for place, offset in enumerate(turns):
        validation.integer(f"offsets[{place}]", offset, low=1, high=nodes - 1)
    if math.gcd(nodes, *turns) > 1:
        raise ValueError(
            f"offsets must let every node reach every other, got {validation.shown(turns)} which all "
            f"have a divisor in common with the {nodes} nodes. Add the offset 1."
        )
    everyone = np.arange(nodes, dtype=np.int32)
    tables = np.stack([(everyone - offset) % nodes for offset in turns])[..., None]

    def draw(tables: Any, key: Key[Array, ""], index: Int[Array, ""]) -> Slots:
        senders = jnp.asarray(tables)[index % len(turns)]
        return Slots(senders, jnp.full(senders.shape, 0.5))

    return Schedule(nodes, tables, draw, symmetric=False, doubly_stochastic=True)


def random_matching(
    nodes: int,
    probability: float | Float[Array, ""] | Callable[[Int[Array, ""]], Float[Array, ""]] = 1.0,
) -> Schedule:
    """Each round a uniformly random pairing of the nodes; both ends of a pair take their mean.

    `E[W] = I - (p / 2) (I - (11' - I) / (n - 1))` for even n; with odd n one node, a random one, is
    left alone. Every W is symmetric, so the mean is kept in every round.

    Args:
      nodes: n >= 2.
      probability: p in [0, 1] with which each pair meets, independently; traceable. A node then hears
        p others on average, the symmetric counterpart of `random_neighbours` with r = p. A function of
        the `[]` round index as well; what it returns above 1 counts as 1.

    Returns:
      A `Schedule` with one slot a node.

    Raises:
      ValueError: arguments out of range.

    References:
      Boyd et al., Randomized gossip algorithms, IEEE Trans. Inf. Theory 52, 2006.
    """
    validation.integer("nodes", nodes, low=2)
    if not callable(probability):
        validation.probability("probability", probability)

    def draw(tables: None, key: Key[Array, ""], index: Int[Array, ""]) -> Slots:
        order_key, meet_key = jax.random.split(key)
        order = jax.random.permutation(order_key, nodes)
        pairs = order[: nodes // 2 * 2].reshape(-1, 2)
        partner = jnp.arange(nodes).at[pairs].set(pairs[:, ::-1], unique_indices=True)
        share = probability(index) if callable(probability) else probability
        meet = jax.random.uniform(meet_key, (nodes // 2, 1)) < share
        weights = (
            jnp.zeros(nodes)
            .at[pairs]
            .set(jnp.broadcast_to(jnp.where(meet, 0.5, 0.0), pairs.shape), unique_indices=True)
        )
        return Slots(partner[:, None], weights[:, None])

    return Schedule(nodes, None, draw, symmetric=True)


def random_neighbours(
    nodes: int,
    r: float | Float[Array, ""] | Callable[[Int[Array, ""]], Float[Array, ""]],
    *,
    most: int | None = None,
    base: Graph | None = None,
    first: Sequence[int] | Int[np.ndarray, " f"] = (),
    disconnected: bool = False,
) -> Schedule:
    """Each round every node hears r random others on average and takes the plain mean with its own.

    Node i draws c_i = floor(r) + Bernoulli(r - floor(r)) distinct others uniformly, independently of
    the other nodes: `w_ij = 1 / (1 + c_i)` for them and for j = i. Directed: only the rows of W sum
    to 1, so the mean is kept in expectation alone. `r >= n - 1` is exact averaging.

    It is also what nodes hear that wait for r messages, whoever is fast: where f of n may be silent
    nobody can wait for more than r = n - f - 1. An adversary is never late: name its nodes as `first`.

    Args:
      nodes: n >= 2.
      r: expected number of others, >= 0: a number (traceable), or a function of the `[]` round index
        that returns one, such as an `optax` schedule. An integer r gives r in-neighbours redrawn in
        every round, as some experiments of decentralized learning do.
      most: static bound on the neighbours a node can draw; a larger r counts as `most`. None:
        ceil(r) for a plain number, else all n - 1. Above 16, or when more than half of the others can
        be drawn, W is drawn as an n x n array.
      base: draw among this graph's neighbours only; a node with fewer than c_i hears them all.
      first: nodes that are drawn before all others, by everyone who can hear them; of more than c_i of
        them c_i at random. The rest is drawn uniformly as ever.
      disconnected: whether a base graph is accepted in which some node cannot reach another.

    Returns:
      A `Schedule`; not symmetric.

    Raises:
      TypeError: r that is neither a number nor a function, or a base that is no graph.
      ValueError: arguments out of range, or a base graph of another size or not (strongly) connected.

    References:
      Zhu et al., A Single Merging Suffices, arXiv 2507.06542.
    """
    validation.integer("nodes", nodes, low=2)
    if not callable(r):
        fix = "It counts other nodes; 0 is no communication."
        validation.real("r", r, low=0.0, scalar=True, fix=fix)
    if most is not None:
        validation.integer("most", most, low=1, high=nodes - 1)
    elif callable(r) or validation.is_traced(r):
        most = nodes - 1
    else:
        most = max(1, min(math.ceil(float(r)), nodes - 1))
    if base is not None:
        fix = "Make one with dflax.topology, for example ring(n); None draws among all nodes."
        validation.instance("base", base, Graph, fix)
    if base is not None and base.nodes != nodes:
        raise ValueError(f"base must have nodes={nodes} nodes, got {base.name} with {base.nodes}.")
    validation.flag("disconnected", disconnected)
    if base is not None and not disconnected:
        require_connected_together("base", [base])
    given = validation.array("first", first, kind="integer", low=0, high=nodes - 1)
    early = np.zeros(nodes, np.float32)
    early[given.astype(int).reshape(-1)] = 1.0
    least = None if callable(r) or validation.is_traced(r) else min(int(float(r)), most)

    def counts(key: Key[Array, ""], index: Int[Array, ""], shape: tuple[int, ...]) -> Array:
        expected = r(index) if callable(r) else r
        expected = jnp.clip(jnp.asarray(expected, jnp.float32), 0.0, float(most))
        whole = jnp.floor(expected)
        return whole + (jax.random.uniform(key, shape) < expected - whole)

    def few(tables: None, key: Key[Array, ""], index: Int[Array, ""]) -> Slots:
        count_key, choice_key = jax.random.split(key)
        drawn = counts(count_key, index, (nodes, 1))
        others = _distinct(choice_key, nodes - 1, most, nodes)
        own = jnp.arange(nodes, dtype=jnp.int32)[:, None]
        neighbours = others + (others >= own)
        used = jnp.arange(most) < drawn
        return Slots(neighbours, jnp.where(used, 1.0 / (1.0 + drawn), 0.0))

    def many(tables: None, key: Key[Array, ""], index: Int[Array, ""]) -> Float[Array, "n n"]:
        count_key, choice_key = jax.random.split(key)
        drawn = counts(count_key, index, (nodes, 1))
        score = jax.random.uniform(choice_key, (nodes, nodes)) - early
        itself = jnp.eye(nodes, dtype=bool)
        return jnp.where(ranks(jnp.where(itself, -2.0, score)) <= drawn, 1.0 / (1.0 + drawn), 0.0)

    def among(tables: Any, key: Key[Array, ""], index: Int[Array, ""]) -> Slots:
        count_key, choice_key = jax.random.split(key)
        neighbours, links = map(jnp.asarray, tables)
        linked = links > 0
        degrees = linked.sum(1, keepdims=True)
        drawn = jnp.minimum(counts(count_key, index, (nodes, 1)), degrees)
        uniform = jax.random.uniform(choice_key, linked.shape) - jnp.asarray(early)[neighbours]
        score = jnp.where(linked, uniform, 2.0)
        used = ranks(score) < drawn
        return Slots(neighbours, jnp.where(used, 1.0 / (1.0 + drawn), 0.0))

    if base is not None:
        ones = MixingMatrix(base, np.ones(len(base.senders)), np.ones(nodes))
        fewest = None if least is None else min(least, int(base.in_degrees.min()))
        return Schedule(nodes, ones.slots(), among, False, False, fewest)
    singly = most <= MOST_DRAWN_SINGLY and 2 * most < nodes and not given.size
    draw = few if singly else many
    return Schedule(nodes, None, draw, False, False, least)


def random_regular_each_round(nodes: int, degree: int) -> Schedule:
    """Each round a new regular graph: random cyclic shifts under a random numbering of the nodes.

    With a random permutation p and distinct random offsets s, node p(q) is linked to p(q + s) and
    p(q - s) (mod n); an odd degree adds the offset n / 2. All weights are `1 / (degree + 1)`: W is
    symmetric and doubly stochastic. A single round's graph may be disconnected.

    Args:
      nodes: n >= 2; n times the degree must be even.
      degree: number of neighbours, in [1, n - 1].

    Returns:
      A `Schedule` with `degree` slots a node.

    Raises:
      ValueError: arguments out of range or an odd product of nodes and degree.
    """
    validation.integer("nodes", nodes, low=2)
    validation.integer("degree", degree, low=1, high=nodes - 1)
    require_even(nodes, degree)

    def draw(tables: None, key: Key[Array, ""], index: Int[Array, ""]) -> Slots:
        order_key, offset_key = jax.random.split(key)
        order = jax.random.permutation(order_key, nodes)
        place = (
            jnp.zeros(nodes, jnp.int32)
            .at[order]
            .set(jnp.arange(nodes, dtype=jnp.int32), unique_indices=True)
        )
        half = jax.random.permutation(offset_key, (nodes - 1) // 2)[: degree // 2] + 1
        middle = [nodes // 2] if degree % 2 else []
        offsets = jnp.concatenate([half, -half, jnp.array(middle, half.dtype)])
        neighbours = order[(place[:, None] + offsets) % nodes]
        return Slots(neighbours, jnp.full((nodes, degree), 1.0 / (degree + 1)))

    return Schedule(nodes, None, draw, symmetric=True, least=degree)


def _distinct(key: Key[Array, ""], items: int, count: int, rows: int) -> Int[Array, "rows count"]:
    """Per row, `count` distinct numbers below `items` in random order.

    The j-th draw is a rank among the items not yet taken; stepping over the taken ones in rising
    order turns it into an item. Any prefix of a row is then a uniform subset as well.
    """
    taken: list[Array] = []
    chosen: list[Array] = []
    for j, draw_key in enumerate(jax.random.split(key, count)):
        item = jax.random.randint(draw_key, (rows,), 0, items - j, jnp.int32)
        for earlier in taken:
            item = item + (item >= earlier)
        chosen.append(item)
        for place, earlier in enumerate(taken):
            taken[place], item = jnp.minimum(earlier, item), jnp.maximum(earlier, item)
        taken.append(item)
    return jnp.stack(chosen, axis=1)


def _padded(table: np.ndarray, filling: np.ndarray, most: int) -> np.ndarray:
    extra = np.repeat(filling, most - table.shape[1], axis=1)
    return np.concatenate([table, extra.astype(table.dtype)], axis=1)
