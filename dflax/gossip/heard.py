"""What every client hears, model by model, for rules that look at each of them."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, PyTree

from dflax.clients import everywhere
from dflax.gossip.linear import along
from dflax.gossip.mixer import Models
from dflax.gossip.rolls import bytes_that_leave
from dflax.programs.exchanges import sends
from dflax.topology import MixingMatrix

Tables = tuple[Array, ...]
Hear = Callable[
    [Models, Tables, Bool[Array, " n"] | None],
    tuple[Models, Float[Array, "n k"], Float[Array, " n"]],
]


def hearing(matrix: MixingMatrix) -> tuple[Tables, Hear]:
    """The neighbours' models side by side, with the weights of a mixing matrix.

    On rings and other circulant graphs the models come by rolls, of which sharded clients exchange
    the boundary rows alone; else by a gather, for which every device holds all models.

    Args:
      matrix: W, rows that sum to 1.

    Returns:
      Tables, and `hear(models, tables, active) -> (heard, weights, own)`: leaves `[n, k, ...]`, the
      weight `[n, k]` of each, and that of the client's own model, `[n]`. Instead of who is absent, and
      in empty slots, a client hears itself, at weight 0.
    """
    shifts, sides = matrix.graph.shifts, matrix.graph.shape
    one_weight = matrix.shared_weight is not None
    rolls = shifts is not None and sides is not None and len(sides) == 1 and not one_weight
    neighbours, weights = matrix.slots()
    if rolls and shifts is not None:
        # Edge i k + o is the one that node i hears through shift o.
        weights = matrix.weights.reshape(matrix.nodes, len(shifts))
        neighbours = matrix.graph.senders.reshape(weights.shape)

    def hear(
        models: Models, tables: Tables, active: Bool[Array, " n"] | None
    ) -> tuple[Models, Array, Array]:
        senders, given = tables
        if active is not None:
            given = jnp.where(active[:, None] & active[senders], given, 0)

        def slots(leaf: Array) -> Array:
            if rolls and shifts is not None:
                with sends(lambda: bytes_that_leave(matrix.graph, leaf)):
                    rows = jnp.stack([jnp.roll(leaf, shift[0], 0) for shift in shifts], axis=1)
            else:
                rows = everywhere(leaf).at[senders].get(mode="promise_in_bounds")
            known = given.reshape(*given.shape, *(1,) * (leaf.ndim - 1)) > 0
            return jnp.where(known, rows, leaf[:, None])

        return jax.tree.map(slots, models), given, 1 - given.sum(1)

    return (jnp.asarray(neighbours), jnp.asarray(weights, jnp.float32)), hear


def weighted_sum(
    own: PyTree[Array], own_weight: Array, others: PyTree[Array], weights: Float[Array, " k"]
) -> PyTree[Array]:
    """`w own + sum_k w_k others_k` of one client, in float32 or wider, in the models' own dtype."""

    def mix(mine: Array, theirs: Array) -> Array:
        wide = jnp.promote_types(mine.dtype, jnp.float32)
        terms = along(weights.astype(wide), theirs) * theirs.astype(wide)
        return (own_weight.astype(wide) * mine.astype(wide) + terms.sum(0)).astype(mine.dtype)

    return jax.tree.map(mix, own, others)
