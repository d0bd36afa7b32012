"""Rules that are combinations, found for all clients on one table of products."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from dflax.aggregation.combination import count_dropped
from dflax.aggregation.rows.coordinates import mix_rows
from dflax.aggregation.rows.distances import robust_products
from dflax.algorithm import Metrics
from dflax.clients import everywhere, select
from dflax.gossip.mixer import Mixing, Models
from dflax.gossip.rules.neighbour_rule import Shares

# Numbers in the tables of products that lie side by side while clients are computed at once.
AT_ONCE = 1 << 22


def suits(clients: int, heard: int) -> bool:
    """Whether one table of n^2 products costs less than a table of (k + 1)^2 for every client."""
    return (heard + 1) ** 2 >= 2 * clients


def mixed_by_products(
    shares: Shares,
    models: Models,
    neighbours: Int[Array, "n k"],
    weights: Float[Array, "n k"],
    mixing: Mixing,
    mask: Bool[Array, " n"] | None,
) -> tuple[Models, Metrics]:
    """What every client makes of those it hears: `X <- A X` with a row of shares for each of them.

    Models are read four times, whatever the graph: for their median, for the products of what is left
    of them without it, and for the result. No neighbour's model is copied. Who holds no finite model
    is heard by nobody and keeps it.

    Args:
      shares: see `combining`.
      models: leaves `[n, ...]`.
      neighbours: whom everyone hears.
      weights: with which weight; 0 for an empty slot, and for who is absent.
      mixing: the mixing.
      mask: who takes part; None for all.

    Returns:
      Leaves `[n, ...]`, and the rule's metrics, leaves `[n]`, or `[n, k]` of `used`.
    """
    clients = len(neighbours)
    products, finite = robust_products(models, mask)
    whole = finite & jnp.isfinite(jnp.diagonal(products))
    whole = whole if mask is None else whole & mask
    products = everywhere(jnp.where(whole[:, None] & whole, products, 0))
    given = jnp.where(whole[:, None] & whole[neighbours], weights, 0)
    lost = jnp.sum((weights > 0) & ~whole[neighbours], axis=1)

    def one(row: tuple[Array, Array, Array]) -> tuple[Array, Array, Metrics]:
        client, others, heard = row
        who = jnp.concatenate([client[None], others])
        # Whole rows first, which costs a CPU less than pairs of numbers.
        table = products[who][:, who]
        own = own_weight(heard)
        key = jax.random.fold_in(mixing.key, client)
        found, metrics = shares(table, jnp.concatenate([own[None], heard]), key)
        total = found.sum()
        found = found / jnp.where(total > 0, total, 1)
        found = found.at[0].add(jnp.where(total > 0, 0, 1))
        # An empty slot bears the client's own number, at share 0.
        combined = jnp.zeros(clients, found.dtype).at[who].add(found)
        return combined, (found[1:] > 0).astype(jnp.float32), metrics

    everyone = jnp.arange(clients, dtype=jnp.int32)
    width = max(1, AT_ONCE // (neighbours.shape[1] + 1) ** 2)
    mixture, used, metrics = jax.lax.map(
        one, (everyone, everywhere(neighbours), everywhere(given)), batch_size=min(width, clients)
    )
    nothing = jax.tree.map(jnp.zeros_like, models)
    after = mix_rows(mixture, select(whole, models, nothing))
    return select(whole, after, models), count_dropped(metrics, lost) | {"used": used}


def own_weight(weights: Float[Array, " k"]) -> Float[Array, ""]:
    """What the others leave to the own model."""
    left = 1 - weights.sum()
    # Rounding shall not give a share to whom the weights leave out.
    return jnp.where(left > weights.size * jnp.finfo(left.dtype).eps, left, 0)
