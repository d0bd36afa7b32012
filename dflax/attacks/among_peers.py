"""What a message does to peers that all hear it, found on products of messages alone."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Key

from dflax.aggregation.rows.distances import robust_products
from dflax.attacks.collusion import Messages, along
from dflax.gossip.rules.neighbour_rule import Shares


def harm_to_peers(
    shares: Shares,
    messages: Messages,
    honest: Bool[Array, " m"],
    hostile: Bool[Array, " m"],
    known: Bool[Array, " m"],
    line: tuple[Messages, Messages],
    key: Key[Array, ""],
) -> Callable[[Float[Array, ""]], Float[Array, ""]]:
    """How far the mean of what honest peers make lies from the mean of the known, squared.

        harm(t) = |mean over honest i of rule_i(messages) - mean of the known|^2

    Hostile ones send s + t d. Every peer hears all messages, with equal weights. All that a rule looks
    at are products of the messages, s and s + d, made once; each t then costs tables of m^2 numbers.

    Args:
      shares: of the peers' rule, see `gossip.combining`.
      messages: leaves `[m, ...]`, finite where honest or known.
      honest: `[m]`, whose rules are looked at.
      hostile: `[m]`, who sends s + t d.
      known: `[m]`, whose mean is the one to get away from.
      line: s and d, leaves `[...]`.
      key: for rules that draw.
    """
    count = len(honest)
    start, direction = line
    ends = start, along(start, direction, 1.0)
    rows = jax.tree.map(lambda x, *e: jnp.concatenate([x, jnp.stack(e)]), messages, *ends)
    seen = jnp.concatenate([honest | known, jnp.ones(2, bool)])
    products, _ = robust_products(rows, seen.astype(jnp.float32))
    products = jnp.where(seen[:, None] & seen, products, 0)
    everyone = jnp.arange(count)
    weights = (honest | hostile).astype(products.dtype)
    weights = weights / jnp.maximum(weights.sum(), 1)
    centre = jnp.append(known / jnp.maximum(known.sum(), 1), jnp.zeros(2)).astype(products.dtype)
    exact = jax.lax.Precision.HIGHEST

    def harm(length: Float[Array, ""]) -> Float[Array, ""]:
        sent = jnp.where(hostile[:, None], 0, jnp.eye(count, count + 2, dtype=products.dtype))
        sent = sent.at[:, count].set(jnp.where(hostile, 1 - length, 0))
        sent = sent.at[:, count + 1].set(jnp.where(hostile, length, 0))
        between = jnp.matmul(jnp.matmul(sent, products, precision=exact), sent.T, precision=exact)

        def made(peer: Array) -> Float[Array, " m"]:
            # The peer's own message comes first.
            who = jnp.where(
                everyone == 0, peer, jnp.where(everyone <= peer, everyone - 1, everyone)
            )
            own = jax.random.fold_in(key, peer)
            given, _ = shares(between[who[:, None], who], weights[who], own)
            return jnp.zeros(count, given.dtype).at[who].set(given / given.sum())

        made_by = jnp.where(honest[:, None], jax.vmap(made)(everyone), 0)
        mean = made_by.sum(0) / jnp.maximum(honest.sum(), 1)
        away = jnp.matmul(mean, sent, precision=exact) - centre
        return jnp.matmul(away, jnp.matmul(products, away, precision=exact), precision=exact)

    return harm
