"""Gossip accelerated by Chebyshev polynomials of the mixing matrix."""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from dflax import topology as graphs
from dflax import validation
from dflax.algorithm import Metrics
from dflax.gossip.choose import as_matrix, mixer
from dflax.gossip.mixer import (
    Mixer,
    MixerState,
    Mixing,
    Models,
    mix,
    over_several,
    require_any_tree,
)

OUTERMOST = (
    "Put gossip.recalibrated or gossip.anchored around it: recalibrated(chebyshev(...), module)."
)


def chebyshev(
    topology: Any,
    steps: int,
    *,
    second_eigenvalue: float | Float[Array, ""] | None = None,
) -> Mixer:
    """`X <- T_Q(W / lambda) X / T_Q(1 / lambda)`, T_Q the Chebyshev polynomial of degree Q.

    Among all ways of combining Q mixings with a symmetric W whose other eigenvalues lie in
    [-lambda, lambda], this one shrinks disagreement most, and it keeps the mean:
    `|X+ - mean| <= 2 c^Q / (1 + c^{2Q}) |X - mean|` with
    `c = (1 - sqrt(1 - lambda^2)) / lambda`, where plain repetition has `lambda^Q`. The recursion is
    `y_1 = W y_0`, `y_{q+1} = o_{q+1} (W y_q - y_{q-1}) + y_{q-1}`, `o_1 = 2`,
    `o_{q+1} = 1 / (1 - lambda^2 o_q / 4)`. Clients that are inactive make a masked W of larger lambda:
    the mean is still kept and nothing diverges, but the bound no longer holds.

    Args:
      topology: a graph, a symmetric mixing matrix, or a `Mixer` that multiplies by one (the same one
        in all Q steps).
      steps: Q >= 1, static.
      second_eigenvalue: lambda in [0, 1), traceable; one that is too small may diverge. None: that of
        the matrix. Required for a `Mixer`.

    Returns:
      A `Mixer`.

    Raises:
      TypeError: a `Mixer` without `second_eigenvalue`.
      ValueError: arguments out of range, a matrix or mixer that is not symmetric, one that never mixes,
        or a mixer of whole models alone.

    References:
      Scaman et al., Optimal algorithms for smooth and strongly convex distributed optimization in
      networks, arXiv 1702.08704.
    """
    validation.integer("steps", steps, low=1)
    if isinstance(topology, Mixer):
        inner = topology
        require_any_tree(inner, "chebyshev", "differences of models", OUTERMOST, "topology")
        if inner.known.symmetric is False:
            raise ValueError(
                "topology must multiply by a symmetric matrix, got a mixer that does not (push-sum, a "
                "directed graph, sampled parts, a correction). Pass an undirected graph, or use "
                "gossip.repeat."
            )
        if second_eigenvalue is None:
            raise TypeError(
                "second_eigenvalue must be given with a Mixer, got None. Pass the graph or the mixing "
                "matrix instead to have it computed."
            )
    else:
        matrix = as_matrix(topology)
        if not matrix.symmetric:
            raise ValueError(
                f"topology must have a symmetric mixing matrix, got {matrix.graph.name}. Use an "
                "undirected graph with metropolis weights, or gossip.repeat."
            )
        # Whether W mixes is told by lambda, which a caller may also give for each of its components.
        inner = mixer(matrix, disconnected=True)
        if second_eigenvalue is None:
            # Rounding may leave the computed lambda of a disconnected graph a hair below 1.
            computed = graphs.second_eigenvalue(matrix)
            second_eigenvalue = computed if matrix.graph.connected else 1.0
    validation.real(
        "second_eigenvalue",
        second_eigenvalue,
        low=0.0,
        high=1.0,
        high_open=True,
        scalar=True,
        fix="At 1 the graph is disconnected or W permutes: connect it, or take topology.lazy weights.",
    )

    def apply(
        models: Models, state: MixerState, mixing: Mixing
    ) -> tuple[Models, MixerState, Metrics]:
        models = jax.tree.map(jnp.asarray, models)
        square = jnp.square(jnp.asarray(second_eigenvalue, jnp.float32))

        def once(carry: tuple[Any, ...], _: None) -> tuple[tuple[Any, ...], Metrics]:
            now, before, state, factor = carry
            mixed, state, metrics = mix(inner, now, state, mixing)
            factor = 1.0 / (1.0 - square * factor / 4.0)
            ahead = jax.tree.map(
                lambda m, b: ((m - b) * factor.astype(m.dtype) + b).astype(m.dtype), mixed, before
            )
            return (ahead, now, state, factor), metrics

        mixed, state, first = mix(inner, models, state, mixing)
        carry = (mixed, models, state, jnp.float32(2.0))
        (mixed, _, state, _), rest = jax.lax.scan(once, carry, None, length=steps - 1)
        every = jax.tree.map(lambda one, many: jnp.concatenate([one[None], many]), first, rest)
        return mixed, state, over_several(every)

    return inner._replace(apply=apply)
