"""Mixers of the named graphs, ready to use."""

from collections.abc import Callable, Sequence

import numpy as np
from jaxtyping import Array, Float, Int

from dflax import topology, validation
from dflax.gossip.choose import mixer
from dflax.gossip.mixer import Mixer


def ring(nodes: int, *, steps: int = 1) -> Mixer:
    """Mixing on the cycle, weights 1/3.

    Examples:
      >>> import jax, jax.numpy as jnp, dflax as dx
      >>> mixer = dx.gossip.ring(4)
      >>> models = jnp.array([3.0, 0.0, 0.0, 0.0])
      >>> mixing = dx.gossip.Mixing(jax.random.key(0), jnp.int32(0))
      >>> mixed, state, metrics = mixer.apply(models, mixer.init(models), mixing)
      >>> mixed.round(2).tolist()
      [1.0, 1.0, 0.0, 1.0]
    """
    return mixer(topology.ring(nodes), steps=steps)


def torus(rows: int, columns: int, *, steps: int = 1) -> Mixer:
    """Mixing on the periodic grid, weights 1/5."""
    return mixer(topology.torus(rows, columns), steps=steps)


def hypercube(nodes: int, *, steps: int = 1) -> Mixer:
    """Mixing on the hypercube, weights `1 / (1 + log2 n)`; n is a power of two."""
    return mixer(topology.hypercube(nodes), steps=steps)


def star(nodes: int, *, steps: int = 1) -> Mixer:
    """Mixing on the star around client 0, Metropolis–Hastings weights: 1/n on every link."""
    return mixer(topology.star(nodes), steps=steps)


def exponential(nodes: int, *, steps: int = 1) -> Mixer:
    """Mixing on the static exponential graph: equal weights on self and offsets 1, 2, 4, ...

    Examples:
      >>> import jax, jax.numpy as jnp, dflax as dx
      >>> mixer = dx.gossip.exponential(4)
      >>> models = jnp.array([3.0, 0.0, 0.0, 0.0])
      >>> mixing = dx.gossip.Mixing(jax.random.key(0), jnp.int32(0))
      >>> mixed, state, metrics = mixer.apply(models, mixer.init(models), mixing)
      >>> mixed.round(2).tolist()
      [1.0, 1.0, 1.0, 0.0]
    """
    return mixer(topology.exponential(nodes), steps=steps)


def one_peer_exponential(nodes: int, *, steps: int = 1) -> Mixer:
    """`W_t = (I + S_o) / 2`, S_o the cyclic shift by `o = 2^(t mod ceil(log2 n))`.

    Every client sends one model per gossip step. Over a period of ceil(log2 n) steps the average is
    exact when n is a power of two, and only approached for other n.

    Args:
      nodes: n >= 2.
      steps: gossip steps per round, >= 1.

    Returns:
      A `Mixer`.

    Raises:
      ValueError: arguments out of range.

    References:
      Ying et al., Exponential Graph is Provably Efficient for Decentralized Deep Training,
      arXiv 2110.13363.
    """
    validation.integer("nodes", nodes, low=2)
    offsets = topology.exponential_offsets(nodes)
    turns = [
        topology.uniform(
            topology.from_shifts((nodes,), ((o,),), f"shift by {o} of {nodes}", disconnected=True)
        )
        for o in offsets
    ]
    return mixer(turns, steps=steps)


def matcha(graph: topology.Graph, budget: float, *, steps: int = 1) -> Mixer:
    """Mixing over a graph's matchings, each active at random; arguments as in `topology.matcha`."""
    return mixer(topology.matcha(graph, budget), steps=steps)


def erdos_renyi(nodes: int, probability: float, seed: int = 0, *, steps: int = 1) -> Mixer:
    """Mixing on a connected Erdős–Rényi graph G(n, p), Metropolis–Hastings weights."""
    return mixer(topology.erdos_renyi(nodes, probability, seed), steps=steps)


def random_regular(nodes: int, degree: int, seed: int = 0, *, steps: int = 1) -> Mixer:
    """Mixing on one connected random regular graph, weights `1 / (1 + degree)`."""
    return mixer(topology.random_regular(nodes, degree, seed), steps=steps)


def geometric(nodes: int, radius: float, seed: int = 0, *, steps: int = 1) -> Mixer:
    """Mixing on a connected random geometric graph, Metropolis–Hastings weights."""
    return mixer(topology.geometric(nodes, radius, seed), steps=steps)


def random_neighbours(
    nodes: int,
    r: float | Float[Array, ""] | Callable[[Int[Array, ""]], Float[Array, ""]],
    *,
    most: int | None = None,
    base: topology.Graph | None = None,
    first: Sequence[int] | Int[np.ndarray, " f"] = (),
    disconnected: bool = False,
    steps: int = 1,
) -> Mixer:
    """Mixing with r random others on average; arguments as in `topology.random_neighbours`."""
    schedule = topology.random_neighbours(
        nodes, r, most=most, base=base, first=first, disconnected=disconnected
    )
    return mixer(schedule, steps=steps)


def random_matching(
    nodes: int,
    probability: float | Float[Array, ""] | Callable[[Int[Array, ""]], Float[Array, ""]] = 1.0,
    *,
    steps: int = 1,
) -> Mixer:
    """Mixing in random pairs; arguments as in `topology.random_matching`."""
    return mixer(topology.random_matching(nodes, probability), steps=steps)


def random_regular_each_round(nodes: int, degree: int, *, steps: int = 1) -> Mixer:
    """Mixing on a new regular graph each time; arguments as in `topology.random_regular_each_round`."""
    return mixer(topology.random_regular_each_round(nodes, degree), steps=steps)
